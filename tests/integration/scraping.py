"""Reads what a program shows at /metrics, with prometheus-client's own parser."""

from __future__ import annotations

import re
import urllib.request

import harness
from prometheus_client import parser


class Scraped:
    """The metrics of one program at one moment."""

    def __init__(self, text: str):
        self.families = list(parser.text_string_to_metric_families(text))
        self._values: dict[tuple, float] = {}
        for family in self.families:
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self._values, f"{key} is there twice"
                self._values[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self._values[(name, frozenset(labels.items()))]

    def total(self, name: str) -> float:
        """Over all labels."""
        return sum(value for (sample, _), value in self._values.items() if sample == name)

    def kinds(self) -> dict[str, str]:
        """Kind by metric name, as the program spells it: the parser takes _total off counters."""
        return {family.name + ("_total" if family.type == "counter" else ""): family.type
                for family in self.families
                if family.name.startswith(("blockserve_", "process_"))}

    def labels(self) -> dict[str, set[str]]:
        """Label names by metric name, of metrics that have samples."""
        found: dict[str, set[str]] = {}
        for family in self.families:
            name = family.name + ("_total" if family.type == "counter" else "")
            for sample in family.samples:
                found.setdefault(name, set()).update(set(sample.labels) - {"le"})
        return found


def scrape(server: harness.Server) -> Scraped:
    """Of a program that was started with --metrics-listen=127.0.0.1:0."""
    found = re.search(r"metrics on (127\.0\.0\.1:\d+)", server.wait_for_log("metrics on 127.0.0.1:"))
    with urllib.request.urlopen(f"http://{found[1]}/metrics", timeout=30) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        return Scraped(response.read().decode("utf-8"))
