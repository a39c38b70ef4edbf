"""Makes the scripts importable and finds the golden folders."""

import os
import pathlib
import sys

import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOOLS), str(TOOLS / "train")]

GOLDEN = (
    "concat_l4", "concat_l2_sharded", "widths_differ_l8", "projection_layer_f16", "summation",
    "sequential_residual", "sum_embedder", "head48_bf16", "vanilla",
)  # fmt: skip


def golden_root():
    places = [os.environ.get("BLOCKSERVE_GOLDEN", "")]
    places += [TOOLS.parent / "tests" / "golden", TOOLS.parent / "shared" / "golden"]
    for place in places:
        if place and (pathlib.Path(place) / "concat_l4" / "config.json").exists():
            return pathlib.Path(place)
    return None


@pytest.fixture(params=GOLDEN)
def golden(request):
    root = golden_root()
    if root is None:
        pytest.skip("no golden folder: set BLOCKSERVE_GOLDEN")
    if not (root / request.param / "config.json").exists():
        pytest.skip(f"{request.param} is not among the golden folders")
    return root / request.param


@pytest.fixture
def make_model(tmp_path):
    """make_model("--width", "96", ...) -> a model folder with random weights."""
    import make_random_model

    def make(*options, name="model"):
        folder = tmp_path / name
        assert make_random_model.main(["--out", str(folder), *options]) == 0
        return folder

    return make
