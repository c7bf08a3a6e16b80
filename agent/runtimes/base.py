"""What a serving runtime is to trimtab. One file below agent/runtimes, which ends with `RUNTIME = TheClass`."""

from __future__ import annotations

from typing import Protocol

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes.process import ProcessInfo
from trimtab.agent.runtimes.vocabulary import Scrape


class NoAnswer(Exception):
    """The runtime's own API did not answer in time, or not as its protocol has it."""


class Session(Protocol):
    """One instance, asked again and again. By one thread at a time."""

    def scrape(self) -> Scrape:
        """Ask once for everything, within a second. Raises NoAnswer, and nothing else."""

    def close(self) -> None:
        """Let go of its connections."""


class Runtime(Protocol):
    """A kind of model server: how it is known, where it listens, what it says."""

    name: str

    def matches(self, process: ProcessInfo) -> bool:
        """Whether the command is that of such a server. Looks at nothing else: every new process of the host is asked about."""

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        """The instance, or None while it does not listen yet. Raises OSError, ValueError.

        An instance without `urls` cannot be asked, and this has told the operator why.
        """

    def open(self, instance: Instance) -> Session:
        """Get ready to ask an instance that has `urls`. Connects to nothing yet."""
