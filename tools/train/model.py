"""Block Transformer and vanilla GPT-NeoX in torch, for training and for checks.

The forms follow the paper of the Block Transformer (arXiv 2406.02657) and its authors' checkpoints: the
names of parameters are the names of tensors in a model folder, so `state_dict()` is the file.
Symbols: L block length, D block-decoder width, T token-decoder width, r prefix vectors.
"""

import json
import math
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import model_layout as layout  # noqa: E402
from safetensors_io import Folder  # noqa: E402


def rotary_tables(length, dims, base):
    """cos and sin of shape [length, dims], half-split pairing (i goes with i + dims / 2)."""
    inverse = base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), inverse)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    """x [..., S, H, dims]; cos, sin [S, 1, dims]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.head_size = width // self.heads
        self.rotary_dims = int(self.head_size * config["rotary_pct"])
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x, cos, sin, skip):
        """x [N, S, width] -> [N, S - skip, width]: outputs of the first `skip` positions unneeded."""
        n, s, width = x.shape
        qkv = self.query_key_value(x).view(n, s, self.heads, 3 * self.head_size)
        q, k, v = qkv.split(self.head_size, dim=-1)
        d = self.rotary_dims
        if skip:
            q = q[:, skip:]
        q = torch.cat([rotate(q[..., :d], cos[skip:s], sin[skip:s]), q[..., d:]], dim=-1)
        k = torch.cat([rotate(k[..., :d], cos[:s], sin[:s]), k[..., d:]], dim=-1)
        mask = None
        if skip:
            mask = torch.ones(s - skip, s, dtype=torch.bool, device=x.device).tril(skip)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=not skip,
        )
        return self.dense(out.transpose(1, 2).reshape(n, s - skip, width))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config["hidden_size"], config["intermediate_size"])
        self.dense_4h_to_h = nn.Linear(config["intermediate_size"], config["hidden_size"])

    def forward(self, x):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x)))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.parallel = config["use_parallel_residual"]
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config)
        self.mlp = Mlp(config)

    def forward(self, x, cos, sin, skip=0):
        attended = self.attention(self.input_layernorm(x), cos, sin, skip)
        x = x[:, skip:]
        if self.parallel:
            return x + attended + self.mlp(self.post_attention_layernorm(x))
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class GptNeox(nn.Module):
    """The stack without its head; `embed_in` only where it has a token table."""

    def __init__(self, config, vocab_size=None):
        super().__init__()
        self.config = config
        if vocab_size:
            self.embed_in = nn.Embedding(vocab_size, config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.final_layer_norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self._tables = {}

    def tables(self, length, device):
        key = (length, device)
        if key not in self._tables:
            head_size = self.config["hidden_size"] // self.config["num_attention_heads"]
            dims = int(head_size * self.config["rotary_pct"])
            cos, sin = rotary_tables(length, dims, self.config["rotary_emb_base"])
            self._tables = {key: (cos[:, None].to(device), sin[:, None].to(device))}
        return self._tables[key]

    def forward(self, x, skip=0):
        """x [N, S, width] -> [N, S - skip, width]."""
        cos, sin = self.tables(x.shape[1], x.device)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, skip if i == last else 0)
        return self.final_layer_norm(x)


class Embedder(nn.Module):
    def __init__(self, config):
        super().__init__()
        e = config["embedder"]
        self.length = config["block_length"]
        self.projection = e["projection"]
        self.embeddings = nn.Embedding(config["vocab_size"], e["hidden_size"])
        if self.projection == "projection_layer":
            width = config["block_decoder"]["hidden_size"]
            self.projection_layer = nn.Conv1d(e["hidden_size"], width, self.length, self.length)
        elif self.projection not in ("concat", "sum"):
            raise ValueError(f"embedder.projection: {self.projection!r} is not supported")

    def forward(self, blocks):
        """blocks [N, B, L] -> [N, B, D]."""
        n, b, length = blocks.shape
        rows = self.embeddings(blocks)
        if self.projection == "concat":
            return rows.reshape(n, b, -1)
        if self.projection == "sum":
            return rows.sum(dim=2)
        return self.projection_layer(rows.reshape(n, b * length, -1).transpose(1, 2)).transpose(
            1, 2
        )


class BlockDecoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gpt_neox = GptNeox(config["block_decoder"])


class TokenDecoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        t = config["token_decoder"]
        self.strategy = t["decoding_strategy"]
        if self.strategy not in ("prefix", "summation"):
            raise ValueError(f"token_decoder.decoding_strategy: {self.strategy!r} is not supported")
        self.prefix = t["expansion_ratio"]
        self.width = t["hidden_size"]
        self.bos = config["bos_token_id"]
        self.gpt_neox = GptNeox(t, config["vocab_size"])
        self.expansion_layer = nn.Conv1d(
            config["block_decoder"]["hidden_size"], self.prefix * self.width, 1
        )
        self.embed_out = nn.Linear(self.width, config["vocab_size"], bias=False)

    def hidden(self, context, blocks):
        """context [M, D], blocks [M, n] -> [M, n, T]: the rows from which token j = 0..n-1 comes."""
        expanded = F.linear(
            context, self.expansion_layer.weight[:, :, 0], self.expansion_layer.bias
        )
        expanded = expanded.view(-1, self.prefix, self.width)
        if self.strategy == "prefix":
            tokens = self.gpt_neox.embed_in(blocks[:, :-1])
            return self.gpt_neox(torch.cat([expanded, tokens], dim=1), skip=self.prefix - 1)
        first = torch.full_like(blocks[:, :1], self.bos)
        tokens = self.gpt_neox.embed_in(torch.cat([first, blocks[:, :-1]], dim=1))
        return self.gpt_neox(tokens + expanded[:, : tokens.shape[1]])

    def forward(self, context, blocks):
        return self.embed_out(self.hidden(context, blocks))


class BlockTransformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.length = config["block_length"]
        self.embedder = Embedder(config)
        self.block_decoder = BlockDecoder(config)
        self.token_decoder = TokenDecoder(config)

    def contexts(self, tokens):
        """tokens [N, B * L] -> context embedding after each block [N, B, D]."""
        blocks = tokens.view(tokens.shape[0], -1, self.length)
        return self.block_decoder.gpt_neox(self.embedder(blocks))

    def forward(self, tokens):
        """tokens [N, B * L] -> logits [N, (B - 1) * L, V] of tokens L, L + 1, ..."""
        n, length = tokens.shape
        context = self.contexts(tokens[:, : length - self.length])
        following = tokens[:, self.length :].reshape(-1, self.length)
        logits = self.token_decoder(context.reshape(-1, context.shape[-1]), following)
        return logits.view(n, length - self.length, -1)

    @property
    def first_scored(self):
        return self.length


class Vanilla(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gpt_neox = GptNeox(config, config["vocab_size"])
        self.embed_out = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    first_scored = 1

    def forward(self, tokens):
        """tokens [N, S] -> logits [N, S - 1, V] of tokens 1, 2, ..."""
        return self.embed_out(self.gpt_neox(self.gpt_neox.embed_in(tokens[:, :-1])))


def build(config):
    return BlockTransformer(config) if layout.is_block(config) else Vanilla(config)


def initialize(model, seed=0):
    """GPT-NeoX-like: normal(0.02), outputs onto the residual stream smaller, tables wider."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("layernorm.weight") or name.endswith("layer_norm.weight"):
                p.fill_(1.0)
            elif p.dim() == 1:
                p.zero_()
            else:
                std = 0.02
                if name.endswith("attention.dense.weight") or name.endswith("dense_4h_to_h.weight"):
                    std = 0.02 / math.sqrt(12)
                elif "embed_in" in name or "embeddings" in name:
                    std = 0.1
                elif "embed_out" in name:
                    std = 0.005
                p.copy_(torch.randn(p.shape, generator=generator) * std)
    return model


def load_folder(folder):
    """A model in float32 from a model folder (sharded or not)."""
    folder = pathlib.Path(folder)
    model = build(json.loads((folder / "config.json").read_text()))
    tensors = Folder(folder)
    names = [name for name in tensors if not layout.is_left_over(name)]
    model.load_state_dict({name: torch.tensor(tensors.float32(name)) for name in names})
    return model.eval()
