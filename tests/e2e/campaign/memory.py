"""Memory pressure: the instance's memory cgroup may hold less than the instance needs, so the kernel swaps it out and in."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.e2e.campaign.cannot import Cannot
from tests.e2e.campaign.present import present
from tests.e2e.confine import memory_cgroup
from tests.e2e.fleet import Instance

_SWAP_BYTES = 1 << 30
_EMBEDDINGS_BYTES = 256 << 20
_LOWER_SECONDS_MAX = 10.0


def embeddings(instances: Sequence[Instance]) -> AbstractContextManager[None]:
    """From now on each request reads here and there in a large table: else no instance would miss what is swapped out."""
    return present([instance.embeddings for instance in instances], lambda: str(_EMBEDDINGS_BYTES).encode())


@contextmanager
def swap(directory: Path) -> Iterator[None]:
    """A swap file in `directory`: without one, the kernel can only kill. Raises Cannot."""
    file = directory / "swap"
    with file.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, _SWAP_BYTES)
    file.chmod(0o600)
    try:
        _run("mkswap", str(file))
        _run("swapon", str(file))
        try:
            yield
        finally:
            _run("swapoff", str(file))
    finally:
        file.unlink()


@contextmanager
def pressure(instance: Instance, share: float = 0.2) -> Iterator[None]:
    """Let the instance hold `share` of the memory that it holds now. Raises Cannot.

    Of cgroup v1 this is a hard limit: the kernel may kill a worker that it cannot swap out fast enough.
    """
    group = memory_cgroup(instance)
    second = (group / "memory.high").exists()
    limit = group / ("memory.high" if second else "memory.limit_in_bytes")
    used = group / ("memory.current" if second else "memory.usage_in_bytes")
    before = limit.read_text()
    try:
        _lower(limit, int(share * int(used.read_text())))
        yield
    finally:
        limit.write_text(before)


def _lower(limit: Path, size: int) -> None:
    """Memory that is in use goes to the disk bit by bit: the kernel gives up on a limit before all of it is there."""
    deadline = time.monotonic() + _LOWER_SECONDS_MAX
    while True:
        try:
            limit.write_text(str(size))
        except OSError as error:
            if time.monotonic() > deadline:
                raise Cannot(f"{limit}: {error.strerror}") from error
            time.sleep(0.1)
        else:
            return


def _run(*command: str) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    if done.returncode:
        raise Cannot(f"{command[0]}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
