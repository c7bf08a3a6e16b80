"""What a runtime says since it started, turned into what happened in one window: of the instance, and of each of its models."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.agent.counters import Rise
from trimtab.agent.registry import Instance, Kind, Reading, Signal
from trimtab.agent.runtimes.vocabulary import SCORE_BINS, Model, Scrape, Spent, Vitals
from trimtab.agent.wire.columns import TEXT_MAX

MODELS_MAX = 64
"""Models of one instance that are subjects of their own."""

GAUGES: dict[str, tuple[str, str, Callable[[Vitals], float | None]]] = {
    "requests_executing": ("1", "requests that are worked on, as the runtime counts them", lambda v: v.in_flight),
    "queue_depth": ("1", "requests that wait to be worked on", lambda v: v.queue_depth),
    "queue_max": ("1", "requests that may wait before others are turned away", lambda v: v.capacity.queue_max),
    "workers_min": ("1", "workers that are kept at least", lambda v: v.capacity.workers_min),
    "workers_max": ("1", "workers that are started at most", lambda v: v.capacity.workers_max),
    "batch_size_max": ("1", "requests that are executed together at most", lambda v: v.capacity.batch_size_max),
    "batch_delay_max_seconds": (
        "s",
        "how long a request may wait for others to fill its batch",
        lambda v: v.capacity.batch_delay_seconds_max,
    ),
    "cache_used_ratio": (
        "1",
        "share of the memory for running requests that is taken (KV cache)",
        lambda v: v.capacity.cache_used_ratio,
    ),
    "runtime_age_seconds": ("s", "how old what the runtime says is, where that is known", lambda v: v.age_seconds),
}
RATES: dict[str, tuple[str, Callable[[Vitals], float | None]]] = {
    "predictions_per_second": ("predictions asked for", lambda v: v.latency.requests),
    "errors_per_second": ("answers 5xx, or what the runtime has instead", lambda v: v.errors.server),
    "client_errors_per_second": ("answers 4xx", lambda v: v.errors.client),
}
MEANS: dict[str, tuple[str, str, Callable[[Vitals], tuple[float, float] | None]]] = {
    "inference_latency_seconds": (
        "s",
        "mean time of a prediction, without the queue",
        lambda v: _pair(v.latency.inference),
    ),
    "queue_latency_seconds": ("s", "mean time of a prediction in the queue", lambda v: _pair(v.latency.queue)),
    "first_token_latency_seconds": (
        "s",
        "mean time from a request to the first token of its answer",
        lambda v: _pair(v.latency.first_token),
    ),
    "batch_size_mean": (
        "1",
        "predictions that were executed together, on average",
        lambda v: (
            None if v.capacity.batches is None else (v.capacity.batches.inferences, v.capacity.batches.executions)
        ),
    ),
}


def _of_bin(number: int) -> Callable[[Vitals], float | None]:
    return lambda vitals: None if vitals.predictions is None else vitals.predictions[number]


SCORES: dict[str, tuple[str, Callable[[Vitals], float | None]]] = {
    f"predictions_bin_{k}_per_second": (f"predictions with a score in bin {k}, as the handler counts them", _of_bin(k))
    for k in range(SCORE_BINS)
}
"""Of models alone."""


def _pair(spent: Spent | None) -> tuple[float, float] | None:
    return None if spent is None else (spent.seconds, spent.requests)


def _rates(kind: Kind) -> dict[str, tuple[str, Callable[[Vitals], float | None]]]:
    return RATES | SCORES if kind == "model" else RATES


def signals(kind: Kind) -> tuple[Signal, ...]:
    """What `Subject` reports of an instance or a model."""
    return (
        *(Signal(name, unit, told, kind) for name, (unit, told, _) in GAUGES.items()),
        *(Signal(name, "1/s", told, kind, rate=True) for name, (told, _) in _rates(kind).items()),
        *(Signal(name, unit, told, kind) for name, (unit, told, _) in MEANS.items()),
    )


class Subject:
    """One instance or model, from window to window. Remembers only the last totals."""

    def __init__(self) -> None:
        self._rise: Rise[str] = Rise()

    def report(self, reading: Reading, kind: Kind, subject: str, vitals: Vitals) -> None:
        """A mean is known only in a window in which something ended."""
        for name, (_, _, gauge) in GAUGES.items():
            reading.set(kind, subject, name, gauge(vitals))
        rates = _rates(kind)
        totals = {name: total(vitals) for name, (_, total) in rates.items()}
        for name, (_, _, mean) in MEANS.items():
            totals[name], totals[f"{name} of"] = mean(vitals) or (None, None)
        rose = self._rise.since({name: value for name, value in totals.items() if value is not None})
        for name in rates:
            if name in rose:
                reading.set(kind, subject, name, rose[name] / reading.seconds)
        for name in MEANS:
            if name in rose and rose.get(f"{name} of"):
                reading.set(kind, subject, name, rose[name] / rose[f"{name} of"])


class Report:
    """An instance and its models, from window to window."""

    def __init__(self) -> None:
        self._whole = Subject()
        self._models: dict[str, Subject] = {}

    def report(self, reading: Reading, instance: Instance, scrape: Scrape) -> None:
        """Fill in all but the workers."""
        self._whole.report(reading, "instance", instance.id, scrape.whole)
        models = {} if scrape.models is None else named(instance, scrape.models)
        self._models = {subject: self._models.get(subject) or Subject() for subject in models}
        for subject, model in models.items():
            self._models[subject].report(reading, "model", subject, model.vitals)
            labels = {"instance": instance.id, "runtime": instance.runtime, "model": model.name}
            reading.label("model", subject, **labels, **({"version": model.version} if model.version else {}))


def named(instance: Instance, models: tuple[Model, ...]) -> dict[str, Model]:
    """By subject: "INSTANCE/MODEL", with its version where there are several of it."""
    names = [model.name for model in models]
    out = {}
    for model in models[:MODELS_MAX]:
        parts = [instance.id, model.name, *([model.version] if names.count(model.name) > 1 else [])]
        if len(subject := "/".join(parts)) <= TEXT_MAX:
            out[subject] = model
    return out
