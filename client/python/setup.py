"""What pyproject.toml cannot say: the protobuf modules are written when the package is built."""

import pathlib
import subprocess
import sys

import setuptools
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist


def write_stubs() -> None:
    script = pathlib.Path(__file__).resolve().parent / "generate_stubs.py"
    subprocess.run([sys.executable, script], check=True)


class BuildWithStubs(build_py):
    def run(self) -> None:
        write_stubs()
        super().run()


class SdistWithStubs(sdist):
    def run(self) -> None:
        write_stubs()
        super().run()


setuptools.setup(cmdclass={"build_py": BuildWithStubs, "sdist": SdistWithStubs})
