#!/usr/bin/env python3
"""Turns the authors' training YAML and checkpoint into a model folder of this project.

  convert_checkpoint.py --config block_main_b4_85.yaml --weights checkpoint-570000 --out DIR \\
    --tokenizer FOLDER_WITH_TOKENIZER_JSON

Weights: a .safetensors file, a PyTorch .bin or .pt file (needs torch), or a checkpoint folder with
either, sharded or not. What the YAML leaves out is filled as the authors' code fills it: head count
D / 32 up to width 256, D / 64 up to 1536, D / 128 above; intermediate_size 4D; summation has r = L; a
model trained without `random_pad_first_block` gets default_alignment `none`. Every tensor is checked
against the configuration, and every value for its place in another type, before anything is written.
"""

import argparse
import json
import pathlib
import shutil
import sys
import zipfile

import numpy as np

import model_layout as layout
from safetensors_io import FLOATS, FormatError, Reader, nbytes, to_float32, to_storage, write_folder

CHUNK_ROWS_BYTES = 64 << 20
TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# width, heads, layers, intermediate: what the YAML of a vanilla model refers to by name
PYTHIA = {
    "pythia-14m": (128, 4, 6, 512), "pythia-31m": (256, 8, 6, 1024),
    "pythia-70m": (512, 8, 6, 2048), "pythia-160m": (768, 12, 12, 3072),
    "pythia-410m": (1024, 16, 24, 4096), "pythia-1b": (2048, 8, 16, 8192),
    "pythia-1.4b": (2048, 16, 24, 8192), "pythia-2.8b": (2560, 32, 32, 10240),
}  # fmt: skip
STACK_KEYS = {
    "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "rotary_pct",
    "rotary_emb_base", "use_parallel_residual", "layer_norm_eps", "max_position_embeddings",
    "hidden_act", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip


class ConversionError(ValueError):
    """What cannot be converted; the message names the YAML key or the tensor."""


def get(section, path, kind, default=None, required=False):
    """A value of the YAML by its dotted path, checked for its type."""
    value = section
    for key in path.split("."):
        if value is not None and not isinstance(value, dict):
            raise ConversionError(f"{path}: {key} stands in something that is not a mapping")
        value = None if value is None else value.get(key)
    if value is None:
        if required:
            raise ConversionError(f"{path}: missing")
        return default
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
        try:
            value = float(value)
        except ValueError:
            pass
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConversionError(f"{path}: {value!r} is not of type {kind.__name__}")
    return value


def number(section, path, default=None, required=False):
    value = get(section, path, int, default, required)
    if value is not None and value < 1 and not path.endswith("_token_id"):
        raise ConversionError(f"{path}: {value} is not a positive number")
    return value


def require(section, path, allowed, default):
    value = get(section, path, str, default)
    if value not in allowed:
        raise ConversionError(f"{path}: {value!r} is not supported (only {', '.join(allowed)})")
    return value


def stack_from(yaml, path, base=None):
    """One GPT-NeoX stack of the YAML, with the defaults of the authors' code."""
    for key in get(yaml, path, dict, {}):
        if key not in STACK_KEYS:
            raise ConversionError(f"{path}.{key}: not known")
    known = dict(zip(("width", "heads", "layers", "wide"), base or ()))
    width = number(yaml, path + ".hidden_size", known.get("width"), required=not base)
    layers = number(yaml, path + ".num_hidden_layers", known.get("layers"), required=not base)
    heads = number(yaml, path + ".num_attention_heads", known.get("heads"))
    try:
        heads = heads or layout.default_heads(width)
    except layout.LayoutError as error:
        raise ConversionError(f"{path}.{error}") from None
    return layout.stack_config(
        width,
        heads,
        layers,
        intermediate_size=number(yaml, path + ".intermediate_size", known.get("wide", 4 * width)),
        rotary_pct=get(yaml, path + ".rotary_pct", float, 0.25),
        rotary_emb_base=number(yaml, path + ".rotary_emb_base", 10000),
        use_parallel_residual=get(yaml, path + ".use_parallel_residual", bool, True),
        layer_norm_eps=float(get(yaml, path + ".layer_norm_eps", float, 1e-5)),
        max_position_embeddings=number(yaml, path + ".max_position_embeddings", 2048),
        hidden_act=get(yaml, path + ".hidden_act", str, "gelu"),
    )


def special_ids(yaml, path):
    """(bos, eos, pad); 0 in the released models."""
    ids = [number(yaml, f"{path}.{name}_token_id", 0) for name in ("bos", "eos", "pad")]
    return tuple(ids)


def block_config_from(yaml):
    length = number(yaml, "block_length")
    split = get(yaml, "block_split.distribution", str, "fixed")
    if split != "fixed":
        raise ConversionError(f"block_split.distribution: {split!r} is not supported (only fixed)")
    if length is None:
        length = number(yaml, "block_split.distribution_kwargs.length", required=True)
    require(yaml, "embedder.cls", ("lookup",), "lookup")
    require(yaml, "block_decoder.cls", ("gpt-neo-x",), "gpt-neo-x")
    require(yaml, "token_decoder.cls", ("gpt-neo-x",), "gpt-neo-x")
    if number(yaml, "embedder.n_embedding_tokens", 1) != 1:
        raise ConversionError("embedder.n_embedding_tokens: only 1 is supported")
    projection = require(
        yaml, "embedder.projection_method", ("concat", "projection_layer", "sum"), "concat"
    )
    strategy = require(yaml, "token_decoder.decoding_strategy", ("prefix", "summation"), "prefix")
    require(yaml, "token_decoder.expansion_method", ("expansion_layer",), "expansion_layer")
    prefix = number(
        yaml,
        "token_decoder.expansion_ratio",
        length if strategy == "summation" else None,
        required=strategy == "prefix",
    )
    block = stack_from(yaml, "block_decoder.config")
    token = stack_from(yaml, "token_decoder.config")
    vocab = number(yaml, "embedder.config.vocab_size", layout.RELEASED_VOCABULARY)
    other = number(yaml, "token_decoder.config.vocab_size", vocab)
    if other != vocab:
        raise ConversionError(
            f"token_decoder.config.vocab_size: {other} differs from embedder.config.vocab_size {vocab}"
        )
    config = layout.block_config(
        block,
        token,
        vocab,
        length,
        prefix,
        projection,
        strategy,
        number(yaml, "embedder.config.hidden_size"),
        special=special_ids(yaml, "token_decoder.config"),
    )
    # Absent means False: the authors' default changed after the first release, and their released
    # files of 300 M and more, which lack the key, were trained without padding.
    if not get(yaml, "random_pad_first_block", bool, False):
        config["default_alignment"] = "none"
    return config


def vanilla_config_from(yaml):
    require(yaml, "model", ("gpt-neo-x",), "gpt-neo-x")
    name = get(yaml, "model_name_or_path", str, "").split("/")[-1].removesuffix("-deduped")
    base = PYTHIA.get(name)
    if name and base is None:
        raise ConversionError(f"model_name_or_path: {name!r} is not known ({', '.join(PYTHIA)})")
    stack = stack_from(yaml, "model_config", base)
    vocab = number(yaml, "model_config.vocab_size", layout.RELEASED_VOCABULARY)
    return layout.vanilla_config(stack, vocab, special=special_ids(yaml, "model_config")[:2])


def config_from(yaml):
    if not isinstance(yaml, dict):
        raise ConversionError("the YAML is not a mapping")
    block = any(k in yaml for k in ("block_length", "block_split", "block_decoder"))
    config = block_config_from(yaml) if block else vanilla_config_from(yaml)
    layout.check_config(config)
    return config


class TorchFile:
    """A PyTorch file with the face of a Reader; bf16 as uint16."""

    def __init__(self, path):
        try:
            import torch
        except ImportError:
            raise ConversionError(f"{path}: reading a PyTorch file needs torch") from None
        try:
            # Files of before PyTorch 1.6 are no zip archives and can't be mapped.
            mmap = zipfile.is_zipfile(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:  # torch raises many kinds for a file that is not one of its own
            raise ConversionError(f"{path}: not a PyTorch file of tensors: {error}") from None
        for key in ("state_dict", "module", "model"):
            if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
                loaded = loaded[key]
        if not isinstance(loaded, dict):
            raise ConversionError(f"{path}: holds no dictionary of tensors")
        names = {
            torch.float32: "F32",
            torch.float16: "F16",
            torch.bfloat16: "BF16",
            torch.float64: "F64",
            torch.int64: "I64",
            torch.int32: "I32",
            torch.uint8: "U8",
            torch.bool: "BOOL",
        }
        self.tensors, self.dtypes = {}, {}
        for name, tensor in loaded.items():
            if not isinstance(tensor, torch.Tensor):
                raise ConversionError(f"{path}: {name} is not a tensor")
            if tensor.dtype not in names:
                raise ConversionError(f"{path}: tensor {name}: dtype {tensor.dtype} unsupported")
            self.tensors[name], self.dtypes[name] = tensor, names[tensor.dtype]
        self.entries = self.tensors
        self.torch = torch

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def dtype(self, name):
        return self.dtypes[name]

    def stored(self, name):
        tensor = self.tensors[name].contiguous()
        if self.dtypes[name] == "BF16":
            return tensor.view(self.torch.int16).numpy().view(np.uint16)
        return tensor.numpy()


def weight_files(path):
    """The files of a checkpoint: one file, or those of a folder."""
    path = pathlib.Path(path)
    if path.is_file():
        return [path]
    for stem, end in (("model", "safetensors"), ("pytorch_model", "bin")):
        if (path / f"{stem}.{end}").exists():  # whatever its index says: as Hugging Face reads it
            return [path / f"{stem}.{end}"]
        index = path / f"{stem}.{end}.index.json"
        if index.exists():
            try:
                names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                return [path / name for name in sorted(set(names))]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ConversionError(f"{index}: not an index of a checkpoint: {error}") from None
    raise ConversionError(f"{path}: no model.safetensors and no pytorch_model.bin, nor their index")


def plain_name(name):
    """Without what wrappers (distributed, compiled) put in front."""
    parts = [part for part in name.split(".") if part not in ("module", "_orig_mod")]
    return ".".join(parts)


def open_weights(path):
    """{plain name: (file, its name there)}"""
    found = {}
    for file in weight_files(path):
        if not file.exists():
            raise ConversionError(f"{file}: named by the index, but not there")
        reader = Reader(file) if file.suffix == ".safetensors" else TorchFile(file)
        for name in reader.entries:
            plain = plain_name(name)
            if plain in found:
                raise ConversionError(f"tensor {plain}: stands twice in {path}")
            found[plain] = (reader, name)
    return found


def converted(name, part, source, target):
    """Part of a tensor in another type, unless a value would become an infinity there."""
    with np.errstate(over="ignore"):  # the error says it
        result = to_storage(to_float32(part, source), target)
    values = to_float32(part, source) if source == "BF16" else part
    beyond = np.isfinite(values) & ~np.isfinite(to_float32(result, target))
    if beyond.any():
        raise ConversionError(f"tensor {name}: {values[beyond][0]:g} does not fit into {target}")
    return result


def convert(yaml, weights, out, dtype=None, shards=1):
    """Writes config.json and the weights; returns the configuration."""
    config = config_from(yaml)
    found = open_weights(weights)
    shapes = {name: r.shape(n) for name, (r, n) in found.items()}
    if not layout.is_block(config) and "intermediate_size" not in (yaml.get("model_config") or {}):
        # A vanilla YAML may change the width of the model that it names and leave the rest to it.
        wide = shapes.get("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", ())
        config["intermediate_size"] = wide[0] if wide else config["intermediate_size"]
    layout.check_tensors(config, shapes)
    specs = []
    for name, shape in layout.tensor_shapes(config).items():
        source = found[name][0].dtype(found[name][1])
        if source not in FLOATS:
            raise ConversionError(f"tensor {name}: dtype {source} is not a floating-point type")
        target = dtype or ("F32" if source == "F64" else source)
        specs.append((name, shape, target))
    kinds = {target for _, _, target in specs}
    config["torch_dtype"] = TORCH_DTYPES[kinds.pop()] if len(kinds) == 1 else "float32"

    def chunks(name, shape, target):
        reader, own_name = found[name]
        stored, source = reader.stored(own_name), reader.dtype(own_name)
        rows = max(1, CHUNK_ROWS_BYTES // max(1, nbytes(shape[1:], source)))
        for at in range(0, shape[0], rows):
            part = stored[at : at + rows]
            yield part if source == target else converted(name, part, source, target)

    # Once for the errors alone: nothing is written yet, and what was there is there still.
    for name, shape, target in specs:
        if found[name][0].dtype(found[name][1]) != target:
            for _ in chunks(name, shape, target):
                pass

    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_folder(out, specs, chunks, shards)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return config


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config", required=True, help="the authors' training YAML")
    p.add_argument("--weights", required=True, help="checkpoint file or folder")
    p.add_argument("--out", required=True, help="model folder to write")
    p.add_argument("--tokenizer", help="folder whose tokenizer.json (and settings) is copied")
    p.add_argument("--dtype", choices=("f32", "f16", "bf16"), help="default: as the checkpoint")
    p.add_argument("--shards", type=int, default=1)
    args = p.parse_args(argv)
    try:
        import yaml
    except ImportError:
        print("convert_checkpoint: needs PyYAML (tools/requirements.txt)", file=sys.stderr)
        return 1
    try:
        try:
            content = yaml.safe_load(pathlib.Path(args.config).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ConversionError(f"{args.config}: not a text in UTF-8: {error}") from None
        if args.tokenizer and not (pathlib.Path(args.tokenizer) / "tokenizer.json").exists():
            raise ConversionError(f"{args.tokenizer}: no tokenizer.json in it")
        dtype = args.dtype.upper() if args.dtype else None
        config = convert(content, args.weights, args.out, dtype, args.shards)
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())  # it comes in several lines
        print(f"convert_checkpoint: {args.config}: {message}", file=sys.stderr)
        return 2
    except (ConversionError, layout.LayoutError, FormatError, OSError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 2
    if args.tokenizer and not pathlib.Path(args.tokenizer).samefile(args.out):
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (pathlib.Path(args.tokenizer) / name).exists():
                shutil.copy(pathlib.Path(args.tokenizer) / name, args.out)
    kind = "Block Transformer" if layout.is_block(config) else "vanilla GPT-NeoX"
    print(f"{kind} in {args.out}, {config['torch_dtype']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
