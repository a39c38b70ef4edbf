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


SOURCES = [PROTOS / "blockserve/v1" / f"{name}.proto" for name in NAMES]
MODULES = [PACKAGE / "blockserve/v1" / f"{name}{end}"
           for name in NAMES for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")]


def are_current() -> bool:
    if not all(path.exists() for path in MODULES):
        return False
    if not PROTOS.exists():  # a source distribution, which holds the modules
        return True
    newest = max(path.stat().st_mtime for path in [*SOURCES, pathlib.Path(__file__)])
    return min(path.stat().st_mtime for path in MODULES) >= newest


def debians_compiler() -> list[str]:
    """Empty where it is not there."""
    protoc, plugin = shutil.which("protoc"), shutil.which("grpc_python_plugin")
    return [protoc, f"--plugin=protoc-gen-grpc_python={plugin}"] if protoc and plugin else []


def requirements() -> list[str]:
    """Python packages without which the modules cannot be written."""
    return [] if are_current() or debians_compiler() else ["grpcio-tools"]


def compiler() -> list[str]:
    if found := debians_compiler():
        return found
    try:
        import grpc_tools.protoc  # noqa: F401
    except ImportError:
        sys.exit("generate_stubs: found neither protoc with grpc_python_plugin (Debian packages "
                 "protobuf-compiler, protobuf-compiler-grpc) nor the Python package grpcio-tools")
    return [sys.executable, "-m", "grpc_tools.protoc"]


def main() -> None:
    if are_current():
        return
    if not PROTOS.exists():
        sys.exit(f"generate_stubs: neither {PROTOS} nor the modules made of it are there: build from a whole "
                 "checkout (with pip 21.3 or newer) or from a source distribution")
    subprocess.run([*compiler(), "-I", str(PROTOS), f"--python_out={PACKAGE}",
                    f"--pyi_out={PACKAGE}", f"--grpc_python_out={PACKAGE}",
                    *map(str, SOURCES)], check=True)


if __name__ == "__main__":
    main()
