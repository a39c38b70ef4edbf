"""Which golden folders there are, and where a checkout has them."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

NAMES = (
    "concat_l4",
    "concat_l2_sharded",
    "widths_differ_l8",
    "projection_layer_f16",
    "summation",
    "sequential_residual",
    "sum_embedder",
    "head48_bf16",
    "vanilla",
)


def golden_folder(name: str) -> pathlib.Path:
    """Of tests/golden, or of BLOCKSERVE_GOLDEN_DIR, or of shared/golden beside the checkout: not
    every folder fits into the repository. Skips the test where it is nowhere."""
    places = [ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"]
    if "BLOCKSERVE_GOLDEN_DIR" in os.environ:
        places.insert(0, pathlib.Path(os.environ["BLOCKSERVE_GOLDEN_DIR"]))
    for place in places:
        if (place / name / "expected.json").exists():
            return place / name
    pytest.skip(f"golden folder {name} is not here: set BLOCKSERVE_GOLDEN_DIR")
