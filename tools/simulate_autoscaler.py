#!/usr/bin/env python3
"""Plays a day of load against the autoscaler of the token tier, and shows what it decides.

The HorizontalPodAutoscaler's rule (Kubernetes documentation, "Algorithm details") with the metric and the
behaviour of k8s/components/hpa/token.yaml: rows that wait or run, per worker, as the gateways count them.
A metric wishes ceil(workers * value / target), within a tolerance of 10 % what is there; of several the
highest wish wins; on the way down the highest of the stabilisation window; and so many per cent per period
either way. A worker is modelled by a table of rows and milliseconds: with B rows in its batch it writes B
blocks in that time. --target-rows-waiting and --target-busy try other signals.

  tools/simulate_autoscaler.py --peak 200000 --steps steps.txt --svg day.svg
"""

import argparse
import json
import math
import random
import sys

DAY_S = 24 * 3600


def read_table(text: str) -> list:
    try:
        return [(1, float(text))]
    except ValueError:
        pass
    points = []
    try:
        with open(text, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                fields = line.split("#")[0].replace(",", " ").split()
                if fields:
                    rows, milliseconds = fields
                    points.append((int(rows), float(milliseconds)))
    except OSError as error:
        raise SystemExit(f"simulate_autoscaler: --steps {text}: {error.strerror}") from None
    except ValueError:
        raise SystemExit(f"simulate_autoscaler: --steps {text}:{number}: not a number of rows and milliseconds") \
            from None
    if not points:
        raise SystemExit(f"simulate_autoscaler: --steps {text} has no rows")
    return points


def step_ms(table: list, rows: float) -> float:
    if len(table) == 1 or rows <= table[0][0]:
        return table[0][1]
    for (r0, t0), (r1, t1) in zip(table, table[1:]):
        if rows <= r1:
            break
    return t0 + (t1 - t0) * (rows - r0) / (r1 - r0)


class Autoscaler:
    """autoscaling/v2 with the metrics whose target is above 0."""

    def __init__(self, options: argparse.Namespace, tolerance: float = 0.1):
        self.options, self.tolerance = options, tolerance
        self.wishes = []   # (time, workers)
        self.changes = []  # (time, difference)

    def wish(self, pods: int, per_pod: float, target: float) -> int:
        ratio = per_pod / target
        return pods if abs(ratio - 1) <= self.tolerance else math.ceil(pods * ratio - 1e-9)

    def decide(self, now: float, pods: int, rows_waiting: float, busy: float,
               rows_running: float) -> int:
        o = self.options
        wish = max(self.wish(pods, per_worker, target) for per_worker, target in (
            ((rows_waiting + rows_running) / pods, o.target_rows),
            (rows_waiting / pods, o.target_rows_waiting),
            (busy, o.target_busy)) if target > 0)
        self.wishes = [(t, w) for t, w in self.wishes if t > now - o.down_window]
        self.wishes.append((now, wish))
        if wish < pods:
            wish = min(pods, max(w for _, w in self.wishes))
        if wish > pods:
            begun = pods - sum(d for t, d in self.changes if d > 0 and t > now - o.up_period)
            wish = min(wish, math.ceil(begun * (1 + o.up_share)))
        elif wish < pods:
            begun = pods - sum(d for t, d in self.changes if d < 0 and t > now - o.down_period)
            wish = max(wish, math.floor(begun * (1 - o.down_share)))
        wish = max(o.least, min(o.most, wish))
        if wish != pods:
            self.changes = [(t, d) for t, d in self.changes if t > now - 3600]
            self.changes.append((now, wish - pods))
        return wish


def offered(now: float, peak: float, bumps: list) -> float:
    """Tokens per second: a night's valley, two humps of a working day, and sudden crowds."""
    hour = now / 3600
    day = (0.12 + 0.62 * math.exp(-((hour - 10.5) / 2.6) ** 2)
           + 0.8 * math.exp(-((hour - 16) / 3) ** 2))
    crowd = sum(height for begin, end, height in bumps if begin <= now < end)
    return peak * min(1.3, day + crowd)


def play(options: argparse.Namespace) -> list:
    table = read_table(options.steps)
    best = max(rows / step_ms(table, rows) for rows in range(1, options.max_rows + 1))
    generator = random.Random(options.seed)
    bumps = [(3.5 * 3600, 3.5 * 3600 + 900, 0.3), (13 * 3600, 13 * 3600 + 1200, 0.45)]
    scaler = Autoscaler(options)
    # The night before went well.
    needed = offered(0, options.peak, bumps) / options.block_length / (best * 1000)
    pods, starting, waiting, seen = max(options.least, math.ceil(1.5 * needed)), [], 0.0, []
    for now in range(0, DAY_S):
        starting = [t for t in starting if t > now]
        ready = max(1, pods - len(starting))
        blocks = offered(now, options.peak, bumps) / options.block_length
        blocks = max(0.0, blocks * (1 + generator.gauss(0, 0.05)))
        arriving = waiting + blocks
        done = min(arriving, ready * best * 1000)
        waiting = arriving - done
        per_worker = done / ready / 1000  # rows per ms
        # A worker takes what waits: below one row per step it idles between steps, above it its
        # batches grow instead.
        busy = min(1.0, per_worker * step_ms(table, 1))
        batch = batch_for(table, per_worker, options.max_rows) if busy >= 1 else 1.0
        if now % options.interval == 0:
            wish = scaler.decide(now, pods, waiting, busy, ready * batch * busy)
            if wish > pods:
                starting += [now + options.start_s] * (wish - pods)
            elif wish < pods:
                starting = sorted(starting)[:max(0, len(starting) - (pods - wish))]
            pods = wish
        seen.append({"offered_tokens_per_s": blocks * options.block_length,
                     "done_tokens_per_s": done * options.block_length, "workers": pods,
                     "busy": busy, "batch": batch, "waiting": waiting,
                     "delay_ms": 1000 * waiting / (ready * best * 1000) + step_ms(table, batch),
                     "needed": blocks / (best * 1000)})
    return seen


def batch_for(table: list, rows_per_ms: float, most: int) -> float:
    """Rows in the batch of a worker that is given so many rows per millisecond."""
    low, high = 0.0, float(most)
    for _ in range(30):
        middle = (low + high) / 2
        if middle / step_ms(table, max(middle, 1)) < rows_per_ms:
            low = middle
        else:
            high = middle
    return high


def summary(seen: list, options: argparse.Namespace) -> dict:
    changes = sum(1 for a, b in zip(seen, seen[1:]) if a["workers"] != b["workers"])
    worker_hours = sum(one["workers"] for one in seen) / 3600
    delays = sorted(one["delay_ms"] for one in seen)
    turns = [b["workers"] - a["workers"] for a, b in zip(seen, seen[1:])
             if a["workers"] != b["workers"]]
    return {
        "peak_tokens_per_s": options.peak,
        "worker_hours": round(worker_hours, 1),
        "worker_hours_if_always_at_most": round(max(o["workers"] for o in seen) * 24, 1),
        "worker_hours_needed": round(sum(o["needed"] for o in seen) / 3600, 1),
        "batch_p50": round(sorted(o["batch"] for o in seen)[len(seen) // 2], 1),
        "workers_least": min(o["workers"] for o in seen),
        "workers_most": max(o["workers"] for o in seen),
        "decisions": changes,
        "turns": sum(1 for a, b in zip(turns, turns[1:]) if a * b < 0),
        "delay_ms_p50": round(delays[len(delays) // 2], 1),
        "delay_ms_p99": round(delays[int(len(delays) * 0.99)], 1),
        "delay_ms_max": round(delays[-1], 1),
        "seconds_with_more_than_1_s_of_delay": sum(1 for d in delays if d > 1000),
    }


def svg(seen: list) -> str:
    width, height, left, right = 760, 300, 70, 20
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {2 * height}" '
             f'width="{width}" font-family="system-ui,sans-serif" font-size="12">',
             f'<rect width="{width}" height="{2 * height}" fill="#fff"/>']

    def chart(top: int, title: str, series: list) -> None:
        base, upper = top + height - 40, top + 50
        high = max(max(values) for _, values, _ in series)
        step = 10 ** math.floor(math.log10(high / 4))
        step = next(step * f for f in (1, 2, 5, 10) if step * f >= high / 5)
        high = math.ceil(high / step) * step
        parts.append(f'<text x="{left}" y="{top + 18}" font-size="14" font-weight="600">{title}</text>')
        for i in range(int(round(high / step)) + 1):
            y = base - (base - upper) * i * step / high
            parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" '
                         f'stroke="#000" stroke-opacity=".12"/><text x="{left - 8}" y="{y + 4:.1f}" '
                         f'text-anchor="end">{i * step:g}</text>')
        for hour in range(0, 25, 3):
            x = left + (width - left - right) * hour / 24
            parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{hour}:00</text>')
        at = left
        for name, values, colour in series:
            path = ""
            for index in range(0, len(values), 60):
                x = left + (width - left - right) * index / len(values)
                y = base - (base - upper) * values[index] / high
                path += f'{"M" if not path else "L"}{x:.1f} {y:.1f}'
            parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            parts.append(f'<line x1="{at}" x2="{at + 18}" y1="{top + 36}" y2="{top + 36}" '
                         f'stroke="{colour}" stroke-width="3"/><text x="{at + 24}" '
                         f'y="{top + 40}">{name}</text>')
            at += 24 + 7 * len(name) + 20

    chart(0, "Tokens per second", [
        ("offered", [o["offered_tokens_per_s"] for o in seen], "#3b7dd8"),
        ("written", [o["done_tokens_per_s"] for o in seen], "#d9772b")])
    chart(height, "Token workers", [
        ("asked for by the autoscaler", [o["workers"] for o in seen], "#3b7dd8"),
        ("needed at full batches", [o["needed"] for o in seen], "#2f9e6e")])
    parts.append("</svg>")
    return "\n".join(parts)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=200_000, help="tokens/s of the day's peak")
    parser.add_argument("--block-length", type=int, default=4)
    parser.add_argument("--steps", default="20", help="table of rows and ms, or one number of ms")
    parser.add_argument("--max-rows", type=int, default=64)
    parser.add_argument("--target-rows", type=float, default=24,
                        help="rows waiting and running, per worker; 0: not used (default: %(default)g)")
    parser.add_argument("--target-rows-waiting", type=float, default=0, help="as above")
    parser.add_argument("--target-busy", type=float, default=0, help="as above")
    parser.add_argument("--least", type=int, default=2)
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--interval", type=int, default=15, help="s between two decisions")
    parser.add_argument("--start-s", type=float, default=20, help="until a new worker is ready")
    parser.add_argument("--up-share", type=float, default=1.0, help="of the workers, per period")
    parser.add_argument("--up-period", type=float, default=15, help="s")
    parser.add_argument("--down-window", type=float, default=300, help="stabilisation, s")
    parser.add_argument("--down-share", type=float, default=0.2, help="of the workers, per period")
    parser.add_argument("--down-period", type=float, default=30, help="s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--svg", default="")
    options = parser.parse_args(arguments)
    if max(options.target_rows, options.target_rows_waiting, options.target_busy) <= 0:
        parser.error("one of the targets has to be above 0")
    for name in ("peak", "block_length", "max_rows", "least", "interval", "up_period", "down_period"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} has to be above 0")
    seen = play(options)
    print(json.dumps(summary(seen, options), indent=1))
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as out:
            out.write(svg(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
