"""Safetensors files with numpy alone: lazy reading and streaming writing.

Format: 8 bytes little-endian header length, a JSON header of {name: {dtype, shape, data_offsets}},
then the data. bf16, which numpy lacks, is carried as uint16 and widened where values are needed.
"""

import json
import os
import pathlib
import struct

import numpy as np

STORAGE = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_HEADER_BYTES = 100_000_000


class FormatError(ValueError):
    """A file that is not what it should be; the message names the file and the tensor."""


def float_to_bf16(values):
    """float32 -> uint16 bits, to nearest even; NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def bf16_to_float(bits):
    return (np.asarray(bits, dtype=np.uint32) << 16).view(np.float32)


def to_storage(values, dtype):
    """Numpy floats -> the array that a file of `dtype` holds."""
    if dtype == "BF16":
        return float_to_bf16(values)
    return np.asarray(values).astype(STORAGE[dtype])


def to_float32(stored, dtype):
    return bf16_to_float(stored) if dtype == "BF16" else np.asarray(stored, dtype=np.float32)


def nbytes(shape, dtype):
    return int(np.prod(shape, dtype=np.int64)) * STORAGE[dtype].itemsize


class Reader:
    """One file; tensors are mapped, not read, until used."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise FormatError(f"{self.path}: too short to be a safetensors file")
            (length,) = struct.unpack("<Q", start)
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise FormatError(f"{self.path}: header of {length} bytes does not fit the file")
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise FormatError(f"{self.path}: header is not JSON: {error}") from None
        self.metadata = header.pop("__metadata__", {})
        self.base = 8 + length
        self.entries = header
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if entry["dtype"] not in STORAGE:
                raise FormatError(f"{self.path}: tensor {name}: dtype {entry['dtype']} unsupported")
            if end - begin != nbytes(entry["shape"], entry["dtype"]) or self.base + end > size:
                raise FormatError(f"{self.path}: tensor {name}: offsets do not fit shape or file")

    def shape(self, name):
        return tuple(self.entries[name]["shape"])

    def dtype(self, name):
        return self.entries[name]["dtype"]

    def stored(self, name):
        """The tensor as it lies in the file (bf16 as uint16)."""
        entry = self.entries[name]
        begin = self.base + entry["data_offsets"][0]
        shape = tuple(entry["shape"])
        if 0 in shape:
            return np.zeros(shape, STORAGE[entry["dtype"]])
        return np.memmap(self.path, STORAGE[entry["dtype"]], "r", begin, shape or (1,)).reshape(
            shape
        )

    def float32(self, name):
        return to_float32(self.stored(name), self.dtype(name))


class Folder:
    """All tensors of a model folder: model.safetensors, where there is none the shards of its index.

    A folder may have both: the server takes the single file then, as Hugging Face does.
    """

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        index = folder / "model.safetensors.index.json"
        if index.exists() and not (folder / "model.safetensors").exists():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        self.where = {}
        for name in names:
            if not (folder / name).exists():
                raise FormatError(f"{folder / name} does not exist")
            reader = Reader(folder / name)
            self.where.update({tensor: reader for tensor in reader.entries})

    def __iter__(self):
        return iter(self.where)

    def __contains__(self, name):
        return name in self.where

    def shape(self, name):
        return self.where[name].shape(name)

    def dtype(self, name):
        return self.where[name].dtype(name)

    def stored(self, name):
        return self.where[name].stored(name)

    def float32(self, name):
        return self.where[name].float32(name)


def write_file(path, specs, chunks):
    """Writes one file without holding it in memory.

    specs: list of (name, shape, dtype). chunks(name, shape, dtype) yields arrays in storage form, in
    order, that together are the tensor. The file appears under its name only when complete.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, dtype in specs:
        size = nbytes(shape, dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = pathlib.Path(f"{path}.partial")
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, dtype in specs:
            written = 0
            for chunk in chunks(name, shape, dtype):
                data = np.ascontiguousarray(chunk, dtype=STORAGE[dtype])
                file.write(data.data if data.ndim else data.tobytes())
                written += data.nbytes
            if written != nbytes(shape, dtype):
                raise FormatError(f"{path}: tensor {name}: {written} bytes for shape {list(shape)}")
    os.replace(partial, path)


def split_shards(specs, count):
    """`specs` in order as `count` runs of about equal bytes, none empty."""
    if not 1 <= count <= len(specs):
        raise FormatError(f"{count} shards for {len(specs)} tensors")
    total = sum(nbytes(shape, dtype) for _, shape, dtype in specs)
    runs, run, before = [], [], 0
    for i, spec in enumerate(specs):
        run.append(spec)
        before += nbytes(spec[1], spec[2])
        left_specs, left_runs = len(specs) - i - 1, count - len(runs) - 1
        enough = before >= total * (len(runs) + 1) / count
        if left_runs and (enough or left_specs == left_runs):
            runs.append(run)
            run = []
    return runs + [run]


def write_folder(folder, specs, chunks, shards=1):
    """model.safetensors, or shards with their index, as Hugging Face names them.

    What the folder has of the other kind goes: readers would take the one or the other for the model.
    """
    folder = pathlib.Path(folder)
    single, index_file = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if shards == 1:
        write_file(single, specs, chunks)
        index_file.unlink(missing_ok=True)
        return
    weight_map = {}
    for i, run in enumerate(split_shards(specs, shards)):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        write_file(folder / name, run, chunks)
        weight_map.update({tensor: name for tensor, _, _ in run})
    total = sum(nbytes(shape, dtype) for _, shape, dtype in specs)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    index_file.write_text(json.dumps(index, indent=1) + "\n")
    single.unlink(missing_ok=True)
