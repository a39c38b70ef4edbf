"""What pyproject.toml cannot say: the protobuf modules are written when the package is built."""

import pathlib
import subprocess
import sys

import setuptools
from setuptools.command.build_py import build_py


class BuildWithStubs(build_py):
    def run(self) -> None:
        script = pathlib.Path(__file__).resolve().parent / "generate_stubs.py"
        subprocess.run([sys.executable, script], check=True)
        super().run()


setuptools.setup(cmdclass={"build_py": BuildWithStubs})
