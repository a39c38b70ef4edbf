#!/usr/bin/env python3
"""Writes a model folder with random weights: a released size by name, or any options.

Streams to disk, so memory stays at a few megabytes for each core whatever the size. Weights are drawn with enough
spread that attention is far from uniform and greedy tokens do not repeat at once. The same arguments
give the same bytes.

  make_random_model.py --out DIR --size block_main_b4_85 --dtype bf16
  make_random_model.py --out DIR --size block_main_b4_85 --block-length 8
  make_random_model.py --out DIR --block-length 6 --prefix 3 --width 96 --heads 4 --vocab 1024
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import shutil
import sys
import zlib

import numpy as np

import model_layout as layout
from safetensors_io import FormatError, to_storage, write_folder

DTYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}
CHUNK_VALUES = 1 << 20


def spread(name, shape):
    """(mean, standard deviation) of a tensor's values."""
    if name.endswith("norm.weight"):
        return 1.0, 0.1
    if len(shape) == 1:
        return 0.0, 0.1
    fan_in = int(np.prod(shape[1:]))
    if name.endswith(("embed_in.weight", "embeddings.weight")):
        return 0.0, 1.0
    gain = 1.0
    if name.endswith("query_key_value.weight"):
        gain = 1.5
    elif name.endswith("embed_out.weight"):
        gain = 2.5
    return 0.0, gain / fan_in**0.5


def random_chunks(seed):
    """chunks() for write_folder: values depend on (seed, name) alone, not on shards, order or cores.

    Each chunk has a counter of its own, so that all cores draw at once; numpy lets them.
    """
    workers = os.cpu_count() or 1
    pool = concurrent.futures.ThreadPoolExecutor(workers)

    def chunks(name, shape, dtype):
        key = [seed, zlib.crc32(name.encode())]
        mean, deviation = spread(name, shape)
        size = int(np.prod(shape))

        def draw(index):
            rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
            count = min(size - index * CHUNK_VALUES, CHUNK_VALUES)
            values = rng.standard_normal(count, dtype=np.float32)
            values *= np.float32(deviation)
            values += np.float32(mean)
            return to_storage(values, dtype)

        # A few ahead of the file, and no more: memory stays small.
        waiting = collections.deque()
        for index in range(-(-size // CHUNK_VALUES)):
            waiting.append(pool.submit(draw, index))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return chunks


def config_from(args):
    torch_dtype = DTYPES[args.dtype][1]
    if args.size:
        config = layout.released_config(args.size, torch_dtype, args.block_length)
    else:
        heads = args.heads or layout.default_heads(args.width)
        changes = dict(
            rotary_pct=args.rotary_pct,
            rotary_emb_base=args.rotary_base,
            use_parallel_residual=not args.sequential_residual,
            layer_norm_eps=args.layer_norm_eps,
            max_position_embeddings=args.max_positions,
        )
        block = layout.stack_config(args.width, heads, args.block_layers, **changes)
        block["intermediate_size"] = args.intermediate or 4 * args.width
        if args.vanilla:
            special = (args.bos, args.eos)
            config = layout.vanilla_config(block, args.vocab, torch_dtype, special)
        else:
            width = args.token_width or args.width
            token_heads = args.token_heads or (
                heads if width == args.width else layout.default_heads(width)
            )
            token = layout.stack_config(width, token_heads, args.token_layers, **changes)
            token["intermediate_size"] = args.token_intermediate or (
                block["intermediate_size"] if width == args.width else 4 * width
            )
            length = args.block_length or 4
            prefix = args.prefix
            if prefix is None:
                prefix = length if args.strategy == "summation" else 2
            config = layout.block_config(
                block,
                token,
                args.vocab,
                length,
                prefix,
                args.projection,
                args.strategy,
                args.embedder_width,
                torch_dtype,
                (args.bos, args.eos, args.pad),
            )
    if args.default_alignment:
        config["default_alignment"] = args.default_alignment
    layout.check_config(config)
    return config


def write_model(folder, config, dtype="f32", seed=0, shards=1):
    """Writes config.json and the weights; returns the number of parameters."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    specs = [(n, s, DTYPES[dtype][0]) for n, s in layout.tensor_shapes(config).items()]
    write_folder(folder, specs, random_chunks(seed), shards)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return sum(int(np.prod(shape)) for _, shape, _ in specs)


def parse(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", required=True, help="model folder to write")
    p.add_argument(
        "--size",
        help="released size, or its plain counterpart: "
        + ", ".join([*layout.BLOCK_SIZES, *layout.VANILLA_SIZES]),
    )
    p.add_argument("--dtype", choices=sorted(DTYPES), default="f32")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--shards", type=int, default=1)
    p.add_argument("--tokenizer", help="folder whose tokenizer*.json files are copied")
    p.add_argument("--default-alignment", choices=("end", "start", "none"))
    own = p.add_argument_group("a model of one's own (without --size)")
    own.add_argument(
        "--vanilla", action="store_true", help="plain GPT-NeoX of --block-layers layers"
    )
    own.add_argument("--vocab", type=int, default=512)
    own.add_argument(
        "--block-length", type=int, help="default 4; with --size too: the size at another length"
    )
    own.add_argument("--prefix", type=int, help="prefix vectors r (default 2; summation: L)")
    own.add_argument("--width", type=int, default=64, help="of the block decoder")
    own.add_argument("--heads", type=int, help="default: width / 32, / 64 or / 128 by width")
    own.add_argument("--block-layers", type=int, default=2)
    own.add_argument("--intermediate", type=int, help="default: 4 x width")
    own.add_argument("--token-width", type=int, help="default: --width")
    own.add_argument("--token-heads", type=int)
    own.add_argument("--token-layers", type=int, default=2)
    own.add_argument("--token-intermediate", type=int)
    own.add_argument(
        "--projection", choices=("concat", "sum", "projection_layer"), default="concat"
    )
    own.add_argument("--embedder-width", type=int, help="default: width / L for concat, else width")
    own.add_argument("--strategy", choices=("prefix", "summation"), default="prefix")
    own.add_argument("--rotary-pct", type=float, default=0.25)
    own.add_argument("--rotary-base", type=int, default=10000)
    own.add_argument("--sequential-residual", action="store_true")
    own.add_argument("--layer-norm-eps", type=float, default=1e-5)
    own.add_argument("--max-positions", type=int, default=2048)
    own.add_argument("--bos", type=int, default=0)
    own.add_argument("--eos", type=int, default=0)
    own.add_argument("--pad", type=int, default=0)
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    try:
        config = config_from(args)
        count = write_model(args.out, config, args.dtype, args.seed, args.shards)
    except (layout.LayoutError, FormatError) as error:
        print(f"make_random_model: {error}", file=sys.stderr)
        return 2
    if args.tokenizer and not pathlib.Path(args.tokenizer).samefile(args.out):
        for file in pathlib.Path(args.tokenizer).glob("*token*.json"):
            shutil.copy(file, args.out)
    print(f"{count} parameters in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
