#!/usr/bin/env python3
"""A plain numpy Block Transformer and GPT-NeoX: what an engine must compute, one sequence at a time.

Written for clearness and accuracy (float64 unless asked), not for speed.

  reference_model.py --model DIR --prompt-tokens 1,2,3 --max-tokens 64 --alignment end
  reference_model.py --model DIR --prompt-tokens 1,2,3 --continuation-tokens 4,5
  reference_model.py --model DIR --prompt-tokens 1,2,3 --score

Prints one JSON object with `tokens` and `logprobs` (natural, over the whole vocabulary; null where a
token has no score).
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np

import model_layout as layout
from safetensors_io import Folder, FormatError

_erf = np.frompyfunc(math.erf, 1, 1)


def gelu(x):
    return x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)).astype(x.dtype))


def layer_norm(x, weight, bias, eps):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def log_softmax(x):
    top = x.max(axis=-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(axis=-1, keepdims=True))


class Stack:
    """A GPT-NeoX stack without head. Its cache is a list of (keys, values) per layer."""

    def __init__(self, config, tensors, prefix, dtype):
        self.config = config
        self.dtype = dtype
        self.heads = config["num_attention_heads"]
        self.head_size = config["hidden_size"] // self.heads
        shapes = layout.stack_shapes(config, prefix)
        self.weights = {n[len(prefix) :]: tensors.float32(n).astype(dtype) for n in shapes}
        dims = int(self.head_size * config["rotary_pct"])
        self.inverse = float(config["rotary_emb_base"]) ** (-np.arange(0, dims, 2) / max(1, dims))

    def empty_cache(self):
        empty = np.zeros((0, self.heads, self.head_size), self.dtype)
        return [(empty, empty) for _ in range(self.config["num_hidden_layers"])]

    def rotate(self, x, first):
        """x [S, H, d], positions first, first + 1, ..."""
        half = len(self.inverse)
        angles = np.outer(np.arange(first, first + len(x)), self.inverse)[:, None]
        cos, sin = np.cos(angles).astype(self.dtype), np.sin(angles).astype(self.dtype)
        low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def norm(self, x, name):
        eps = self.config["layer_norm_eps"]
        return layer_norm(x, self.weights[name + ".weight"], self.weights[name + ".bias"], eps)

    def attention(self, x, layer, cache):
        """x [S, width] behind what `cache` holds; returns the output and the grown cache."""
        past = len(cache[0])
        qkv = self.linear(x, layer + "attention.query_key_value")
        q, k, v = np.split(qkv.reshape(len(x), self.heads, 3 * self.head_size), 3, axis=-1)
        q = self.rotate(q, past)
        k = np.concatenate([cache[0], self.rotate(k, past)])
        v = np.concatenate([cache[1], v])
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(self.head_size)
        future = np.arange(len(k))[None, :] > np.arange(past, past + len(x))[:, None]
        scores = np.where(future[None], -np.inf, scores)
        shares = np.exp(log_softmax(scores))
        out = np.einsum("hqk,khd->qhd", shares, v).reshape(len(x), -1)
        return self.linear(out, layer + "attention.dense"), (k, v)

    def forward(self, x, cache):
        """x [S, width] -> [S, width]; `cache` is a list and grows in place."""
        for n in range(self.config["num_hidden_layers"]):
            layer = f"layers.{n}."
            attended, cache[n] = self.attention(
                self.norm(x, layer + "input_layernorm"), layer, cache[n]
            )
            y = x + attended
            inner = x if self.config["use_parallel_residual"] else y
            hidden = self.norm(inner, layer + "post_attention_layernorm")
            hidden = gelu(self.linear(hidden, layer + "mlp.dense_h_to_4h"))
            x = y + self.linear(hidden, layer + "mlp.dense_4h_to_h")
        return self.norm(x, "final_layer_norm")


def align(config, prompt, alignment):
    """The prompt behind the pads that its alignment asks for; an empty prompt is one BOS."""
    prompt = list(prompt) or [config["bos_token_id"]]
    length = config["block_length"]
    if alignment == "end":
        pads = -len(prompt) % length
    elif alignment == "start":
        pads = length - 1
    elif alignment == "none":
        pads = max(0, length - len(prompt))
    else:
        raise ValueError(f"alignment: {alignment!r} is not end, start or none")
    return [config["pad_token_id"]] * pads + prompt


class BlockReference:
    def __init__(self, config, tensors, dtype=np.float64):
        layout.check_config(config)
        self.config, self.dtype = config, dtype
        self.length = config["block_length"]
        token = config["token_decoder"]
        self.prefix, self.width = token["expansion_ratio"], token["hidden_size"]
        self.strategy = token["decoding_strategy"]
        get = lambda name: tensors.float32(name).astype(dtype)  # noqa: E731
        self.table = get("embedder.embeddings.weight")
        self.projection = config["embedder"]["projection"]
        if self.projection == "projection_layer":
            self.conv = get("embedder.projection_layer.weight")
            self.conv_bias = get("embedder.projection_layer.bias")
        self.block = Stack(config["block_decoder"], tensors, "block_decoder.gpt_neox.", dtype)
        self.token = Stack(token, tensors, "token_decoder.gpt_neox.", dtype)
        self.expansion = get("token_decoder.expansion_layer.weight")[:, :, 0]
        self.expansion_bias = get("token_decoder.expansion_layer.bias")
        self.token_table = get("token_decoder.gpt_neox.embed_in.weight")
        self.head = get("token_decoder.embed_out.weight")

    def embed(self, tokens):
        """tokens, a multiple of L -> [blocks, D]"""
        rows = self.table[np.asarray(tokens).reshape(-1, self.length)]
        if self.projection == "concat":
            return rows.reshape(len(rows), -1)
        if self.projection == "sum":
            return rows.sum(axis=1)
        return np.einsum("bje,dej->bd", rows, self.conv) + self.conv_bias

    def contexts(self, tokens, cache):
        """Context embedding [blocks, D] after each block of `tokens`."""
        return self.block.forward(self.embed(tokens), cache)

    def decode_block(self, context, forced, choose, count):
        """Decodes one block up to `count` tokens; its first tokens are `forced`.

        choose(logits) gives each further token. Returns (tokens, logits of each token [count, V]).
        """
        vectors = (self.expansion @ context + self.expansion_bias).reshape(self.prefix, self.width)
        cache, tokens, logits = self.token.empty_cache(), [], []
        for j in range(count):
            previous = tokens[-1] if tokens else self.config["bos_token_id"]
            if self.strategy == "summation":
                rows = (self.token_table[previous] + vectors[j])[None]
            else:
                rows = self.token_table[previous][None] if j else vectors
            logits.append(self.token.forward(rows, cache)[-1] @ self.head.T)
            tokens.append(forced[j] if j < len(forced) else choose(logits[-1]))
        return tokens, np.stack(logits)

    def generate(self, prompt, max_tokens, alignment="end", choose=np.argmax, stop_id=None):
        """Returns (tokens, log-probabilities, logits [tokens, V])."""
        sequence = align(self.config, prompt, alignment)
        full = len(sequence) // self.length * self.length
        cache = self.block.empty_cache()
        context = self.contexts(sequence[:full], cache)[-1]
        forced, out, scores, rows = sequence[full:], [], [], []
        while len(out) < max_tokens:
            count = min(self.length, len(forced) + max_tokens - len(out))
            tokens, logits = self.decode_block(context, forced, choose, count)
            logs = log_softmax(logits)
            for j in range(len(forced), count):
                out.append(int(tokens[j]))
                scores.append(float(logs[j, tokens[j]]))
                rows.append(logits[j])
                if out[-1] == stop_id:
                    return out, scores, np.stack(rows)
            if count == self.length:
                context = self.contexts(tokens, cache)[-1]
            forced = []
        return out, scores, np.stack(rows) if rows else np.zeros((0, len(self.head)))

    def score(self, prompt, continuation, alignment="end"):
        """Log-probabilities of the continuation's tokens."""
        sequence = align(self.config, prompt, alignment)
        first = len(sequence)
        return self._score_from(sequence + list(continuation), first)

    def score_text(self, text, alignment="start"):
        """Log-probabilities of a text by itself; None where a token stands in the first block."""
        sequence = align(self.config, text, alignment)
        return self._score_from(sequence, len(sequence) - len(list(text)))

    def _score_from(self, sequence, first):
        length, cache = self.length, self.block.empty_cache()
        blocks = -(-len(sequence) // length)
        contexts = self.contexts(sequence[: (blocks - 1) * length], cache) if blocks > 1 else []
        scores = [None] * len(sequence)
        for b in range(1, blocks):
            tokens = sequence[b * length : (b + 1) * length]
            if b * length + len(tokens) <= first:
                continue
            _, logits = self.decode_block(contexts[b - 1], tokens, None, len(tokens))
            logs = log_softmax(logits)
            for j, t in enumerate(tokens):
                scores[b * length + j] = float(logs[j, t])
        return scores[first:]


class VanillaReference:
    def __init__(self, config, tensors, dtype=np.float64):
        layout.check_config(config)
        self.config, self.dtype = config, dtype
        self.stack = Stack(config, tensors, "gpt_neox.", dtype)
        self.table = tensors.float32("gpt_neox.embed_in.weight").astype(dtype)
        self.head = tensors.float32("embed_out.weight").astype(dtype)

    def generate(self, prompt, max_tokens, alignment="end", choose=np.argmax, stop_id=None):
        prompt = list(prompt) or [self.config["bos_token_id"]]
        cache, rows, out, scores, fed = self.stack.empty_cache(), [], [], [], prompt
        while len(out) < max_tokens:
            logits = self.stack.forward(self.table[fed], cache)[-1] @ self.head.T
            fed = [int(choose(logits))]
            out += fed
            scores.append(float(log_softmax(logits)[fed[0]]))
            rows.append(logits)
            if fed[0] == stop_id:
                break
        return out, scores, np.stack(rows) if rows else np.zeros((0, len(self.head)))

    def score(self, prompt, continuation, alignment="end"):
        prompt = list(prompt) or [self.config["bos_token_id"]]
        return self.score_text(prompt + list(continuation))[len(prompt) :]

    def score_text(self, text, alignment="start"):
        text = list(text)
        if len(text) < 2:
            return [None] * len(text)
        hidden = self.stack.forward(self.table[text[:-1]], self.stack.empty_cache())
        logs = log_softmax(hidden @ self.head.T)
        return [None] + [float(logs[i, t]) for i, t in enumerate(text[1:])]


def load(folder, dtype=np.float64):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    kind = BlockReference if layout.is_block(config) else VanillaReference
    return kind(config, Folder(folder), dtype)


def tokenizer_size(folder):
    """Ids that the tokenizer knows (ids above are padding of the table), or None without one."""
    file = pathlib.Path(folder) / "tokenizer.json"
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    ids = list(content["model"]["vocab"].values())
    ids += [entry["id"] for entry in content.get("added_tokens", [])]
    return max(ids) + 1


def sampler(temperature, seed, limit):
    """choose() for generate: greedy at temperature 0; never an id from `limit` on."""
    rng = np.random.default_rng(seed)

    def choose(logits):
        logits = logits[:limit]
        if temperature == 0:
            return int(np.argmax(logits))
        shares = np.exp(log_softmax(logits / temperature))
        return int(rng.choice(len(shares), p=shares / shares.sum()))

    return choose


def ids(text):
    return [int(part) for part in text.split(",") if part.strip()]


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", required=True)
    p.add_argument("--prompt-tokens", type=ids, required=True, help="comma-separated ids")
    p.add_argument("--max-tokens", type=int, default=64)
    p.add_argument(
        "--alignment", choices=("end", "start", "none"), help="default: the model's, or end"
    )
    p.add_argument("--continuation-tokens", type=ids, help="score these after the prompt")
    p.add_argument("--score", action="store_true", help="score the prompt by itself")
    p.add_argument("--temperature", type=float, default=0.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--stop-at-eos", action="store_true")
    p.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    args = p.parse_args(argv)
    try:
        model = load(args.model, np.dtype(args.dtype).type)
    except (layout.LayoutError, FormatError, OSError, ValueError) as error:
        print(f"reference_model: {error}", file=sys.stderr)
        return 2
    config = model.config
    alignment = args.alignment or config.get("default_alignment", "end")
    if args.continuation_tokens is not None:
        scores = model.score(args.prompt_tokens, args.continuation_tokens, alignment)
        result = {"tokens": args.continuation_tokens, "logprobs": scores}
    elif args.score:
        scores = model.score_text(args.prompt_tokens, args.alignment or "start")
        result = {"tokens": args.prompt_tokens, "logprobs": scores}
    else:
        choose = sampler(args.temperature, args.seed, tokenizer_size(args.model))
        stop = config["eos_token_id"] if args.stop_at_eos else None
        tokens, scores, _ = model.generate(
            args.prompt_tokens, args.max_tokens, alignment, choose, stop
        )
        result = {"tokens": tokens, "logprobs": scores}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
