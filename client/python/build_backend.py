"""setuptools' build backend, which asks for grpcio-tools where no protoc is there: an isolated build
sees no package of the environment that it is for."""

import generate_stubs
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F401,F403


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *generate_stubs.requirements()]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *generate_stubs.requirements()]


def get_requires_for_build_sdist(config_settings=None):
    return [*build_meta.get_requires_for_build_sdist(config_settings), *generate_stubs.requirements()]
