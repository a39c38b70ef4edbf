"""Makes the scripts importable and finds the golden folders."""

import os
import pathlib
import sys

import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[1]
ROOT = TOOLS.parent
sys.path[:0] = [str(TOOLS), str(TOOLS / "train")]

GOLDEN = (
    "concat_l4", "concat_l2_sharded", "widths_differ_l8", "projection_layer_f16", "summation",
    "sequential_residual", "sum_embedder", "head48_bf16", "vanilla",
)  # fmt: skip


@pytest.fixture(params=GOLDEN)
def golden(request):
    """Of tests/golden, or of BLOCKSERVE_GOLDEN_DIR, or of shared/golden beside the checkout: not
    every folder fits into the repository."""
    places = [ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"]
    if "BLOCKSERVE_GOLDEN_DIR" in os.environ:
        places.insert(0, pathlib.Path(os.environ["BLOCKSERVE_GOLDEN_DIR"]))
    for place in places:
        if (place / request.param / "expected.json").exists():
            return place / request.param
    pytest.skip(f"golden folder {request.param} is not here: set BLOCKSERVE_GOLDEN_DIR")


@pytest.fixture
def make_model(tmp_path):
    """make_model("--width", "96", ...) -> a model folder with random weights."""
    import make_random_model

    def make(*options, name="model"):
        folder = tmp_path / name
        assert make_random_model.main(["--out", str(folder), *options]) == 0
        return folder

    return make
