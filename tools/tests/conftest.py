"""Makes the scripts importable and finds the golden folders."""

import pathlib
import sys

import golden_folders
import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOOLS), str(TOOLS / "train")]


@pytest.fixture(params=golden_folders.NAMES)
def golden(request):
    return golden_folders.golden_folder(request.param)


@pytest.fixture
def make_model(tmp_path):
    """make_model("--width", "96", ...) -> a model folder with random weights."""
    import make_random_model

    def make(*options, name="model"):
        folder = tmp_path / name
        assert make_random_model.main(["--out", str(folder), *options]) == 0
        return folder

    return make
