"""A disk that is busy with the reads of others: schedulers let reads pass writes, so writes would hardly delay them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.e2e.campaign.cannot import Cannot
from tests.e2e.campaign.present import present
from tests.e2e.fleet import Instance

_FEATURES_BYTES = 16 << 20
_FILE_BYTES = 128 << 20
# It ends with its parent, even if that is killed.
_READ = """
import mmap, os, random, sys, threading
name, size, readers, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 1 << 20
file = os.open(name, os.O_RDONLY | os.O_DIRECT)
parent = os.getppid()
def read():
    block = mmap.mmap(-1, at_once)
    while os.getppid() == parent:
        os.preadv(file, [block], random.randrange(size // at_once) * at_once)
for _ in range(readers):
    threading.Thread(target=read).start()
"""


def features(instances: Sequence[Instance]) -> AbstractContextManager[None]:
    """From now on each request reads some pages from the disk: else no instance would notice what the disk does."""
    return present([instance.features for instance in instances], lambda: os.urandom(_FEATURES_BYTES))


@contextmanager
def saturated(directory: Path, readers: int = 8) -> Iterator[None]:
    """This many threads read from the disk of `directory`, each as fast as it gives. Raises Cannot."""
    file = directory / "saturated"
    file.write_bytes(os.urandom(_FILE_BYTES))
    try:
        try:
            os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            raise Cannot(f"{directory} is on a file system without direct reads: {error.strerror}") from error
        command = [sys.executable, "-c", _READ, str(file), str(_FILE_BYTES), str(readers)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()
    finally:
        file.unlink()
