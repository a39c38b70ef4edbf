#!/usr/bin/env python3
"""Turns a training checkpoint into a model folder: config, weights, tokenizer, model card.

Figures and samples of the card are computed from the written bf16 weights, not the float32 ones.
Needs torch and tokenizers (training's own requirements).
"""

import argparse
import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "train"))

import torch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

import check_samples  # noqa: E402
import model_layout as layout  # noqa: E402
from data import load_tokens  # noqa: E402
from model import load_folder  # noqa: E402
from safetensors_io import to_storage, write_folder  # noqa: E402
from train import bits_per_byte  # noqa: E402

PROMPTS = (
    "Once upon a time there was",
    "The princess looked at the",
    '"Who are you?" said the old woman.',
    "The king had three sons,",
    "One day the fox met",
    "In the middle of the forest",
    "The giant was so angry that",
    "Then the little girl",
    "Long ago there lived a poor",
    "When the prince heard this",
)

CARD = """# {title}

{what}
It is a demonstration and test model: it writes fairy-tale English that is fluent for a clause or two
and holds no thread.
{stage}

| | |
| --- | --- |
| parameters | {parameters:,} ({body:,} without token tables and head) |
| form | {form} |
| vocabulary | 2,048, byte-level BPE trained on the same text; `<|endoftext|>` is id 0 |
| data | `fairy_tales.txt`: 21 books of tales in the public domain (Project Gutenberg), 8.9 MB; the last 3 % of each book held out |
| trained on | {tokens:,} tokens ({epochs:.1f} passes over {text_tokens:,}) in windows of {windows} tokens{padding} |
| optimizer | {optimizer}, batch {batch:,} tokens, constant rate{decay} |
| held out | **{bits:.3f} bits per byte** in windows of 256 tokens, {short_bits:.3f} in windows of 128 (bf16 weights, alignment `start`, {held_out:,} tokens) |
| words in the corpus | {share:.1%} of {words:,} words in {samples} samples of 100 tokens at temperature 0.8 |

## How it was made
```
{command}
```
{note}The held-out figure is computed from this folder's weights by `tools/export_demo.py`, the share of words
by `tools/check_samples.py` (first and last word of a sample left out, since prompt and limit cut them).
Beyond {trained_positions} tokens of context positions are outside what training saw.

## Samples
Temperature 0.8, 100 tokens, not picked: the first three.
{sample_texts}
"""


def export_weights(state, config, folder):
    """bf16 weights in the order of the layout."""
    names = layout.tensor_shapes(config)
    layout.check_tensors(config, {name: tuple(t.shape) for name, t in state.items()})
    specs = [(name, shape, "BF16") for name, shape in names.items()]
    write_folder(folder, specs, lambda name, shape, dtype: [to_storage(state[name].numpy(), dtype)])


@torch.no_grad()
def sample(model, prompt, count, temperature, generator):
    """Alignment `end` for a Block Transformer. The whole text is run anew for each token: slow, plain."""
    length = getattr(model, "length", 1)
    pad = [0] * (-len(prompt) % length)
    tokens = pad + list(prompt)
    out = []
    while len(out) < count:
        if length == 1:
            row = model(torch.tensor([(tokens + [0])[-257:]]))[0, -1]
        else:
            full = len(tokens) // length * length
            if full == len(tokens):
                context = model.contexts(torch.tensor([tokens]))[0, -1:]
            block = tokens[full:] + [0]
            row = model.token_decoder(context, torch.tensor([block]))[0, -1]
        shares = torch.softmax(row.double() / temperature, -1)
        tokens.append(int(torch.multinomial(shares, 1, generator=generator)))
        out.append(tokens[-1])
    return out


def make_samples(model, tokenizer, count, temperature=0.8, tokens=100, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(count):
        prompt = PROMPTS[i % len(PROMPTS)]
        ids = sample(model, tokenizer.encode(prompt).ids, tokens, temperature, generator)
        samples.append({"prompt": prompt, "text": tokenizer.decode(ids, skip_special_tokens=False)})
    return samples


def describe(kind, config):
    if kind == "block":
        return (
            "A Block Transformer of the released 5M form, trained from scratch on fairy tales.",
            "block length 4, 3 block-decoder and 3 token-decoder layers, width 256, 8 heads, "
            "concat embedder of width 64, 2 prefix vectors, rotary share 0.25",
        )
    return (
        "A vanilla GPT-NeoX of the size of demo-block, trained on the same text in the same order.",
        f"{config['num_hidden_layers']} layers, width 256, 8 heads, rotary share 0.25",
    )


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--checkpoint", required=True, help="checkpoint.pt of tools/train/train.py")
    p.add_argument("--tokenizer", required=True, help="folder with tokenizer.json and its settings")
    p.add_argument("--corpus", required=True)
    p.add_argument("--out", required=True, help="model folder to write")
    p.add_argument("--samples", type=int, default=20)
    p.add_argument("--samples-out", help="JSON file for all the samples")
    p.add_argument("--note", default="", help="a remark for the card on how the run went")
    p.add_argument("--cache", help="folder of the encoded corpus")
    p.add_argument("--threads", type=int, default=1)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    config, run = state["config"], state["args"]
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    export_weights(state["model"], config, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(pathlib.Path(args.tokenizer) / name, folder / name)

    model = load_folder(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    train, held_out, lengths = load_tokens(args.corpus, folder / "tokenizer.json", args.cache)
    bits, short_bits = (bits_per_byte(model, held_out, lengths, n) for n in (256, 128))
    samples = make_samples(model, tokenizer, args.samples)
    corpus = pathlib.Path(args.corpus).read_text(encoding="utf-8")
    texts = [s["text"] for s in samples]
    counted, unknown = check_samples.check(texts, set(check_samples.words(corpus)))
    if args.samples_out:
        pathlib.Path(args.samples_out).write_text(json.dumps({"samples": samples}, indent=1) + "\n")

    shapes = layout.tensor_shapes(config)
    tables = ("embeddings.weight", "embed_in.weight", "embed_out.weight")
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    done, goal = state["done_tokens"], int(run["tokens"])
    progress = 1 if state.get("finished") else done / goal
    lengthened = progress >= run["long_context_from"]
    decay = ", then linear decay to zero" if progress == 1 else " (stopped before its decay ended)"
    what, form = describe(run["kind"], config)
    flags = [
        f"--{name.replace('_', '-')} {run[name] if isinstance(run[name], str) else f'{run[name]:g}'}"
        for name in (
            "tokens",
            "context",
            "long_context",
            "long_context_from",
            "batch_tokens",
            "learning_rate",
            "weight_decay",
            "decay_share",
            "precision",
            "micro_tokens",
            "seed",
        )
    ]
    card = CARD.format(
        title="demo-" + run["kind"],
        what=what,
        stage=f"**An unfinished run: {done / goal:.0%} of the tokens planned.**"
        if progress < 1
        else "",
        parameters=sum(sizes.values()),
        body=sum(n for name, n in sizes.items() if not name.endswith(tables)),
        form=form,
        tokens=done,
        epochs=done / len(train),
        text_tokens=len(train),
        windows=f"{run['context']} and later {run['long_context']}"
        if lengthened
        else run["context"],
        padding=", first block padded at random" if run["kind"] == "block" else "",
        optimizer="Muon for matrices, AdamW for the rest"
        if run["optimizer"] == "muon"
        else "AdamW",
        batch=run["batch_tokens"],
        decay=decay,
        bits=bits,
        short_bits=short_bits,
        held_out=len(held_out),
        share=1 - len(unknown) / counted,
        words=counted,
        samples=len(samples),
        command=(
            "python tools/train/train_tokenizer.py --corpus fairy_tales.txt --out tokenizer\n"
            f"python tools/train/train.py --kind {run['kind']} --corpus fairy_tales.txt \\\n"
            f"  --tokenizer tokenizer/tokenizer.json --out run --optimizer {run['optimizer']} \\\n"
            f"  {' '.join(flags[:5])} \\\n  {' '.join(flags[5:])}\n"
            "python tools/export_demo.py --checkpoint run/checkpoint.pt --tokenizer tokenizer \\\n"
            f"  --corpus fairy_tales.txt --out models/demo-{run['kind']}"
        ),
        note=args.note + "\n\n" if args.note else "",
        trained_positions=run["long_context"] if lengthened else run["context"],
        sample_texts="\n".join(
            "\n".join("> " + line for line in (f"**{s['prompt']}**{s['text']}").split("\n")) + "\n"
            for s in samples[:3]
        ),
    )
    (folder / "README.md").write_text(card.rstrip("\n") + "\n")
    result = {
        "tokens_trained": done,
        "held_out_bits_per_byte": round(bits, 4),
        "words_in_corpus": round(1 - len(unknown) / counted, 4),
        "unknown": unknown,
        "bytes": sum(f.stat().st_size for f in folder.iterdir()),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
