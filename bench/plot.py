#!/usr/bin/env python3
"""Draws the runs of a folder as the pictures of docs/performance.md (needs matplotlib).

  bench/plot.py [--results bench/results/zen4] [--out docs/performance]
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "blockserve"  # the same picture from the same results
import matplotlib.pyplot as plt  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK, PLAIN = "#0072b2", "#d55e00"
NAMES = {"block": ("block transformer", BLOCK, "o"), "vanilla": ("plain transformer", PLAIN, "s")}
PARTS = ["block step", "expansion", "first step", "later steps", "head", "sampling",
         "between steps"]
COLOURS = ["#0072b2", "#56b4e9", "#009e73", "#66c2a5", "#e69f00", "#cc79a7", "#999999"]


class Results:
    def __init__(self, folder):
        self.folder = folder

    def get(self, name):
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def series(self, names):
        """[(value, result)] of those that were measured; `names`: {value: name}."""
        found = [(value, self.get(name)) for value, name in names.items()]
        return [(value, result) for value, result in found if result]


def finish(axes, title, x, y, ticks=None):
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if ticks:
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.minorticks_off()


def save(figure, folder, name):
    figure.tight_layout()
    figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    print(folder / name)


def rates_over(results, folder, names, x, file):
    """`names`: {value: name of the run, with {} for the model}."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7))
    series = {model: results.series({v: name.format(model) for v, name in names.items()})
              for model in NAMES}
    for model, points in series.items():
        label, colour, marker = NAMES[model]
        left.plot([v for v, _ in points], [r["decode_tokens_per_s"] for _, r in points],
                  marker=marker, color=colour, label=label)
    plain = dict(series["vanilla"])
    for key, label, colour, marker in (
        ("decode_tokens_per_s", "generating", "#009e73", "o"),
        ("output_tokens_per_s", "prompt included", "#cc79a7", "^"),
    ):
        both = [(v, r[key] / plain[v][key]) for v, r in series["block"] if v in plain]
        right.plot([v for v, _ in both], [ratio for _, ratio in both], marker=marker, color=colour,
                   label=label)
    right.axhline(1, color="#333333", linewidth=0.8)
    ticks = [v for v, _ in series["block"]]
    for axes in (left, right):
        if ticks:
            axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    finish(left, "tokens per second while generating", x, "tokens/s", ticks)
    finish(right, "block against plain", x, "times as fast", ticks)
    save(figure, folder, file)


def over_length(results, folder):
    names = {length: f"length-{length}-block" for length in (1, 2, 4, 8, 16)}
    names[4] = "batch-64-block"
    points = results.series(names)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7))
    lengths = [v for v, _ in points]
    left.plot(lengths, [r["decode_tokens_per_s"] for _, r in points], marker="o", color=BLOCK,
              label="block transformer")
    plain = results.get("batch-64-vanilla")
    if plain:
        left.axhline(plain["decode_tokens_per_s"], color=PLAIN, linestyle="--",
                     label="plain transformer")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    bottom = [0.0] * len(points)
    for part, colour in zip(PARTS, COLOURS):
        heights = [next((p["us_per_token"] for p in r["decode"]["parts"] if p["part"] == part), 0)
                   for _, r in points]
        right.bar([str(v) for v in lengths], heights, bottom=bottom, color=colour, label=part)
        bottom = [a + b for a, b in zip(bottom, heights)]
    right.legend(frameon=False, fontsize=8, loc="upper right")
    if lengths:
        left.set_xscale("log", base=2)
    finish(left, "tokens per second while generating", "block length L, tokens", "tokens/s",
           lengths)
    finish(right, "where the time of a token goes", "block length L, tokens", "µs per token")
    save(figure, folder, "block_length.svg")


def kv(results, folder):
    bars = []
    for model, label, colour in (("block", "block", BLOCK), ("vanilla", "plain", PLAIN)):
        result = results.get(f"batch-64-{model}")
        if result:  # measured in float32; bfloat16 halves it
            per_token, length = (result["model"][key] for key in
                                 ("kv_bytes_per_token", "block_length"))
            bars += [(f"{label}, f32", per_token, length, colour),
                     (f"{label}, bf16", per_token / 2, length, colour)]
    bars = bars[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2))
    for axes, title, unit, value in (
        (left, "KV cache of a token of text", "kB", lambda kv, length: kv / 1e3),
        (right, "read for a generated token, 1,000 before it", "MB",
         lambda kv, length: kv * 1000 / length / 1e6),
    ):
        values = [value(kv, length) for _, kv, length, _ in bars]
        axes.barh([label for label, *_ in bars], values, color=[bar[3] for bar in bars])
        for i, v in enumerate(values):
            axes.text(v, i, f" {v:.1f}" if v >= 10 else f" {v:.2f}", va="center", fontsize=9)
        axes.set_xlim(0, max(values, default=1) * 1.18)
        finish(axes, title, unit, "")
    save(figure, folder, "kv_cache.svg")


def where_time_goes(results, folder):
    rows = [("block, 64 sequences", "batch-64-block"),
            ("block, one sequence", "row-128-512-1-block"),
            ("plain, 64 sequences", "batch-64-vanilla"),
            ("plain, one sequence", "row-128-512-1-vanilla")]
    rows = [(label, results.get(name)) for label, name in rows]
    rows = [(label, r) for label, r in rows if r][::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4))
    start = [0.0] * len(rows)
    for part, colour in zip(PARTS, COLOURS):
        widths = [100 * next((p["share_of_time"] for p in r["decode"]["parts"]
                              if p["part"] == part), 0) for _, r in rows]
        left.barh([label for label, _ in rows], widths, left=start, color=colour, label=part)
        start = [a + b for a, b in zip(start, widths)]
    left.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.28))
    start = [0.0] * len(rows)
    kinds = [("matrix_products_seconds", "matrix products", "#0072b2"),
             ("attention_seconds", "attention", "#d55e00"),
             ("norms_embeddings_and_copies_seconds", "norms, rotary, copies", "#009e73"),
             ("sampling_seconds", "sampling", "#cc79a7")]
    for key, label, colour in kinds:
        widths = [100 * r["decode"]["kinds_of_work"][key] / r["decode"]["seconds"]
                  for _, r in rows]
        right.barh([name for name, _ in rows], widths, left=start, color=colour, label=label)
        start = [a + b for a, b in zip(start, widths)]
    right.set_yticklabels([])
    right.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.28))
    finish(left, "generating, by part", "% of the time", "")
    finish(right, "by kind of work", "% of the time", "")
    save(figure, folder, "where_time_goes.svg")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "bench" / "results" / "zen4")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "performance")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.results)
    rates_over(results, args.out, {n: f"batch-{n}-{{}}" for n in (1, 4, 16, 64, 256, 512)},
               "sequences at once (prompt 128)", "batch_size.svg")
    rates_over(results, args.out,
               {128: "batch-4-{}", 512: "context-512-{}", 2048: "context-2048-{}",
                8192: "row-8192-128-4-{}"},
               "tokens of prompt (4 sequences)", "context_length.svg")
    over_length(results, args.out)
    kv(results, args.out)
    where_time_goes(results, args.out)


if __name__ == "__main__":
    main()
