"""An agent that is nothing but the product's spool and publisher: `python -m tests.collector.spooling_agent DIRECTORY NODE HOST:PORT`.

It makes windows until SIGTERM, each of a number of its own, then waits until all are acknowledged. Whenever it is killed, its
journal tells exactly what its spool holds. A line is written and synced *before* the window goes to the spool: spool, number in
the spool, number of the window, last one acknowledged. So of each life only the last line is in doubt, and the next life settles
it: it begins with a line that says where the spool ends.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.collector.made_window import make
from tests.collector.sender import hello
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.publish import Publisher
from trimtab.agent.settings import Tls
from trimtab.agent.spool import Spool

WINDOWS_PER_SECOND = 30
DRAIN_SECONDS = 60.0
SEGMENT_BYTES = 4096
SPOOL_BYTES_MAX = 256 << 20


class Journal:
    """Its writing end."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        # A kill can cut a line: what it announced never began.
        os.ftruncate(self._file, path.read_bytes().rfind(b"\n") + 1)

    def say(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())
        os.fdatasync(self._file)


@dataclass(slots=True)
class Told:
    """What a journal says."""

    kept: dict[tuple[str, int], int] = field(default_factory=dict)
    """Spool and number there of each window that the spool took, and the number it is made of."""
    lives: int = 0
    acknowledged: int = 0
    ended: bool = False


def read(lines: Iterable[str]) -> Told:
    """What the spool took. Raises AssertionError when the spool itself lost or repeated a number."""
    told, tried = Told(), dict[tuple[str, int], int]()
    for line in lines:
        what, spool, *numbers = line.split()
        if what == "try":
            seq, number, told.acknowledged = map(int, numbers)
            assert (spool, seq) not in told.kept, f"the spool gave number {seq} twice"
            tried[spool, seq] = number
            continue
        # Only the last attempt can have failed.
        last, doubtful = int(numbers[0]), max(tried, default=(spool, 0))
        for key, number in tried.items():
            assert key[0] == spool
            assert key == doubtful or key[1] <= last, f"the spool lost window {key[1]}: it ends at {last}"
            if key[1] <= last:
                told.kept[key] = number
        assert last == max((seq for other, seq in told.kept if other == spool), default=0)
        tried.clear()
        told.ended = what == "end"
        told.lives += what == "begin"
    return told


def main(directory: Path, node: str, collector: str) -> int:
    """0 once all is acknowledged."""
    clock, rng, vitals = SystemClock(), random.Random(), Vitals()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    spool = Spool(directory / "spool", SPOOL_BYTES_MAX, vitals)
    # Small files: what is acknowledged is then soon deleted, and could not be sent again.
    spool._segment_bytes = SEGMENT_BYTES
    journal = Journal(directory / "journal")
    journal.say("begin", spool.id, spool.last_seq)
    publisher = Publisher(
        target=collector,
        tls=Tls(),
        spool=spool,
        hello=lambda: hello(node, spool_id=spool.id, first_seq=spool.first_seq).hello,
        refused=directory / "refused",
        clock=clock,
        rng=rng,
        vitals=vitals,
    )
    publisher.start()
    while not stop.is_set():
        number = rng.getrandbits(52)
        made = make(number, node)
        window = made.window(clock.unix_ns(), clock.boottime_ns())
        journal.say("try", spool.id, spool.last_seq + 1, number, spool.acknowledged_seq)
        spool.append(made.schema, window)
        clock.wait(stop, 1 / WINDOWS_PER_SECOND)
    drained = spool.wait_acknowledged(DRAIN_SECONDS)
    journal.say("end", spool.id, spool.last_seq)
    publisher.close(5)
    spool.close()
    return 0 if drained and not vitals.windows_lost and not vitals.windows_refused else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
