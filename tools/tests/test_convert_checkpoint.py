"""Conversion of the authors' YAML and checkpoints."""

import copy
import json

import numpy as np
import pytest

import convert_checkpoint as convert
import make_random_model
import model_layout as layout
import safetensors_io as st

# The keys of the authors' files that matter here (their training settings stand beside them).
YAML = {
    "name": "tiny",
    "block_length": 4,
    "block_split": {"distribution": "fixed", "distribution_kwargs": {"length": 4}},
    "random_pad_first_block": True,
    "tokenizer": {"embedder": "pythia", "token_decoder": "pythia"},
    "embedder": {
        "cls": "lookup", "model_name_or_path": None, "n_embedding_tokens": 1,
        "projection_method": "concat", "config": {"vocab_size": 96, "hidden_size": 16},
    },
    "block_decoder": {
        "cls": "gpt-neo-x", "model_name_or_path": "EleutherAI/pythia-410m-deduped",
        "config": {"num_hidden_layers": 2, "hidden_size": 64},
    },
    "token_decoder": {
        "cls": "gpt-neo-x", "expansion_method": "expansion_layer", "expansion_ratio": 2,
        "decoding_strategy": "prefix", "config": {"num_hidden_layers": 1, "hidden_size": 64},
    },
    "precision": "bf16",
}  # fmt: skip


def changed(path, value):
    content = copy.deepcopy(YAML)
    *outer, last = path.split(".")
    section = content
    for key in outer:
        section = section[key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return content


def checkpoint(folder, config, extra=(), prefix="", skip=None, dtype="F32"):
    """A checkpoint as a trainer leaves it: left-over buffers, a wrapper's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {n: s for n, s in layout.tensor_shapes(config).items() if n != skip}
    shapes.update(extra)
    specs = [(prefix + name, shape, dtype) for name, shape in shapes.items()]
    chunks = make_random_model.random_chunks(3)
    st.write_file(folder / "model.safetensors", specs, chunks)
    return folder


def test_fills_in_what_the_authors_code_fills_in():
    config = convert.config_from(YAML)
    assert config["block_decoder"]["num_attention_heads"] == 2
    assert config["block_decoder"]["intermediate_size"] == 256
    assert config["token_decoder"]["expansion_ratio"] == 2
    assert "default_alignment" not in config
    assert [layout.default_heads(w) for w in (256, 512, 768, 1536, 2048)] == [8, 8, 12, 24, 16]


def test_a_model_trained_without_random_padding_aligns_none():
    assert (
        convert.config_from(changed("random_pad_first_block", None))["default_alignment"] == "none"
    )
    assert (
        convert.config_from(changed("random_pad_first_block", False))["default_alignment"] == "none"
    )


def test_summation_has_one_vector_per_token():
    content = changed("token_decoder.decoding_strategy", "summation")
    del content["token_decoder"]["expansion_ratio"]
    assert convert.config_from(content)["token_decoder"]["expansion_ratio"] == 4


def test_vanilla_takes_its_size_from_the_model_named():
    yaml = {"model": "gpt-neo-x", "model_name_or_path": "EleutherAI/pythia-160m-deduped"}
    config = convert.config_from(yaml)
    assert (config["hidden_size"], config["num_attention_heads"]) == (768, 12)
    yaml["model_config"] = {"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 256}
    assert convert.config_from(yaml)["num_hidden_layers"] == 6


def test_vanilla_inner_width_is_that_of_the_tensors(tmp_path):
    changes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "vocab_size": 64,
    }
    yaml = {"model_name_or_path": "EleutherAI/pythia-410m-deduped", "model_config": changes}
    config = convert.config_from(yaml)
    assert config["intermediate_size"] == 4096
    config["intermediate_size"] = 128
    source = checkpoint(tmp_path / "in", config)
    assert convert.convert(yaml, source, tmp_path / "out")["intermediate_size"] == 128


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("target", [None, "BF16"])
def test_keeps_every_value_and_drops_left_overs(tmp_path, shards, target):
    extra = {
        "block_decoder.gpt_neox.embed_in.weight": (8, 64),
        "block_decoder.gpt_neox.layers.0.attention.rotary_emb.inv_freq": (2,),
        "token_decoder.gpt_neox.layers.0.attention.masked_bias": (),
    }
    source = checkpoint(tmp_path / "in", convert.config_from(YAML), extra, prefix="module.")
    config = convert.convert(YAML, source, tmp_path / "out", target, shards)
    before, after = st.Folder(source), st.Folder(tmp_path / "out")
    assert set(after) == set(layout.tensor_shapes(config))
    for name in after:
        values = before.float32("module." + name)
        if target:
            values = st.bf16_to_float(st.float_to_bf16(values))
        assert np.array_equal(after.float32(name), values), name
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["torch_dtype"] == ("bfloat16" if target else "float32")


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("block_decoder.config.hidden_size", None, "block_decoder.config.hidden_size: missing"),
        ("block_decoder.config.hidden_size", "big", "block_decoder.config.hidden_size"),
        ("block_decoder.config.hidden_size", 80, "block_decoder.config.hidden_size"),
        ("token_decoder.decoding_strategy", "cross_attention", "token_decoder.decoding_strategy"),
        ("token_decoder.expansion_ratio", None, "token_decoder.expansion_ratio: missing"),
        ("token_decoder.cls", "t5", "token_decoder.cls"),
        ("embedder.cls", "roberta_cls", "embedder.cls"),
        ("embedder.n_embedding_tokens", 2, "embedder.n_embedding_tokens"),
        ("embedder.config.hidden_size", 32, "embedder.hidden_size"),
        ("block_split.distribution", "uniform", "block_split.distribution"),
        ("block_decoder.config.rope", 1, "block_decoder.config.rope"),
    ],
)
def test_names_the_key_that_cannot_be_converted(path, value, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        convert.config_from(changed(path, value))


def test_names_the_tensor_that_does_not_fit(tmp_path):
    config = convert.config_from(YAML)
    gone = "token_decoder.gpt_neox.layers.0.mlp.dense_4h_to_h.bias"
    for name, source in (
        (gone, checkpoint(tmp_path / "a", config, skip=gone)),
        (
            "embedder.embeddings.weight",
            checkpoint(tmp_path / "b", config, {"embedder.embeddings.weight": (96, 17)}),
        ),
        (
            "block_decoder.gpt_neox.layers.9.mlp.dense_4h_to_h.bias",
            checkpoint(
                tmp_path / "c",
                config,
                {"block_decoder.gpt_neox.layers.9.mlp.dense_4h_to_h.bias": (64,)},
            ),
        ),
    ):
        with pytest.raises(layout.LayoutError, match=name):
            convert.convert(YAML, source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source, value, target", [
    ("F32", 65520.0, "F16"), ("BF16", -70000.0, "F16"), ("F64", 3.5e38, None), ("F32", 3.4e38, "BF16"),
])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_value_that_does_not_fit_the_type_is_named_and_nothing_is_written(
        tmp_path, source, value, target, shards):
    """In the last tensor, when all others would have been written."""
    config = convert.config_from(YAML)
    specs = [(name, shape, source) for name, shape in layout.tensor_shapes(config).items()]
    last = specs[-1][0]

    def chunks(name, shape, dtype):
        values = np.zeros(shape)
        values.flat[-1] = value if name == last else 0
        yield st.to_storage(values, dtype)

    st.write_file(tmp_path / "model.safetensors", specs, chunks)
    message = f"tensor {last}: .* does not fit into {target or 'F32'}"
    with pytest.raises(convert.ConversionError, match=message):
        convert.convert(YAML, tmp_path / "model.safetensors", tmp_path / "out", target, shards)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [65519.0, np.inf, np.nan])
def test_what_fits_the_type_or_is_not_finite_already_is_converted(tmp_path, value):
    config = convert.config_from(YAML)
    specs = [(name, shape, "F32") for name, shape in layout.tensor_shapes(config).items()]
    st.write_file(tmp_path / "model.safetensors", specs,
                  lambda name, shape, dtype: [np.full(shape, value, np.float32)])
    convert.convert(YAML, tmp_path / "model.safetensors", tmp_path / "out", "F16")
    after = st.Folder(tmp_path / "out")
    expected = np.float32(np.float16(value))
    for name in after:
        assert np.array_equal(after.float32(name), np.full(after.shape(name), expected), equal_nan=True)


@pytest.mark.parametrize("zipped", [True, False])  # as since PyTorch 1.6, as before
def test_reads_pytorch_files(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    source = st.Folder(checkpoint(tmp_path / "in", convert.config_from(YAML)))
    tensors = {n: torch.from_numpy(source.float32(n).copy()).bfloat16() for n in source}
    saved, file = {"state_dict": tensors}, tmp_path / "model.pt"
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    config = convert.convert(YAML, tmp_path / "model.pt", tmp_path / "out")
    after = st.Folder(tmp_path / "out")
    assert config["torch_dtype"] == "bfloat16"
    for name in after:
        assert np.array_equal(after.float32(name), tensors[name].float().numpy()), name


@pytest.mark.parametrize("first, second", [(1, 3), (3, 1)])
def test_a_folder_that_is_written_again_holds_one_model(tmp_path, first, second):
    """Or the server, or a tool, would go on with the old weights."""
    config = convert.config_from(YAML)
    for dtype, shards in (("F32", first), ("BF16", second)):
        source = checkpoint(tmp_path / dtype, config)
        convert.convert(YAML, source, tmp_path / "out", dtype, shards)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("model.safetensors" in written) == (second == 1)
    assert ("model.safetensors.index.json" in written) == (second == 3)
    after = st.Folder(tmp_path / "out")
    assert {after.dtype(name) for name in after} == {"BF16"}


def test_of_a_folder_with_both_the_single_file_is_read(tmp_path):
    """As by the server: or one would be checked, or converted, and the other served."""
    specs = [("a", (2, 3), "F32"), ("b", (4,), "F32")]

    def all_of(value):
        return lambda name, shape, dtype: [np.full(shape, value, np.float32)]

    st.write_folder(tmp_path, specs, all_of(1), shards=2)
    assert len(convert.weight_files(tmp_path)) == 2
    assert st.Folder(tmp_path).float32("b")[0] == 1
    st.write_file(tmp_path / "model.safetensors", specs, all_of(2))
    assert convert.weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert st.Folder(tmp_path).float32("b")[0] == 2

    other = tmp_path / "pytorch"
    other.mkdir()
    (other / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "x.bin"}}')
    assert convert.weight_files(other) == [other / "x.bin"]
    (other / "pytorch_model.bin").write_bytes(b"")
    assert convert.weight_files(other) == [other / "pytorch_model.bin"]


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"weight_map": "x"}',
                                  b'{"weight_map": {"a": 1}}', b"\xff\xfe"])
def test_an_index_that_is_none_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(convert.ConversionError, match="index.json: not an index"):
        convert.weight_files(tmp_path)


def test_a_yaml_that_is_no_text_is_named_and_a_tokenizer_may_be_there_already(tmp_path, capsys):
    yaml = pytest.importorskip("yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    out = checkpoint(tmp_path / "in", convert.config_from(YAML))
    (out / "tokenizer.json").write_text("{}")
    command = ["--config", str(tmp_path / "x.yaml"), "--out", str(out), "--weights", str(out),
               "--tokenizer", str(out)]
    assert convert.main(command) == 2
    assert "x.yaml: not a text" in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(YAML))
    assert convert.main(command) == 0


def test_command_line_reports_in_one_line(tmp_path, capsys):
    yaml = pytest.importorskip("yaml")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(YAML))
    command = ["--config", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "out"), "--weights"]
    assert convert.main(command + [str(tmp_path)]) == 2
    assert "model.safetensors" in capsys.readouterr().err
    checkpoint(tmp_path / "in", convert.config_from(YAML))
    assert convert.main(command + [str(tmp_path / "in")]) == 0
    assert "Block Transformer" in capsys.readouterr().out
