#!/usr/bin/env python3
"""Writes the protobuf and gRPC modules of proto/blockserve/v1 into the package.

Debian's protoc is preferred: what it writes runs with every protobuf runtime from 4.21 on, while
modules written by grpcio-tools need a runtime at least as new as themselves. Nothing is done when
the modules are newer than the protos.
"""

import pathlib
import shutil
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent
PROTOS = PACKAGE.parent.parent / "proto"
# The internal protocols too: tests talk to single tiers with them.
NAMES = ("generation", "tier", "block_decoder", "token_decoder")


def is_current(sources: list[pathlib.Path]) -> bool:
    written = [PACKAGE / "blockserve/v1" / f"{name}{end}"
               for name in NAMES for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")]
    if not all(path.exists() for path in written):
        return False
    newest = max(path.stat().st_mtime for path in [*sources, pathlib.Path(__file__)])
    return min(path.stat().st_mtime for path in written) >= newest


def compiler() -> list[str]:
    protoc, plugin = shutil.which("protoc"), shutil.which("grpc_python_plugin")
    if protoc and plugin:
        return [protoc, f"--plugin=protoc-gen-grpc_python={plugin}"]
    try:
        import grpc_tools.protoc  # noqa: F401
    except ImportError:
        sys.exit("generate_stubs: found neither protoc with grpc_python_plugin (Debian packages "
                 "protobuf-compiler, protobuf-compiler-grpc) nor the Python package grpcio-tools")
    return [sys.executable, "-m", "grpc_tools.protoc"]


def main() -> None:
    if not PROTOS.exists():  # a source distribution, which holds the modules
        return
    sources = [PROTOS / "blockserve/v1" / f"{name}.proto" for name in NAMES]
    if is_current(sources):
        return
    subprocess.run([*compiler(), "-I", str(PROTOS), f"--python_out={PACKAGE}",
                    f"--pyi_out={PACKAGE}", f"--grpc_python_out={PACKAGE}",
                    *map(str, sources)], check=True)


if __name__ == "__main__":
    main()
