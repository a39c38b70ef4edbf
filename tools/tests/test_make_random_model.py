"""Random models: their layout, streaming, and the safetensors files themselves."""

import json

import numpy as np
import pytest

import make_random_model
import model_layout as layout
import safetensors_io as st


def test_bf16_rounds_to_nearest_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 3.3e38, np.inf, 1e-40], np.float32)
    back = st.bf16_to_float(st.float_to_bf16(values))
    assert back[:4].tolist() == [1.0, 1.0, 1.015625, -2.5]
    assert np.isinf(back[5]) and np.isnan(st.bf16_to_float(st.float_to_bf16([np.nan])))[0]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_shards_and_one_file_hold_the_same_tensors(make_model, dtype):
    options = ("--dtype", dtype, "--seed", "7")
    one = st.Folder(make_model(*options, name="one"))
    three = st.Folder(make_model(*options, "--shards", "3", name="three"))
    assert set(one) == set(three) and len(set(three.where.values())) == 3
    for name in one:
        assert np.array_equal(one.stored(name), three.stored(name)), name


def test_tensors_are_those_of_the_configuration(make_model):
    folder = make_model(
        "--projection", "projection_layer", "--embedder-width", "20", "--prefix", "3"
    )
    config = json.loads((folder / "config.json").read_text())
    tensors = st.Folder(folder)
    layout.check_tensors(config, {name: tensors.shape(name) for name in tensors})
    assert tensors.shape("embedder.projection_layer.weight") == (64, 20, 4)
    assert tensors.shape("token_decoder.expansion_layer.weight") == (192, 64, 1)


def test_seed_changes_and_repeats_the_weights(make_model):
    first, again, other = (
        st.Folder(make_model("--seed", seed, name=name)).float32("token_decoder.embed_out.weight")
        for seed, name in (("1", "a"), ("1", "b"), ("2", "c"))
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    "name, parameters",
    [("block_main_b4_5", 5e6), ("block_main_b4_85", 85e6), ("block_main_b4_1.2b", 1.2e9)],
)
def test_released_sizes_have_their_number_of_parameters(name, parameters):
    shapes = layout.tensor_shapes(layout.released_config(name))
    tables = ("embeddings.weight", "embed_in.weight", "embed_out.weight")
    count = sum(np.prod(s) for n, s in shapes.items() if not n.endswith(tables))
    assert abs(count / parameters - 1) < 0.05


def test_every_block_size_has_a_plain_counterpart_of_its_size():
    def count(name):
        shapes = layout.tensor_shapes(layout.released_config(name))
        tables = ("embeddings.weight", "embed_in.weight", "embed_out.weight")
        return sum(np.prod(s) for n, s in shapes.items() if not n.endswith(tables))

    for block, plain in zip(layout.BLOCK_SIZES, layout.VANILLA_SIZES, strict=True):
        assert abs(count(block) / count(plain) - 1) < 0.06, (block, plain)


def test_a_size_at_another_block_length():
    config = layout.released_config("block_main_b4_85", block_length=8)
    layout.check_config(config)
    assert config["block_length"] == 8 and config["embedder"]["hidden_size"] == 96


def test_values_do_not_depend_on_the_number_of_cores(monkeypatch):
    monkeypatch.setattr(make_random_model, "CHUNK_VALUES", 100)
    drawn = []
    for cores in (1, 5):
        monkeypatch.setattr(make_random_model.os, "cpu_count", lambda cores=cores: cores)
        chunks = make_random_model.random_chunks(3)("t.weight", (7, 50), "F32")
        drawn.append(np.concatenate(list(chunks)))
    assert drawn[0].size == 350 and np.array_equal(*drawn)
    assert np.unique(drawn[0]).size > 300


def test_vanilla_has_no_block_tensors(make_model):
    tensors = st.Folder(make_model("--vanilla", "--block-layers", "3"))
    assert "gpt_neox.layers.2.mlp.dense_4h_to_h.bias" in tensors
    assert not any(name.startswith("block_decoder") for name in tensors)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--width", "66", "--heads", "2"), "embedder.hidden_size"),
        (("--heads", "5"), "block_decoder.num_attention_heads"),
        (("--strategy", "summation", "--prefix", "3"), "token_decoder.expansion_ratio"),
        (("--size", "block_main_b4_7"), "block_main_b4_7"),
        (("--shards", "1000"), "1000 shards"),
        (("--size", "vanilla_70", "--block-length", "8"), "block_length"),
    ],
)
def test_says_what_is_wrong(tmp_path, capsys, options, message):
    assert make_random_model.main(["--out", str(tmp_path / "m"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_tokenizer_may_be_there_already(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert make_random_model.main(["--out", str(tmp_path), "--tokenizer", str(tmp_path)]) == 0
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_reader_refuses_broken_files(tmp_path):
    file = tmp_path / "x.safetensors"
    for content in (b"abc", b"\xff" * 16, b"\x02" + b"\0" * 7 + b"{]"):
        file.write_bytes(content)
        with pytest.raises(st.FormatError, match="x.safetensors"):
            st.Reader(file)
