#!/usr/bin/env python3
"""How many workers of each tier a load needs, and how much KV memory: from a model's config.json, the load, and
what one worker was measured to do.

    blockserve-bench --model DIR --prompt 512 --generate 256 --sequences 64 --format json > bench.json
    tools/size_deployment.py --model DIR --bench bench.json --prompt 512 --output 256 --requests-per-s 20

The bench is to be run on as many cores (or the GPU) as one worker of the deployment has. Without it, give the three
rates themselves. The arithmetic is printed: every number is one of the formulas below, none is a guess but for
those that the flags name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys

# Of a value in KV, and in a context row on the wire.
KV_BYTES = {"f32": 4, "bf16": 2, "bf16dot": 2, "int8": 2}
ROW_BYTES = {"f32": 4, "bf16": 2, "bf16dot": 4, "int8": 4}
TOKEN_PARTS = {"expansion", "first step", "later steps", "head", "sampling"}
# A block replica reserves so many tokens ahead of each sequence.
RESERVED_AHEAD_TOKENS = 256


class Problem(Exception):
    """What is wrong with the input, in one line."""


@dataclasses.dataclass(frozen=True)
class Model:
    block_length: int
    layers: int  # of the decoder that has KV
    width: int
    max_positions: int  # in blocks

    @classmethod
    def load(cls, folder: pathlib.Path) -> "Model":
        path = folder / "config.json" if folder.is_dir() else folder
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Problem(f"--model: {path}: {error}") from None
        decoder = config.get("block_decoder", config)
        try:
            return cls(int(config.get("block_length", 1)), int(decoder["num_hidden_layers"]),
                       int(decoder["hidden_size"]), int(decoder["max_position_embeddings"]))
        except KeyError as error:
            raise Problem(f"--model: {path} has no {error}") from None

    def kv_bytes_per_block(self, value_bytes: int) -> int:
        return 2 * self.layers * self.width * value_bytes


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of one worker of each tier, by itself and never idle."""

    prefill_tokens_per_s: float  # block replica, prompts
    block_tokens_per_s: float  # block replica, decoding: tokens of the blocks that it takes
    token_tokens_per_s: float  # token worker
    arithmetic: str

    @classmethod
    def from_bench(cls, path: pathlib.Path) -> "Rates":
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            parts = {part["part"]: part["us_per_token"] for part in report["decode"]["parts"]}
            token_us = sum(us for part, us in parts.items() if part in TOKEN_PARTS)
            return cls(report["prefill_tokens_per_s"], 1e6 / parts["block step"], 1e6 / token_us,
                       report["arithmetic"])
        except (OSError, ValueError) as error:
            raise Problem(f"--bench: {path}: {error}") from None
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise Problem(f"--bench: {path} is not a result of blockserve-bench: {error!r}") from None


@dataclasses.dataclass(frozen=True)
class Load:
    requests_per_s: float
    prompt_tokens: int  # mean
    output_tokens: int  # mean
    inter_token_ms: float  # what a stream is to wait for a token, on the mean
    busy: float  # share of a worker's time that is planned with
    kv_full: float  # share of the pages that is planned with
    spare: int  # workers of each tier that may be lost without missing the goal


def up(value: float) -> int:
    """Rounded up; what is a whole number but for the last bits stays."""
    return math.ceil(value - 1e-9)


def size(model: Model, rates: Rates, load: Load, kv_memory_mib: int, page_blocks: int,
         gateway_cpu_s_per_million: float, streams_per_gateway: int) -> dict:
    length = model.block_length
    longest = load.prompt_tokens + load.output_tokens
    if up(longest / length) > model.max_positions:
        raise Problem(f"--prompt and --output: {longest} tokens are {up(longest / length)} blocks; the "
                      f"model was trained on {model.max_positions}")
    output_per_s = load.requests_per_s * load.output_tokens
    prompt_per_s = load.requests_per_s * load.prompt_tokens
    # Little: as many requests run as come in the time that one takes.
    seconds = (load.prompt_tokens / rates.prefill_tokens_per_s
               + load.output_tokens * load.inter_token_ms / 1e3)
    live = load.requests_per_s * seconds

    value_bytes = KV_BYTES[rates.arithmetic]
    page_bytes = page_blocks * model.kv_bytes_per_block(value_bytes)
    # On the mean half of the output is written; the next tokens are reserved.
    held = load.prompt_tokens + min(load.output_tokens,
                                    load.output_tokens / 2 + RESERVED_AHEAD_TOKENS)
    pages = up(up(held / length) / page_blocks)
    kv_bytes = live * pages * page_bytes
    pages_of_replica = (kv_memory_mib << 20) // page_bytes

    token_busy = output_per_s / rates.token_tokens_per_s
    block_busy = (output_per_s / rates.block_tokens_per_s
                  + prompt_per_s / rates.prefill_tokens_per_s)
    by_time = up(block_busy / load.busy)
    by_memory = up(live * pages / (pages_of_replica * load.kv_full))
    gateway_busy = output_per_s * gateway_cpu_s_per_million / 1e6
    blocks = max(1, by_time, by_memory) + load.spare
    tokens = max(1, up(token_busy / load.busy)) + load.spare
    gateways = max(1, up(gateway_busy / load.busy), up(live / streams_per_gateway)) + load.spare
    row_bytes = model.width * ROW_BYTES[rates.arithmetic]
    return {
        "load": {
            "requests_per_s": load.requests_per_s,
            "output_tokens_per_s": output_per_s,
            "prompt_tokens_per_s": prompt_per_s,
            "seconds_of_a_request": seconds,
            "live_requests": live,
        },
        "token": {"workers": tokens, "busy_workers": token_busy},
        "block": {
            "replicas": blocks,
            "busy_replicas": block_busy,
            "replicas_by_time": by_time,
            "replicas_by_memory": by_memory,
            "kv_bytes_per_token": model.kv_bytes_per_block(value_bytes) / length,
            "kv_page_bytes": page_bytes,
            "kv_pages_of_a_request": pages,
            "kv_bytes": kv_bytes,
            "kv_pages_of_a_replica": pages_of_replica,
            # Sequences of all requests on the replicas that are left when the spare ones are lost.
            "max_sequences": max(256, up(2 * live / max(1, blocks - load.spare))),
        },
        "gateway": {"replicas": gateways, "busy_cores": gateway_busy},
        "network": {
            # Context rows from the block tier to the gateways, and on to the token tier.
            "context_bytes_per_s": output_per_s / length * row_bytes,
        },
    }


def megabytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB" if value >= 2**20 else f"{value / 2**10:,.1f} KiB"


def as_text(result: dict, kv_memory_mib: int, load: Load) -> str:
    asked, block = result["load"], result["block"]
    bound = "KV memory" if block["replicas_by_memory"] > block["replicas_by_time"] else "time"
    return f"""\
load              {asked['requests_per_s']:g} requests/s: {asked['prompt_tokens_per_s']:,.0f} tokens/s in, \
{asked['output_tokens_per_s']:,.0f} tokens/s out
running           {asked['live_requests']:,.1f} requests at a time, {asked['seconds_of_a_request']:.2f} s each
token workers     {result['token']['workers']}   ({result['token']['busy_workers']:.2f} busy, planned at \
{load.busy:.0%}, {load.spare} spare)
block replicas    {block['replicas']}   ({block['busy_replicas']:.2f} busy; by time {block['replicas_by_time']}, by \
memory {block['replicas_by_memory']}: bound by {bound}; {load.spare} spare)
KV                {megabytes(block['kv_bytes_per_token'])} a token, {block['kv_pages_of_a_request']} pages of \
{megabytes(block['kv_page_bytes'])} a request, {megabytes(block['kv_bytes'])} in all
gateways          {result['gateway']['replicas']}   ({result['gateway']['busy_cores']:.2f} cores busy)
context rows      {megabytes(result['network']['context_bytes_per_s'])}/s from the block tier, as much to the token tier
flags             blockserve-block --kv-memory-mib={kv_memory_mib} --max-sequences={block['max_sequences']}"""


def positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError("it must be above zero")
    return value


def share(text: str) -> float:
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError("it must be at most 1")
    return value


def whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return value


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True,
                        help="folder with config.json, or that file")
    parser.add_argument("--requests-per-s", type=positive, required=True)
    parser.add_argument("--prompt", type=whole, required=True, help="tokens, on the mean")
    parser.add_argument("--output", type=whole, required=True, help="tokens, on the mean")
    parser.add_argument("--bench", type=pathlib.Path,
                        help="result of blockserve-bench --format json on one worker's machine")
    parser.add_argument("--prefill-tokens-per-s", type=positive, help="of a block replica")
    parser.add_argument("--block-tokens-per-s", type=positive, help="of a block replica, decoding")
    parser.add_argument("--token-tokens-per-s", type=positive, help="of a token worker")
    parser.add_argument("--arithmetic", choices=sorted(KV_BYTES), help="with the three rates")
    parser.add_argument("--inter-token-ms", type=positive, default=20,
                        help="time between two tokens of a stream [20]")
    parser.add_argument("--busy", type=share, default=0.7, help="planned share of time [0.7]")
    parser.add_argument("--kv-full", type=share, default=0.7, help="planned share of pages [0.7]")
    parser.add_argument("--spare", type=int, default=1, help="workers of each tier beyond need [1]")
    parser.add_argument("--kv-memory-mib", type=whole, default=4096, help="of a replica [4096]")
    parser.add_argument("--page-blocks", type=whole, default=16)
    parser.add_argument("--gateway-cpu-s-per-million-tokens", type=positive, default=25,
                        help="processor time of a gateway [25: HTTP, an event for each token]")
    parser.add_argument("--streams-per-gateway", type=whole, default=500)
    parser.add_argument("--format", choices=["text", "json"], default="text")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    flags = parse(arguments)
    try:
        model = Model.load(flags.model)
        rates = (flags.prefill_tokens_per_s, flags.block_tokens_per_s, flags.token_tokens_per_s)
        if flags.bench is not None:
            if any(rates) or flags.arithmetic:
                raise Problem("--bench has the rates and the arithmetic: give either it or them")
            measured = Rates.from_bench(flags.bench)
            if measured.arithmetic not in KV_BYTES:
                raise Problem(f"--bench: arithmetic '{measured.arithmetic}' is not known")
        elif all(rates) and flags.arithmetic:
            measured = Rates(*rates, flags.arithmetic)
        else:
            raise Problem("give --bench, or --prefill-tokens-per-s, --block-tokens-per-s, "
                          "--token-tokens-per-s and --arithmetic")
        load = Load(flags.requests_per_s, flags.prompt, flags.output, flags.inter_token_ms,
                    flags.busy, flags.kv_full, max(0, flags.spare))
        result = size(model, measured, load, flags.kv_memory_mib, flags.page_blocks,
                      flags.gateway_cpu_s_per_million_tokens, flags.streams_per_gateway)
    except Problem as problem:
        print(f"size_deployment: {problem}", file=sys.stderr)
        return 2
    if flags.format == "json":
        print(json.dumps(result, indent=2))
    else:
        print(as_text(result, flags.kv_memory_mib, load))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
