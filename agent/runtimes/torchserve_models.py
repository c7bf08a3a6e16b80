"""What TorchServe's management API says of its models and workers."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from trimtab.agent.runtimes.process import resident_bytes


class NamedModel(msgspec.Struct, rename="camel"):
    """One line of the list of models."""

    model_name: str


class ModelPage(msgspec.Struct, rename="camel"):
    """The list of models."""

    models: list[NamedModel]
    next_page_token: str = ""


class ModelWorker(msgspec.Struct, rename="camel"):
    """One worker, as it is described."""

    id: str
    status: str
    pid: int = -1
    gpu: bool = False
    gpu_usage: str = ""
    memory_usage: float = 0


class JobQueue(msgspec.Struct, rename="camel"):
    """Where requests of one model wait."""

    pending_requests: int
    remaining_capacity: int | None = None


class ModelVersion(msgspec.Struct, rename="camel"):
    """One version of one model, as it is described."""

    model_name: str
    model_version: str
    workers: list[ModelWorker]
    job_queue_status: JobQueue
    min_workers: int | None = None
    max_workers: int | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    """Milliseconds."""


@dataclass(frozen=True, slots=True)
class Description:
    """All models, as they were at one moment."""

    versions: tuple[ModelVersion, ...]
    at: float
    """Monotonic seconds."""
    pids: dict[int, int | None] = field(default_factory=dict)
    """By the pid that a worker is named by: its pid on this host, where it was found."""

    @property
    def costly(self) -> bool:
        """Whether to describe it once more starts processes on the host."""
        return any(worker.gpu for version in self.versions for worker in version.workers)

    @property
    def well(self) -> bool:
        """Whether all workers were ready, and still live as far as can be seen."""
        workers = [worker for version in self.versions for worker in version.workers]
        return all(worker.status == "READY" and self.lives(worker) for worker in workers)

    def lives(self, worker: ModelWorker) -> bool:
        """Whether its process is there; True where it cannot be seen."""
        pid = self.pids.get(worker.pid)
        return pid is None or resident_bytes(pid) is not None
