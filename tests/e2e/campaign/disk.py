"""A disk that is busy with the writes of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.e2e.campaign.cannot import Cannot
from tests.e2e.fleet import Instance

_FEATURES_BYTES = 16 << 20
_FILE_BYTES = 128 << 20
# It ends with its parent, even if that is killed.
_WRITE = """
import mmap, os, random, sys, threading
file, size, writers, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 1 << 20
block = mmap.mmap(-1, at_once)
block.write(os.urandom(at_once))
out = os.open(file, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
parent = os.getppid()
def write():
    while os.getppid() == parent:
        os.pwritev(out, [block], random.randrange(size // at_once) * at_once)
for _ in range(writers):
    threading.Thread(target=write).start()
"""


@contextmanager
def features(instances: Sequence[Instance]) -> Iterator[None]:
    """From now on each request reads some pages from the disk: else no instance would notice what the disk does."""
    with ExitStack() as stack:
        for instance in instances:
            stack.callback(instance.features.unlink, missing_ok=True)
            new = instance.features.with_suffix(".new")
            new.write_bytes(os.urandom(_FEATURES_BYTES))
            new.rename(instance.features)
        yield


@contextmanager
def saturated(directory: Path, writers: int = 64) -> Iterator[None]:
    """This many threads write to the disk of `directory`, each as fast as it takes it. Raises Cannot."""
    file = directory / "saturated"
    with file.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, _FILE_BYTES)
    try:
        try:
            os.close(os.open(file, os.O_WRONLY | os.O_DIRECT))
        except OSError as error:
            raise Cannot(f"{directory} is on a file system without direct writes: {error.strerror}") from error
        command = [sys.executable, "-c", _WRITE, str(file), str(_FILE_BYTES), str(writers)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()
    finally:
        file.unlink()
