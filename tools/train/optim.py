"""Optimizer of the training: Muon for the matrices inside the layers, AdamW for all else.

Muon (Jordan et al. 2024): momentum, then the nearest half-orthogonal matrix by a quintic
Newton-Schulz iteration. It reaches a given loss in clearly fewer tokens than AdamW at this size.
"""

import torch


def orthogonalize(g, steps=4):
    """Nearest half-orthogonal matrix of g [rows, columns], singular values only about 1.

    Each step is X <- (a I + b XX' + c (XX')^2) X. All steps are polynomials of the first XX', so they
    are gathered in one square matrix and applied to g once: the long side is multiplied only twice.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = g.t() if tall else g
    x = x / (x.norm() + 1e-7)
    gram = x @ x.t()
    product = None
    for step in range(steps):
        p = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal().add_(a)
        product = p if product is None else p @ product
        if step + 1 < steps:
            gram = p @ (gram @ p)
    x = product @ x
    return x.t() if tall else x


class Muon(torch.optim.Optimizer):
    """`pieces`: how many matrices a tensor holds along its rows (query, key, value: 3)."""

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.05):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"]
                m.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(m, group["momentum"]).flatten(1)
                update = orthogonalize(g)
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def make_optimizers(model, kind, lr, weight_decay):
    """Optimizers of a model; each group keeps its full rate in `initial_lr`.

    lr is Muon's rate, or AdamW's where `kind` is adamw.
    """
    matrices, tables, others = [], [], []
    for name, p in model.named_parameters():
        if p.dim() == 1:
            others.append(p)
        elif "embed" in name.split(".")[-2]:
            tables.append(p)
        else:
            matrices.append(p)
    fused = dict(fused=True, betas=(0.9, 0.95), eps=1e-8)
    if kind == "adamw":
        groups = [
            dict(params=matrices + tables, lr=lr, weight_decay=weight_decay),
            dict(params=others, lr=lr, weight_decay=0.0),
        ]
        optimizers = [torch.optim.AdamW(groups, **fused)]
    else:
        groups = [
            dict(params=tables, lr=lr / 5, weight_decay=weight_decay / 5),
            dict(params=others, lr=lr / 5, weight_decay=0.0),
        ]
        optimizers = [
            Muon(matrices, lr=lr, weight_decay=weight_decay),
            torch.optim.AdamW(groups, **fused),
        ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
