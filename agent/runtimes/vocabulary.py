"""The words in which every serving runtime is told: in-flight, queue, latency, errors, workers, capacity, freshness.

None is unknown, and never means 0. What is called a total counts since the runtime started.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """Time that requests took altogether. Both are totals, of the same requests: a histogram's sum and count."""

    seconds: float
    requests: float


@dataclass(frozen=True, slots=True)
class Latency:
    """How many requests there were, and where their time went."""

    requests: float | None = None
    """Total asked for."""
    inference: Spent | None = None
    """Without the queue."""
    queue: Spent | None = None
    first_token: Spent | None = None
    """From the arrival of the request to the first token of its answer."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Totals of requests that failed."""

    server: float | None = None
    """Through the server's fault: answers 5xx, or what the runtime has instead."""
    client: float | None = None
    """Through the client's fault: answers 4xx."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Totals of what was executed together: inferences / executions is the batch size in effect."""

    inferences: float
    executions: float


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of the runtime that runs a model."""

    id: str
    """Stays the same when the process is replaced: "MODEL/VERSION/WORKER"."""
    pid: int | None
    """As the runtime names it, which in a container is not as the host does."""
    ready: bool
    model: str = ""
    version: str = ""
    memory_bytes: float | None = None
    """Resident."""
    device: str = ""
    """"cpu", or which GPU; empty where unknown."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is room for."""

    workers_min: float | None = None
    workers_max: float | None = None
    queue_max: float | None = None
    """Requests that may wait before others are turned away."""
    batch_size_max: float | None = None
    batch_delay_seconds_max: float | None = None
    """How long a request may wait for others to fill its batch."""
    batches: Batches | None = None
    cache_used_ratio: float | None = None
    """Share of the memory for running requests that is taken."""


SCORE_BINS = 8


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known of an instance, or of one model of it."""

    in_flight: float | None = None
    """Requests that are worked on, without those that wait."""
    queue_depth: float | None = None
    """Requests that wait to be worked on."""
    latency: Latency = Latency()
    errors: Errors = Errors()
    workers: tuple[Worker, ...] | None = None
    capacity: Capacity = Capacity()
    age_seconds: float | None = None
    """Freshness: how old the oldest part of this is that is not read anew each time. None: the runtime does not say."""
    predictions: tuple[float, ...] | None = None
    """Totals by bin of their score, `SCORE_BINS` of them; of a model only."""


@dataclass(frozen=True, slots=True)
class Model:
    """One version of one model."""

    name: str
    version: str
    """Empty where the runtime has no versions."""
    vitals: Vitals


@dataclass(frozen=True, slots=True)
class Scrape:
    """What an instance said when it was asked."""

    whole: Vitals
    models: tuple[Model, ...] | None = None
    """Unique by name and version."""
