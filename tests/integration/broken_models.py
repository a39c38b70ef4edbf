"""Model folders with one thing wrong each, and the words that the error has to name."""

from __future__ import annotations

import json
import pathlib
import shutil
import struct
from typing import Callable

import harness


def read_safetensors(path: pathlib.Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8: 8 + length]), data[8 + length:]


def write_safetensors(path: pathlib.Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_config(change: Callable[[dict], None]) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


def edit_header(change: Callable[[dict], None]) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        path = folder / "model.safetensors"
        header, data = read_safetensors(path)
        change(header)
        write_safetensors(path, header, data)

    return edit


def set_field(*path_and_value) -> Callable[[pathlib.Path], None]:
    *path, value = path_and_value

    def change(config: dict) -> None:
        for name in path[:-1]:
            config = config[name]
        config[path[-1]] = value

    return edit_config(change)


def cut(name: str, share: float) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return edit


def replace(name: str, data: bytes) -> Callable[[pathlib.Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


QKV = "block_decoder.gpt_neox.layers.0.attention.query_key_value.weight"


def rename_tensor(header: dict) -> None:
    header["another.name"] = header.pop(QKV)


def overlap(header: dict) -> None:
    """A tensor begins two values early, and says that it is as much longer."""
    entry = next(entry for name, entry in header.items()
                 if len(entry.get("shape", [])) == 1 and entry["data_offsets"][0] > 8
                 and entry["dtype"] == "F32")
    entry["data_offsets"][0] -= 8
    entry["shape"][0] += 2


def shift(header: dict) -> None:
    begin, end = header[QKV]["data_offsets"]
    header[QKV]["data_offsets"] = [begin, end - 4]


def transpose(header: dict) -> None:
    header[QKV]["shape"].reverse()


def wrong_dtype(header: dict) -> None:
    header[QKV]["dtype"] = "I32"


# name -> (golden folder to start from, what to do to it, words that the one line of error holds)
BROKEN = {
    "config missing": ("concat_l4", lambda f: (f / "config.json").unlink(), ["config.json"]),
    "config cut short": ("concat_l4", cut("config.json", 0.5), ["config.json"]),
    "config no object": ("concat_l4", replace("config.json", b"[1]"), ["config.json"]),
    "config of another model": (
        "concat_l4", set_field("model_type", "llama"), ["model_type", "llama"]),
    "heads that do not divide the width": (
        "concat_l4", set_field("block_decoder", "num_attention_heads", 7),
        ["block_decoder", "num_attention_heads"]),
    "no heads": (
        "concat_l4", set_field("token_decoder", "num_attention_heads", 0),
        ["token_decoder", "num_attention_heads"]),
    "negative block length": ("concat_l4", set_field("block_length", -4), ["block_length"]),
    "block length that does not divide the width": (
        "concat_l4", set_field("block_length", 3), ["block_length"]),
    "summation whose r is not L": (
        "summation", set_field("token_decoder", "expansion_ratio", 3), ["expansion_ratio"]),
    "cross attention": (
        "concat_l4", set_field("token_decoder", "decoding_strategy", "cross_attention"),
        ["decoding_strategy", "cross_attention"]),
    "unknown projection": (
        "concat_l4", set_field("embedder", "projection", "mean"), ["projection", "mean"]),
    "token decoder of too few positions": (
        "concat_l4", set_field("token_decoder", "max_position_embeddings", 4),
        ["config.json: token_decoder.max_position_embeddings is 4", "takes 5 ", "--allow-long-contexts"]),
    "vocabulary of another size": ("concat_l4", set_field("vocab_size", 600), ["embed"]),
    "special id outside the vocabulary": (
        "concat_l4", set_field("pad_token_id", 512), ["pad_token_id"]),
    "weights missing": (
        "concat_l4", lambda f: (f / "model.safetensors").unlink(), ["model.safetensors"]),
    "weights cut short": ("concat_l4", cut("model.safetensors", 0.7), ["model.safetensors"]),
    "weights of no bytes": ("concat_l4", replace("model.safetensors", b""), ["model.safetensors"]),
    "header longer than the file": (
        "concat_l4", replace("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}" * 40),
        ["model.safetensors", "header"]),
    "header that is no JSON": (
        "concat_l4", replace("model.safetensors", struct.pack("<Q", 16) + b"{" * 64),
        ["model.safetensors"]),
    "tensor missing": ("concat_l4", edit_header(rename_tensor), [QKV]),
    "tensors that overlap": ("concat_l4", edit_header(overlap), ["model.safetensors", "overlap"]),
    "tensor of fewer bytes than its shape": ("concat_l4", edit_header(shift), [QKV]),
    "tensor of another shape": ("concat_l4", edit_header(transpose), [QKV, "192"]),
    "tensor of another dtype": ("concat_l4", edit_header(wrong_dtype), [QKV, "I32"]),
    "shard missing": (
        "concat_l2_sharded", lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        ["model-00002-of-00003.safetensors"]),
    "index cut short": (
        "concat_l2_sharded", cut("model.safetensors.index.json", 0.5),
        ["model.safetensors.index.json"]),
    "tokenizer cut short": (
        "concat_l4", replace("tokenizer.json", b'{"version": "1.0", "model": {'),
        ["tokenizer.json"]),
    "tokenizer of another kind": (
        "concat_l4", replace("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": []}}'),
        ["tokenizer.json"]),
}


def make(name: str, folder: pathlib.Path) -> pathlib.Path:
    source, damage, _ = BROKEN[name]
    target = folder / "model"
    shutil.copytree(harness.GOLDEN / source, target,
                    ignore=shutil.ignore_patterns("expected.*"))
    damage(target)
    return target
