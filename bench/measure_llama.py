#!/usr/bin/env python3
"""Measures llama.cpp on a plain model of this project's layout, for docs/performance.md.

  python3 -m venv /tmp/llama
  CMAKE_ARGS=-DGGML_NATIVE=ON /tmp/llama/bin/pip install -r bench/requirements-llama.txt
  /tmp/llama/bin/python bench/measure_llama.py --model models/vanilla_160 --work 128/512@64 …

Writes the weights as GGUF beside the model, then drives llama.cpp's library in the pattern of its
llama-batched-bench: prompts in batches of --batch tokens, then one token of every sequence a step, flash
attention, a stream of KV for each sequence. No sampling: the next token is a made-up one, so that what
is measured is llama.cpp alone. `greedy_tokens` of the result are of a prompt of its own, to be compared
with
  blockserve generate --model DIR --arithmetic f32 --ignore-eos --prompt-tokens 1,2,…,16 --max-tokens 8
"""

import argparse
import ctypes
import json
import pathlib
import platform
import struct
import sys
import time

import gguf
import llama_cpp
import numpy as np

TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
         "bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
CHECK_PROMPT = list(range(1, 17))
CHECK_TOKENS = 8


class Tensors:
    """One safetensors file, tensor by tensor as float32."""

    def __init__(self, file):
        self.data = np.memmap(file, dtype=np.uint8, mode="r")
        size = struct.unpack("<Q", self.data[:8].tobytes())[0]
        self.header = json.loads(self.data[8:8 + size].tobytes())
        self.begin = 8 + size

    def __call__(self, name):
        tensor = self.header[name]
        begin, end = tensor["data_offsets"]
        data = self.data[self.begin + begin:self.begin + end]
        if tensor["dtype"] == "BF16":
            values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = data.view({"F32": np.float32, "F16": np.float16}[tensor["dtype"]])
        return values.astype(np.float32).reshape(tensor["shape"])


def write_gguf(model, file, dtype):
    config = json.loads((model / "config.json").read_text())
    if config.get("model_type") != "gpt_neox":
        sys.exit(f"{model}/config.json: model_type is {config.get('model_type')}, not gpt_neox")
    read = Tensors(model / "model.safetensors")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    writer = gguf.GGUFWriter(file, "gptneox")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(int(config["rotary_pct"] * (width // heads)))
    writer.add_head_count(heads)
    writer.add_parallel_residual(config["use_parallel_residual"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])

    def add(name, values):
        # Vectors are float32 in every GGUF.
        kind = TYPES[dtype] if values.ndim > 1 else TYPES["f32"]
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind),
                          raw_dtype=kind)

    def pair(name, source):
        for end in ("weight", "bias"):
            add(f"{name}.{end}", read(f"{source}.{end}"))

    add("token_embd.weight", read("gpt_neox.embed_in.weight"))
    pair("output_norm", "gpt_neox.final_layer_norm")
    add("output.weight", read("embed_out.weight"))
    for i in range(config["num_hidden_layers"]):
        at, to = f"gpt_neox.layers.{i}", f"blk.{i}"
        pair(f"{to}.attn_norm", f"{at}.input_layernorm")
        pair(f"{to}.ffn_norm", f"{at}.post_attention_layernorm")
        pair(f"{to}.attn_output", f"{at}.attention.dense")
        pair(f"{to}.ffn_up", f"{at}.mlp.dense_h_to_4h")
        pair(f"{to}.ffn_down", f"{at}.mlp.dense_4h_to_h")
        for end in ("weight", "bias"):
            # The checkpoint has q, k and v of a head together; llama.cpp has all of q first.
            values = read(f"{at}.attention.query_key_value.{end}")
            parts = values.reshape(heads, 3, width // heads, *values.shape[1:])
            add(f"{to}.attn_qkv.{end}", parts.swapaxes(0, 1).reshape(values.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Context:
    def __init__(self, model, length, sequences, args):
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = length * sequences
        parameters.n_batch = parameters.n_ubatch = args.batch
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = args.threads
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.kv_unified = False
        parameters.no_perf = True
        self.context = llama_cpp.llama_init_from_model(model, parameters)
        if not self.context:
            sys.exit(f"llama.cpp made no context of {sequences} x {length} tokens")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.size = args.batch
        self.batch = llama_cpp.llama_batch_init(self.size, 0, 1)

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def decode(self, rows):
        """rows: [(token, position, sequence, whether logits are wanted)], at most the batch's size."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            sys.exit(f"llama_decode returned {code}")

    def best(self):
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def synchronize(self):
        llama_cpp.llama_synchronize(self.context)


def greedy_tokens(model, args):
    context = Context(model, 64, 1, args)
    context.decode([(t, i, 0, i + 1 == len(CHECK_PROMPT)) for i, t in enumerate(CHECK_PROMPT)])
    tokens = [context.best()]
    while len(tokens) < CHECK_TOKENS:
        context.decode([(tokens[-1], len(CHECK_PROMPT) + len(tokens) - 1, 0, True)])
        tokens.append(context.best())
    context.close()
    return tokens


def run(model, prompt, generate, sequences, args):
    context = Context(model, prompt + generate, sequences, args)
    random = np.random.default_rng(1)
    tokens = random.integers(0, context.vocab, (sequences, prompt + generate)).tolist()
    context.decode([(1, 0, 0, True)])  # pages and threads are there
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context.context), True)

    begin = time.perf_counter()
    rows = [(tokens[s][i], i, s, i + 1 == prompt) for s in range(sequences) for i in range(prompt)]
    for at in range(0, len(rows), context.size):
        context.decode(rows[at:at + context.size])
    context.synchronize()
    prefilled = time.perf_counter()
    # The last token is written, not read.
    for i in range(prompt, prompt + generate - 1):
        context.decode([(tokens[s][i], i, s, True) for s in range(sequences)])
    context.synchronize()
    end = time.perf_counter()
    context.close()
    return prefilled - begin, end - prefilled


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder of a gpt_neox model")
    parser.add_argument("--type", choices=TYPES, default="bf16", help="of the weights")
    parser.add_argument("--work", nargs="+", default=["128/512@64"], metavar="PROMPT/GENERATE@SEQUENCES")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2048, help="tokens of a step at most")
    parser.add_argument("--repeat", type=int, default=1, help="runs of which the middle one is told")
    parser.add_argument("--out", type=pathlib.Path, help="folder for one JSON file per work")
    args = parser.parse_args()

    file = args.model / f"{args.type}.gguf"
    if not file.exists():
        write_gguf(args.model, file, args.type)
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(file).encode(),
                                                 llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp did not load {file}")
    greedy = greedy_tokens(model, args)
    for work in args.work:
        prompt, rest = work.split("/")
        generate, sequences = (int(x) for x in rest.split("@"))
        prompt = int(prompt)
        times = [run(model, prompt, generate, sequences, args) for _ in range(args.repeat)]
        prefill, decode = sorted(times, key=sum)[len(times) // 2]
        result = {
            "output_tokens_per_s": generate * sequences / (prefill + decode),
            "prefill_tokens_per_s": prompt * sequences / prefill,
            "decode_tokens_per_s": (generate - 1) * sequences / decode if decode else 0,
            "output_tokens_per_s_of_runs": [generate * sequences / sum(t) for t in times],
            "prompt": prompt, "generate": generate, "sequences": sequences,
            "program": f"llama-cpp-python {llama_cpp.__version__}", "type": args.type,
            "threads": args.threads, "batch": args.batch, "greedy_tokens": greedy,
            "system": llama_cpp.llama_print_system_info().decode().strip(),
            "machine": platform.machine(),
        }
        print(f"{work}: {result['output_tokens_per_s']:.1f} tokens/s", flush=True)
        if args.out:
            name = f"llama_cpp-{prompt}-{generate}-{sequences}-{args.type}.json"
            (args.out / name).write_text(json.dumps(result, indent=1) + "\n")
        else:
            print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
