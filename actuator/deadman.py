"""The dead man's switch: a small process that puts weights back to neutral when the actuator is gone or hangs.

`python -m trimtab.actuator.deadman LEDGER` reads heartbeats from its standard input, one byte each: "." alive, "q" all is neutral,
leave. It answers each "." with one. `python -m trimtab.actuator.deadman --now LEDGER` puts weights back and ends; systemd's
ExecStopPost= calls it. It imports little and lives in a session of its own, so that what takes the actuator down leaves it standing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from trimtab import TrimtabError
from trimtab.actuator.targets import runtime
from trimtab.actuator.targets.ledger import NOTHING, Ledger
from trimtab.agent.clock import Clock

SILENCE_SECONDS = 5.0
ANSWER_SECONDS = 2.0
"""Nothing is steered while the switch has not answered for that long."""
STARTING_SECONDS = 10.0
"""So long the first one may take to start, on a busy machine, before that is called trouble. Nothing is steered meanwhile."""
RETRY_SECONDS = 30.0
ALIVE, LEAVE = b".", b"q"

log = logging.getLogger("trimtab.deadman")


class DeadMan:
    """The actuator's end: starts the switch, and keeps it waiting."""

    def __init__(self, ledger: Path, clock: Clock) -> None:
        self._clock = clock
        self._answered = -math.inf
        self._begun = math.inf
        """When the first was started."""
        self._command = [sys.executable, "-m", "trimtab.actuator.deadman", str(ledger)]
        self._process: subprocess.Popen[bytes] | None = None

    def beat(self) -> str:
        """Say that all is well; "" when the switch is at work, else why not. Starts it when it does not run.

        It may start and end at once, or hang: only an answer shows that it is at work.
        """
        trouble = ""
        now = self._clock.monotonic()
        try:
            if self._process is None:
                self._process, self._begun = self._start(), now
            elif self._process.poll() is not None:
                trouble = "it ended by itself"
                self._process = self._start()
            elif self._answered > -math.inf or now - self._begun > STARTING_SECONDS:
                trouble = "it does not answer"
            assert self._process.stdin
            assert self._process.stdout
            with contextlib.suppress(BlockingIOError):
                if os.read(self._process.stdout.fileno(), 4096):
                    self._answered = now
            os.write(self._process.stdin.fileno(), ALIVE)
        except OSError as error:
            trouble = error.strerror or str(error)
        if now - self._answered <= ANSWER_SECONDS:
            return ""
        return (
            f"no dead man's switch ({trouble}): neutral" if trouble else "no dead man's switch yet, it starts: neutral"
        )

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True
        )
        assert process.stdin
        assert process.stdout
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def close(self, restored: bool) -> None:
        """Tell it to leave. When not all is restored its input just ends, and it goes on trying alone."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            if restored:
                os.write(self._process.stdin.fileno(), LEAVE)
            self._process.stdin.close()
            self._process.wait(2 if restored else 0.01)
        except (OSError, subprocess.TimeoutExpired):
            log.debug("the dead man's switch is still at work")


def restore(ledger: Ledger, go_on: Callable[[], bool], seconds: float = RETRY_SECONDS) -> bool:
    """Put all that the ledger names back to neutral, trying for `seconds` and while `go_on()`; whether all of it worked."""
    deadline = time.monotonic() + seconds
    # Read once: what another actuator steers from now on is its own.
    left, failed = ledger.read(), dict[str, str]()
    while True:
        for path, held in list(left.items()):
            try:
                runtime.neutral(path, held)
                ledger.set(path, NOTHING)
                left.pop(path)
                failed.pop(path, None)
                backends = held.backends | {server.partition("/")[0] for server in held.maxconn}
                log.warning("%s: weights and limits of %s are neutral again", path, ", ".join(sorted(backends)))
            except (TrimtabError, OSError) as error:
                failed[path] = str(error)
        if not failed or time.monotonic() >= deadline or not go_on():
            break
        time.sleep(0.5)
    for why in failed.values():
        log.error("weights could not be put back to neutral: %s", why)
    return not failed


def watch(ledger: Ledger) -> None:
    """Until told to leave: neutral weights on silence, and on the end of the input."""
    source, silent = sys.stdin.fileno(), False
    while True:
        if not _readable(source, SILENCE_SECONDS):
            if not silent:
                log.warning("the actuator has been silent for %.0f s", SILENCE_SECONDS)
                silent = restore(ledger, lambda: not _readable(source, 0))
            continue
        received = os.read(source, 4096)
        silent = False
        if LEAVE in received:
            return
        with contextlib.suppress(OSError):  # the actuator went away meanwhile: the end of the input comes next
            os.write(sys.stdout.fileno(), received)
        if not received:
            restore(ledger, lambda: True)
            return


def _readable(source: int, seconds: float) -> bool:
    return bool(select.select([source], [], [], seconds)[0])


def log_to_stderr() -> None:
    """The log of a process beside the actuator."""
    # The journal knows the time by itself.
    time_of_day = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(
        level=logging.INFO, format=f"{time_of_day}%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )


def main(arguments: list[str]) -> int:
    """Exit code 0 when weights are neutral or need not be."""
    log_to_stderr()
    if len(arguments) == 2 and arguments[0] == "--now":
        return 0 if restore(Ledger(Path(arguments[1])), lambda: True, seconds=3.0) else 1
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m trimtab.actuator.deadman [--now] LEDGER\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watch(Ledger(Path(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
