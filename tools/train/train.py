#!/usr/bin/env python3
"""Trains a Block Transformer or a vanilla GPT-NeoX of equal size on a text, on CPU or GPU.

Both kinds see the same windows for one seed. A run can be stopped (SIGTERM writes a checkpoint) and
resumed with --resume; --tokens may change then: a smaller number starts the decay sooner. Where the
pace is uncertain, --finish-at ends a run by the clock.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import signal
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from data import Windows, load_tokens, pad_first_block
from model import build, initialize, layout
from optim import make_optimizers


def model_config(args, vocab_size):
    """The released form (L 4, r 2, concat) or a vanilla stack of as many layers in all."""
    if args.kind == "vanilla":
        stack = layout.stack_config(args.width, args.heads, 2 * args.layers)
        return layout.vanilla_config(stack, vocab_size)
    stack = layout.stack_config(args.width, args.heads, args.layers)
    return layout.block_config(stack, dict(stack), vocab_size)


def learning_rate_scale(done, warmup, progress, decay_share):
    """Warm up, stay, then fall linearly to zero over the last `decay_share` of the progress."""
    rise = min(1.0, (done + 1) / max(1, warmup))
    fall = min(1.0, max(0.0, (1 - progress) / decay_share))
    return min(rise, fall)


def next_time(clock):
    """Seconds of the next moment at which a clock shows HH:MM."""
    now = time.localtime()
    hours, minutes = (int(part) for part in clock.split(":"))
    at = time.mktime(now[:3] + (hours, minutes, 0) + now[6:])
    return at if at > time.time() else at + 86400


def token_losses(model, tokens):
    """Natural-log losses [N, S - first_scored] of tokens [N, S]."""
    logits = model(tokens)
    targets = tokens[:, model.first_scored :]
    losses = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    )
    return losses.view(targets.shape)


@torch.no_grad()
def bits_per_byte(model, tokens, lengths, context, limit=None, device="cpu"):
    """Windows of `context` tokens scored one by one, alignment `start`; each first token unscored."""
    count = min(limit or len(tokens), len(tokens)) // context
    windows = torch.from_numpy(tokens[: count * context].reshape(count, context))
    block = getattr(model, "length", 1)
    nats, size = 0.0, 0
    model.eval()
    for at in range(0, count, 8):
        rows = windows[at : at + 8]
        n = len(rows)
        head = torch.zeros(n, block - 1, dtype=rows.dtype)
        tail = torch.zeros(n, -(block - 1 + context) % block, dtype=rows.dtype)
        losses = token_losses(model, torch.cat([head, rows, tail], dim=1).to(device))
        losses = losses[:, : context - 1].double().cpu()
        weights = torch.from_numpy(lengths)[rows[:, 1:]]
        nats += (losses * (weights > 0)).sum().item()
        size += weights.sum().item()
    model.train()
    return nats / math.log(2) / size


@contextlib.contextmanager
def precision(name, device):
    """bf16: matrix products in bfloat16, weights, norms and losses in float32 (torch's autocast)."""
    with contextlib.ExitStack() as stack:
        if name == "bf16":
            stack.enter_context(torch.autocast(torch.device(device).type, dtype=torch.bfloat16))
        if torch.device(device).type == "cpu":
            # Windows are short and a token decoder's are tiny: plain products are faster.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


class Run:
    def __init__(self, args):
        self.args = args
        self.folder = pathlib.Path(args.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.train_tokens, self.held_out, self.lengths = load_tokens(
            args.corpus, args.tokenizer, args.cache or self.folder
        )
        self.config = model_config(args, len(self.lengths))
        self.model = initialize(build(self.config), args.seed).to(args.device)
        self.optimizers = make_optimizers(
            self.model, args.optimizer, args.learning_rate, args.weight_decay
        )
        self.done_tokens, self.steps, self.history = 0, 0, []
        self.windows = {}
        self.stop = False
        self.finished = False
        self.finish = next_time(args.finish_at) if args.finish_at else None

    @property
    def checkpoint_file(self):
        return self.folder / "checkpoint.pt"

    def save(self):
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "done_tokens": self.done_tokens,
            "steps": self.steps,
            "finished": self.finished,
            "history": self.history,
            "config": self.config,
            "args": vars(self.args),
        }
        partial = self.checkpoint_file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint_file)

    def resume(self):
        state = torch.load(self.checkpoint_file, map_location=self.args.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(stored)
        self.done_tokens, self.steps = state["done_tokens"], state["steps"]
        self.history = state["history"]

    def progress(self, now=None):
        """Share of the training that is done, by tokens or, with --finish-at, by the clock."""
        args = self.args
        share = self.done_tokens / args.tokens
        if args.finish_at:
            left = (self.finish - (now or time.time())) / (60 * args.decay_minutes)
            share = max(share, 1 - left * args.decay_share)
        return share

    def context(self):
        early = self.progress() < self.args.long_context_from
        return self.args.context if early else self.args.long_context

    def next_batch(self):
        """(tokens [rows, context], pads of each row)."""
        context = self.context()
        if context not in self.windows:
            newline = int(self.newline_id())
            self.windows[context] = Windows(
                self.train_tokens, context, newline, seed=self.args.seed
            )
        rows = self.args.batch_tokens // context
        first = self.done_tokens // context
        batch = self.windows[context].batch(first, rows)
        if layout.is_block(self.config):
            return pad_first_block(
                batch,
                first,
                self.config["block_length"],
                self.config["pad_token_id"],
                self.args.seed,
            )
        return batch, np.zeros(rows, dtype=np.int64)

    def newline_id(self):
        """The id between paragraphs: the commonest one that stands twice in a row."""
        ids = self.train_tokens
        return np.bincount(ids[:-1][ids[:-1] == ids[1:]]).argmax()

    def step(self):
        batch, _ = self.next_batch()
        rows = max(1, self.args.micro_tokens // batch.shape[1])
        # The only pads that a loss could see stand in the first block, which is never scored.
        scored = batch[:, self.model.first_scored :].size
        total = 0.0
        for at in range(0, len(batch), rows):
            tokens = torch.from_numpy(batch[at : at + rows]).to(self.args.device)
            with precision(self.args.precision, self.args.device):
                loss = token_losses(self.model, tokens).sum() / scored
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip).item()
        scale = learning_rate_scale(
            self.done_tokens, self.args.warmup_tokens, self.progress(), self.args.decay_share
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done_tokens += batch.size
        self.steps += 1
        return total, norm, scale

    def evaluate(self, limit=None):
        return bits_per_byte(self.model, self.held_out, self.lengths, 256, limit, self.args.device)

    def train(self):
        args = self.args
        began, saved, shown, seen = time.time(), time.time(), time.time(), self.done_tokens
        evaluated = self.done_tokens
        while self.progress() < 1 and not self.stop:
            loss, norm, scale = self.step()
            now = time.time()
            if self.steps % args.log_steps == 0:
                rate = (self.done_tokens - seen) / (now - shown)
                shown, seen = now, self.done_tokens
                left = (args.tokens - self.done_tokens) / rate / 60
                print(
                    f"{time.strftime('%H:%M:%S')} step {self.steps} tokens {self.done_tokens} "
                    f"loss {loss:.4f} norm {norm:.2f} rate {scale:.3f} {rate:.0f} tok/s "
                    f"left {left:.0f} min",
                    flush=True,
                )
            if self.done_tokens - evaluated >= args.evaluate_tokens:
                evaluated = self.done_tokens
                bits = self.evaluate(args.evaluate_limit)
                self.history.append([self.done_tokens, round(bits, 4)])
                print(f"held out: {bits:.4f} bits per byte at {self.done_tokens}", flush=True)
            if now - saved >= args.save_seconds:
                saved = now
                self.save()
        self.finished = self.progress() >= 1
        self.save()
        if self.finished:
            bits = self.evaluate()
            result = {
                "kind": args.kind,
                "tokens_trained": self.done_tokens,
                "steps": self.steps,
                "held_out_bits_per_byte": round(bits, 4),
                "held_out_tokens": len(self.held_out),
                "train_tokens_in_corpus": len(self.train_tokens),
            }
            (self.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(result), flush=True)
        print(f"stopped after {(time.time() - began) / 60:.1f} minutes", flush=True)


def parse(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--kind", choices=("block", "vanilla"), required=True)
    p.add_argument("--corpus", required=True, help="text, books separated by <|endoftext|>")
    p.add_argument("--tokenizer", required=True, help="tokenizer.json")
    p.add_argument("--out", required=True, help="folder of checkpoint.pt and result.json")
    p.add_argument("--cache", help="folder for the encoded corpus (default: --out)")
    p.add_argument("--tokens", type=float, default=12e6, help="tokens to train on in all")
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument(
        "--layers", type=int, default=3, help="of each decoder; vanilla has twice as many"
    )
    p.add_argument("--context", type=int, default=128, help="tokens of a window")
    p.add_argument("--long-context", type=int, default=256, help="tokens of a window, later")
    p.add_argument("--long-context-from", type=float, default=0.6, help="share of the tokens")
    p.add_argument("--batch-tokens", type=int, default=8192)
    p.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    p.add_argument("--micro-tokens", type=int, default=1024, help="tokens of one forward pass")
    p.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    p.add_argument("--learning-rate", type=float, default=0.02, help="about 0.003 for adamw")
    p.add_argument("--weight-decay", type=float, default=0.05)
    p.add_argument("--warmup-tokens", type=float, default=2.5e5)
    p.add_argument(
        "--decay-share", type=float, default=0.5, help="share of the tokens in the decay"
    )
    p.add_argument("--finish-at", help="HH:MM: end then, whatever --tokens, decaying before")
    p.add_argument("--decay-minutes", type=float, default=60, help="of --finish-at")
    p.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu")
    p.add_argument("--log-steps", type=int, default=10)
    p.add_argument("--save-seconds", type=float, default=240)
    p.add_argument("--evaluate-tokens", type=int, default=500_000)
    p.add_argument("--evaluate-limit", type=int, default=16384, help="held-out tokens then used")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return p.parse_args(argv)


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    run = Run(args)
    if args.resume:
        run.resume()
    elif run.checkpoint_file.exists():
        raise SystemExit(f"{run.checkpoint_file} exists: give --resume, or another --out")

    def stop(*_):
        run.stop = True

    signal.signal(signal.SIGTERM, stop)
    count = sum(p.numel() for p in run.model.parameters())
    print(
        f"{args.kind}: {count} parameters, {len(run.train_tokens)} tokens of text, "
        f"{len(run.held_out)} held out, from {run.done_tokens} to {args.tokens:.0f}",
        flush=True,
    )
    run.train()


if __name__ == "__main__":
    main()
