"""What a model folder holds: the form of config.json, names and shapes of tensors, released sizes.

Symbols: L block length, V vocabulary, D block-decoder width, T token-decoder width, r prefix vectors.
"""

LEFT_OVER_NAMES = ("block_decoder.gpt_neox.embed_in.weight",)
LEFT_OVER_ENDS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")

# name: (layers of each decoder, width, heads); L 4, r 2, V 50304
BLOCK_SIZES = {
    "block_main_b4_5": (3, 256, 8),
    "block_main_b4_19": (3, 512, 8),
    "block_main_b4_85": (6, 768, 12),
    "block_main_b4_300": (12, 1024, 16),
    "block_main_b4_800": (8, 2048, 16),
    "block_main_b4_1.2b": (12, 2048, 16),
}
# Pythia's, of the same numbers of non-embedding parameters. name: (layers, width, heads)
VANILLA_SIZES = {
    "vanilla_31": (6, 256, 8),
    "vanilla_70": (6, 512, 8),
    "vanilla_160": (12, 768, 12),
    "vanilla_410": (24, 1024, 16),
    "vanilla_1b": (16, 2048, 8),
    "vanilla_1.4b": (24, 2048, 16),
}
RELEASED_VOCABULARY = 50304


class LayoutError(ValueError):
    """A configuration or a set of tensors that does not fit; the message names the key or tensor."""


def is_left_over(name):
    """Buffers and unused tables that real checkpoints carry and that nothing reads."""
    return name in LEFT_OVER_NAMES or name.endswith(LEFT_OVER_ENDS)


def is_block(config):
    return "block_length" in config


def default_heads(width):
    """The authors' rule where the YAML gives no head count."""
    head = 32 if width <= 256 else 64 if width <= 1536 else 128
    if width % head:
        raise LayoutError(f"hidden_size: {width} is not divisible by its head size {head}")
    return width // head


def stack_config(width, heads, layers, **changes):
    config = {
        "model_type": "gpt_neox",
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": 4 * width,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu",
    }
    config.update(changes)
    return config


def block_config(
    block_stack,
    token_stack,
    vocab_size,
    block_length=4,
    prefix=2,
    projection="concat",
    strategy="prefix",
    embedder_width=None,
    torch_dtype="bfloat16",
    special=(0, 0, 0),
):
    """config.json of a Block Transformer. special: (bos, eos, pad)."""
    width = block_stack["hidden_size"]
    if embedder_width is None:
        embedder_width = width // block_length if projection == "concat" else width
    bos, eos, pad = special
    return {
        "model_type": "block_transformer",
        "architectures": ["BlockTransformer"],
        "block_length": block_length,
        "vocab_size": vocab_size,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": torch_dtype,
        "embedder": {"type": "lookup", "projection": projection, "hidden_size": embedder_width},
        "block_decoder": block_stack,
        "token_decoder": dict(
            token_stack,
            expansion_method="expansion_layer",
            expansion_ratio=prefix,
            decoding_strategy=strategy,
        ),
    }


def vanilla_config(stack, vocab_size, torch_dtype="bfloat16", special=(0, 0)):
    bos, eos = special
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        **stack,
        "vocab_size": vocab_size,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "tie_word_embeddings": False,
        "torch_dtype": torch_dtype,
    }


def released_config(name, torch_dtype="bfloat16", block_length=None):
    """config.json of a released size; `block_length`: the same stacks at another one."""
    if name in BLOCK_SIZES:
        layers, width, heads = BLOCK_SIZES[name]
        stack = stack_config(width, heads, layers)
        length = block_length or 4
        return block_config(
            stack, dict(stack), RELEASED_VOCABULARY, length, torch_dtype=torch_dtype
        )
    if name in VANILLA_SIZES:
        if block_length not in (None, 1):
            raise LayoutError(f"block_length: {block_length}, where {name} has no blocks")
        layers, width, heads = VANILLA_SIZES[name]
        stack = stack_config(width, heads, layers)
        return vanilla_config(stack, RELEASED_VOCABULARY, torch_dtype)
    known = ", ".join(list(BLOCK_SIZES) + list(VANILLA_SIZES))
    raise LayoutError(f"{name!r} is no released size; known: {known}")


def check_stack(config, key):
    for field in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"):
        value = config.get(field)
        if not isinstance(value, int) or value < 1:
            raise LayoutError(f"{key}{field}: {value!r} is not a positive whole number")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        raise LayoutError(f"{key}num_attention_heads: {heads} does not divide width {width}")
    rotary = int(width // heads * config.get("rotary_pct", 0.25))
    if rotary % 2 or rotary < 0:
        raise LayoutError(f"{key}rotary_pct: gives {rotary} rotary dimensions, which is odd")
    if config.get("hidden_act", "gelu") != "gelu":
        raise LayoutError(f"{key}hidden_act: {config['hidden_act']!r} is not gelu")


def check_config(config):
    """Raises LayoutError, naming the key, where the parts do not fit each other."""
    if not is_block(config):
        check_stack(config, "")
        return
    block, token, embedder = config["block_decoder"], config["token_decoder"], config["embedder"]
    check_stack(block, "block_decoder.")
    check_stack(token, "token_decoder.")
    length, width = config["block_length"], block["hidden_size"]
    projection, table = embedder["projection"], embedder["hidden_size"]
    expected = {"concat": width / length, "sum": width, "projection_layer": table}
    if projection not in expected:
        raise LayoutError(
            f"embedder.projection: {projection!r} is not concat, sum or projection_layer"
        )
    if table != expected[projection]:
        raise LayoutError(
            f"embedder.hidden_size: {table}, where {projection} needs {expected[projection]:g}"
        )
    strategy, prefix = token["decoding_strategy"], token["expansion_ratio"]
    if strategy not in ("prefix", "summation"):
        raise LayoutError(f"token_decoder.decoding_strategy: {strategy!r} is not supported")
    if strategy == "summation" and prefix != length:
        raise LayoutError(
            f"token_decoder.expansion_ratio: {prefix}, where summation needs block_length {length}"
        )


def stack_shapes(config, prefix, table=None):
    """{name: shape} of one GPT-NeoX stack; `table` the vocabulary of its embed_in, if it has one."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    shapes = {}
    if table:
        shapes[prefix + "embed_in.weight"] = (table, width)
    for n in range(config["num_hidden_layers"]):
        layer = f"{prefix}layers.{n}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (width,)
            shapes[f"{layer}{norm}.bias"] = (width,)
        for linear, rows, columns in (
            ("attention.query_key_value", 3 * width, width),
            ("attention.dense", width, width),
            ("mlp.dense_h_to_4h", wide, width),
            ("mlp.dense_4h_to_h", width, wide),
        ):
            shapes[f"{layer}{linear}.weight"] = (rows, columns)
            shapes[f"{layer}{linear}.bias"] = (rows,)
    shapes[prefix + "final_layer_norm.weight"] = (width,)
    shapes[prefix + "final_layer_norm.bias"] = (width,)
    return shapes


def tensor_shapes(config):
    """{name: shape} of every tensor that a model of this configuration needs."""
    vocab = config["vocab_size"]
    if not is_block(config):
        shapes = stack_shapes(config, "gpt_neox.", vocab)
        shapes["embed_out.weight"] = (vocab, config["hidden_size"])
        return shapes
    block, token, embedder = config["block_decoder"], config["token_decoder"], config["embedder"]
    width, table, rows = block["hidden_size"], embedder["hidden_size"], token["hidden_size"]
    shapes = {"embedder.embeddings.weight": (vocab, table)}
    if embedder["projection"] == "projection_layer":
        shapes["embedder.projection_layer.weight"] = (width, table, config["block_length"])
        shapes["embedder.projection_layer.bias"] = (width,)
    shapes.update(stack_shapes(block, "block_decoder.gpt_neox."))
    out = token["expansion_ratio"] * rows
    shapes["token_decoder.expansion_layer.weight"] = (out, width, 1)
    shapes["token_decoder.expansion_layer.bias"] = (out,)
    shapes.update(stack_shapes(token, "token_decoder.gpt_neox.", vocab))
    shapes["token_decoder.embed_out.weight"] = (vocab, rows)
    return shapes


def check_tensors(config, found):
    """found: {name: shape}. Raises LayoutError naming the first tensor that is missing or misshaped."""
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise LayoutError(f"tensor {name}: missing; expected shape {list(shape)}")
        if tuple(found[name]) != tuple(shape):
            raise LayoutError(
                f"tensor {name}: shape {list(found[name])}, where the configuration gives {list(shape)}"
            )
    for name in found:
        if name not in expected and not is_left_over(name):
            raise LayoutError(f"tensor {name}: not known for this configuration")
