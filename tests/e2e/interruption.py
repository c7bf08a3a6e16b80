"""The end by a signal, with everything undone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Told(BaseException):
    """A signal asked for the end."""


@contextmanager
def attentive() -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP unwinds everything; more of them do not disturb the unwinding."""

    def handler(*_: object) -> None:
        deaf()
        raise Told

    for number in _SIGNALS:
        signal.signal(number, handler)
    yield


def deaf() -> None:
    """From now on no signal disturbs the unwinding."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
