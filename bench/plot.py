#!/usr/bin/env python3
"""Draws bench/results/*.json as the pictures of docs/performance.md (needs matplotlib).

  bench/plot.py [--results bench/results] [--out docs/performance]
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

    def series(self, pattern, values):
        """[(value, result)] of those that were measured."""
        found = [(value, self.get(pattern.format(value))) for value in values]
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
    figure.savefig(folder / name, metadata={"Date": None})
    plt.close(figure)
    print(folder / name)


def rates_over(results, folder, kind, values, x, name, key="decode_tokens_per_s", extra=None):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7))
    series = {m: results.series(f"{kind}-{{}}-{m}", values) for m in NAMES}
    for model, points in series.items():
        label, colour, marker = NAMES[model]
        if points:
            left.plot([v for v, _ in points], [r[key] for _, r in points], marker=marker,
                      color=colour, label=label)
    plain = dict(series["vanilla"])
    both = [(v, r[key] / plain[v][key]) for v, r in series["block"] if v in plain]
    whole = [(v, r["output_tokens_per_s"] / plain[v]["output_tokens_per_s"])
             for v, r in series["block"] if v in plain]
    right.plot(*zip(*both), marker="o", color="#009e73", label="generating")
    right.plot(*zip(*whole), marker="^", color="#cc79a7", label="prompt included")
    right.axhline(1, color="#333333", linewidth=0.8)
    ticks = [v for v, _ in series["block"]]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    finish(left, "tokens per second while generating", x, "tokens/s", ticks)
    finish(right, "block against plain", x, "times as fast", ticks)
    save(figure, folder, name)


def over_length(results, folder):
    points = results.series("length-{}-block", [1, 2, 4, 8, 16])
    if not points:
        return
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
    left.set_xscale("log", base=2)
    finish(left, "tokens per second while generating", "block length L, tokens", "tokens/s",
           lengths)
    finish(right, "where the time of a token goes", "block length L, tokens", "µs per token")
    save(figure, folder, "block_length.svg")


def kv(results, folder):
    names = [("block-f32", "block, f32", BLOCK), ("vanilla-f32", "plain, f32", PLAIN),
             ("block-bf16", "block, bf16", BLOCK), ("vanilla-bf16", "plain, bf16", PLAIN)]
    bars = [(label, results.get(f"row-128-512-64-{n}"), colour) for n, label, colour in names]
    bars = [(label, r, colour) for label, r, colour in bars if r]
    if not bars:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2))
    for axes, title, value in (
        (left, "KV cache of a token of text", lambda r: r["model"]["kv_bytes_per_token"] / 1e3),
        (right, "read for a generated token at 1,000 tokens of context",
         lambda r: r["model"]["kv_bytes_per_token"] * 1000 / r["model"]["block_length"] / 1e6),
    ):
        values = [value(r) for _, r, _ in bars]
        labels = [label for label, _, _ in bars][::-1]
        axes.barh(labels, values[::-1], color=[c for _, _, c in bars][::-1])
        for i, v in enumerate(values[::-1]):
            axes.text(v, i, f" {v:.1f}" if v >= 10 else f" {v:.2f}", va="center", fontsize=9)
        axes.set_xlim(0, max(values) * 1.18)
        finish(axes, title, "kB" if axes is left else "MB", "")
    save(figure, folder, "kv_cache.svg")


def where_time_goes(results, folder):
    rows = [("block", "row-128-512-64-block-f32"), ("block, one sequence", "row-128-512-1-block-f32"),
            ("plain", "row-128-512-64-vanilla-f32"),
            ("plain, one sequence", "row-128-512-1-vanilla-f32")]
    rows = [(label, results.get(name)) for label, name in rows]
    rows = [(label, r) for label, r in rows if r][::-1]
    if not rows:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4))
    start = [0.0] * len(rows)
    for part, colour in zip(PARTS, COLOURS):
        widths = [100 * next((p["share_of_time"] for p in r["decode"]["parts"]
                              if p["part"] == part), 0) for _, r in rows]
        left.barh([label for label, _ in rows], widths, left=start, color=colour, label=part)
        start = [a + b for a, b in zip(start, widths)]
    left.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.4, -0.62))
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
    right.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, -0.62))
    finish(left, "generating, by part", "% of the time", "")
    finish(right, "by kind of work", "% of the time", "")
    save(figure, folder, "where_time_goes.svg")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "bench" / "results")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "performance")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.results)
    rates_over(results, args.out, "batch", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
               "sequences at once (prompt 128)", "batch_size.svg")
    rates_over(results, args.out, "context", [128, 512, 2048, 8192],
               "tokens of prompt (4 sequences)", "context_length.svg")
    over_length(results, args.out)
    kv(results, args.out)
    where_time_goes(results, args.out)


if __name__ == "__main__":
    main()
