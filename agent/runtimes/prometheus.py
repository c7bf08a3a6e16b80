"""The Prometheus text format: the samples that were asked for, with their labels.

Own code, because prometheus_client takes 12 times the CPU and 2.7 MB (docs/runtimes.md), and fails on bad input in many ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

SAMPLES_MAX = 10_000
NUMBER_CHARACTERS_MAX = 64
NAME_END = re.compile(r"[{ \t]")
LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\\n]++|\\.)*+)"[ \t]*(,|(?=\}))', re.ASCII)
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|NaN|[+-]?Inf", re.ASCII)
TIMESTAMP = re.compile(r"-?[0-9]{1,18}", re.ASCII)
ESCAPED = re.compile(r"\\(.)")
ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line."""

    labels: Mapping[str, str]
    value: float
    unix_seconds: float | None = None
    """When it was taken, where the server says so."""

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it carries all of them."""
        return all(self.labels.get(name) == value for name, value in labels.items())


class Exposition:
    """The samples of some names."""

    def __init__(self, samples: Mapping[str, list[Sample]], counters: Collection[str]) -> None:
        self.samples = samples
        self._counters = counters

    def total(self, name: str, **labels: str) -> float | None:
        """A counter, summed over the samples with these labels. Without any it is 0 if it is declared, else unknown.

        Raises ValueError on a sample that is no finite number from 0 on.
        """
        found = [sample.value for sample in self.samples.get(name, ()) if sample.has(labels)]
        if not math.isfinite(sum(found)) or min(found, default=0) < 0:
            raise ValueError(f"{name}: not a total")
        return sum(found) if found or name in self._counters else None

    def gauges(self, name: str, **labels: str) -> list[float]:
        """The samples of a gauge with these labels that are numbers."""
        return [s.value for s in self.samples.get(name, ()) if s.has(labels) and math.isfinite(s.value)]

    def gauge(self, name: str, **labels: str) -> float | None:
        """Their sum; None where there is none."""
        found = self.gauges(name, **labels)
        return sum(found) if found else None

    def age_seconds(self, now_unix_seconds: float) -> float | None:
        """Since the newest of the samples was taken; None where no timestamps are given."""
        stamps = [s.unix_seconds for found in self.samples.values() for s in found if s.unix_seconds is not None]
        return max(0.0, now_unix_seconds - max(stamps)) if stamps else None


def parse(body: bytes, names: Collection[str]) -> Exposition:
    """The samples of these names; whatever else is there is skipped. Raises ValueError, and nothing else."""
    samples: dict[str, list[Sample]] = {}
    counters = set()
    count = 0
    for line in body.decode().split("\n"):
        end = NAME_END.search(line)
        name = line[: end.start()] if end else line
        if name == "#":
            words = line.split(maxsplit=3)
            if len(words) == 4 and words[1] == "TYPE" and words[2] in names and words[3].strip() == "counter":
                counters.add(words[2])
        elif name in names:
            count += 1
            if count > SAMPLES_MAX:
                raise ValueError(f"more than {SAMPLES_MAX} samples")
            samples.setdefault(name, []).append(_sample(line, len(name)))
    return Exposition(samples, counters)


def _sample(line: str, at: int) -> Sample:
    labels: dict[str, str] = {}
    rest = line[at:].lstrip(" \t")
    if rest.startswith("{"):
        labels, rest = _labels(rest)
    words = rest.split()
    if not 1 <= len(words) <= 2 or len(words[0]) > NUMBER_CHARACTERS_MAX or not NUMBER.fullmatch(words[0]):
        raise ValueError(f"not a sample: {line[:200]!r}")
    if len(words) == 1:
        return Sample(labels, float(words[0]))
    if not TIMESTAMP.fullmatch(words[1]):
        raise ValueError(f"not a timestamp: {line[:200]!r}")
    return Sample(labels, float(words[0]), int(words[1]) / 1000)


def _labels(text: str) -> tuple[dict[str, str], str]:
    """What is between the braces that `text` begins with, and what comes after them."""
    labels: dict[str, str] = {}
    at = 1
    while found := LABEL.match(text, at):
        value = found[2]
        labels[found[1]] = ESCAPED.sub(_unescape, value) if "\\" in value else value
        at = found.end()
    rest = text[at:].lstrip(" \t")
    if not rest.startswith("}"):
        raise ValueError(f"not labels: {text[:200]!r}")
    return labels, rest[1:]


def _unescape(found: re.Match[str]) -> str:
    return ESCAPES.get(found[1], found[0])
