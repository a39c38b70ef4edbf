#!/usr/bin/env python3
"""Makes the runs behind docs/performance.md: one JSON file for each, in a folder for each machine.

  bench/measure.py --models DIR --results bench/results/MACHINE [--only WORD …] [--again] [--list]

DIR holds random models as tools/make_random_model.py writes them (bfloat16 unless the name ends in
_f32), each in a folder of the size's name; --make makes those that are missing. A run whose file is there is left alone unless --again is given.
--prefix CMD puts a command before each run, e.g. one that keeps the machine quiet for that time.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK, PLAIN = "block_main_b4_85", "vanilla_160"
# Comparisons: prompt, generate, sequences, and runs of the plain model, which takes up to ten times as
# long.
ROWS = [(128, 512, 64, 1), (128, 2048, 32, 1), (2048, 128, 16, 3), (8192, 128, 4, 3), (128, 512, 1, 5)]
# Those of a checkpoint in float32.
F32_ROWS = [(128, 512, 64), (8192, 128, 4), (128, 512, 1)]
BATCHES = [1, 4, 16, 64, 256, 512]
CONTEXTS = [512, 2048]
LENGTHS = [1, 2, 8, 16]


def run(name, model, prompt, generate, sequences, arithmetic="f32", repeat=1, more=()):
    flags = [f"--prompt={prompt}", f"--generate={generate}", f"--sequences={sequences}",
             f"--arithmetic={arithmetic}", f"--repeat={repeat}", *more]
    return name, model, flags


def all_runs(args):
    runs = []
    few = min(args.repeat, 3)
    for prompt, generate, sequences, plain_repeat in ROWS:
        row = f"row-{prompt}-{generate}-{sequences}"
        runs.append(run(f"{row}-block", BLOCK, prompt, generate, sequences, repeat=args.repeat))
        runs.append(run(f"{row}-vanilla", PLAIN, prompt, generate, sequences,
                        repeat=min(args.repeat, plain_repeat)))
        for arithmetic in ("bf16", "bf16dot", "int8"):
            runs.append(run(f"{row}-{arithmetic}-block", BLOCK, prompt, generate, sequences,
                            arithmetic, few))
    for prompt, generate, sequences in F32_ROWS:
        runs.append(run(f"stored-f32-{prompt}-{generate}-{sequences}-block", f"{BLOCK}_f32", prompt,
                        generate, sequences, repeat=few))
    for sequences in BATCHES:
        runs.append(run(f"batch-{sequences}-block", BLOCK, 128, 32, sequences, repeat=args.repeat))
        if sequences <= 256:  # more KV of the plain model than most machines have memory
            runs.append(run(f"batch-{sequences}-vanilla", PLAIN, 128, 32, sequences, repeat=few))
    for arithmetic in ("f32", "int8"):
        runs.append(run(f"avx2-{arithmetic}-block", BLOCK, 128, 32, 64, arithmetic, args.repeat,
                        ["--kernels=avx2"]))
    # On machines with AMX: what it gives.
    for arithmetic in ("bf16dot", "int8"):
        runs.append(run(f"avx512-{arithmetic}-block", BLOCK, 128, 512, 64, arithmetic, few,
                        ["--kernels=avx512"]))
    for prompt in CONTEXTS:
        runs.append(run(f"context-{prompt}-block", BLOCK, prompt, 128, 4, repeat=few))
        runs.append(run(f"context-{prompt}-vanilla", PLAIN, prompt, 128, 4))
    for length in LENGTHS:
        runs.append(run(f"length-{length}-block", f"{BLOCK}_L{length}", 128, 32, 64, repeat=args.repeat))
    runs.append(run("tiers-block", BLOCK, 128, 128, 64, repeat=args.repeat, more=["--tiers"]))
    runs.append(run("tiers-vanilla", PLAIN, 128, 64, 64, more=["--tiers"]))
    return runs


def make_model(folder):
    name, _, length = folder.name.removesuffix("_f32").partition("_L")
    dtype = "f32" if folder.name.endswith("_f32") else "bf16"
    command = [sys.executable, ROOT / "tools" / "make_random_model.py", "--out", folder, "--size",
               name, "--dtype", dtype, *(["--block-length", length] if length else [])]
    subprocess.run(command, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, help="folder of the models' folders")
    parser.add_argument("--make", action="store_true", help="make the models that are missing")
    parser.add_argument("--only", nargs="*", default=[], help="runs whose name begins so")
    parser.add_argument("--results", type=pathlib.Path, help="folder of the files")
    parser.add_argument("--again", action="store_true", help="also runs whose result is there")
    parser.add_argument("--list", action="store_true", help="print the runs and do nothing")
    parser.add_argument("--repeat", type=int, default=5,
                        help="runs of which the middle one is told; long ones are run once")
    parser.add_argument("--prefix", default="", help="command to put before each run")
    args = parser.parse_args()
    runs = [r for r in all_runs(args)
            if not args.only or any(r[0].startswith(word) for word in args.only)]
    if args.list:
        for name, model, flags in runs:
            print(f"{name:32} {model:20} {' '.join(flags)}")
        return 0
    if args.models is None or args.results is None:
        parser.error("--models and --results are both needed")
    program = ROOT / "build" / "bin" / "blockserve-bench"
    known = subprocess.run([program, "--version"], text=True, capture_output=True, check=True)
    failed = 0
    args.results.mkdir(parents=True, exist_ok=True)
    for name, model, flags in runs:
        file = args.results / f"{name}.json"
        arithmetic = next(f for f in flags if f.startswith("--arithmetic=")).split("=")[1]
        if arithmetic not in known.stdout.replace(",", " ").split():
            print(f"{name}: this build has no {arithmetic}", flush=True)
            continue
        if file.exists() and not args.again:
            continue
        if args.make and not (args.models / model / "config.json").exists():
            make_model(args.models / model)
        # Run where the models are: their names alone go into the command that results tell.
        result = subprocess.run(
            [*shlex.split(args.prefix), str(program), f"--model={model}", *flags, "--format=json"],
            cwd=args.models, text=True, capture_output=True)
        if result.returncode != 0:
            print(f"{name}: {result.stderr.strip() or result.returncode}", flush=True)
            failed += 1
            continue
        report = json.loads(result.stdout)
        file.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{name}: {report['output_tokens_per_s']:.1f} tokens/s, "
              f"{100 * report.get('share_of_peak', 0):.1f} % of peak, "
              f"disturbed {100 * report.get('share_of_time_without_a_core', 0):.1f} %", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
