"""Starts the loader child and owns what it hands over: the descriptors that keep the program attached, and its maps."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from trimtab.agent.bpf.capability import SENT_KPROBE, sent_hook, what_is_missing
from trimtab.agent.registry import Unavailable

INSTANCES_MAX = 128
"""How many instances are watched at once on one host."""
DEADLINE_SECONDS = 20.0

_SOURCE = Path(__file__).with_name("latency.c")
_MAPS = ("watched", "instances")
_DESCRIPTORS_MAX = 16
_REMEDY = "run `trimtab doctor`"


class Program:
    """A program that stays attached until it is closed."""

    def __init__(self, descriptors: dict[str, int]) -> None:
        self._descriptors = descriptors
        self.watched, self.instances = (descriptors[name] for name in _MAPS)

    def close(self) -> None:
        """Detach it, and free its maps."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def load(sampling_probability: float) -> Program:
    """Load and attach latency.c, with the best hook that this host has for the answer. Takes about a second.

    Raises Unavailable.
    """
    for check in what_is_missing():
        if not check.ok:
            raise Unavailable(check.detail, check.remedy)
    flags = (
        f"-DSENT_BY_{(sent_hook() or SENT_KPROBE).upper()}",
        f"-DSAMPLE_BELOW={round(sampling_probability * 2**32)}ULL",
        f"-DINSTANCES_MAX={INSTANCES_MAX}",
    )
    try:
        return Program(_run_child(_SOURCE, flags))
    except OSError as error:
        raise Unavailable(f"the eBPF loader could not be started: {error}", _REMEDY) from error


def _run_child(source: Path, flags: tuple[str, ...]) -> dict[str, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-m", "trimtab.agent.bpf.load_child"]
    # A file, because a pipe that nobody reads would block a child with much to say.
    with ours, tempfile.TemporaryFile() as stderr:
        with theirs:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and file
                [*command, str(theirs.fileno()), str(source), ",".join(_MAPS), *flags],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        ours.settimeout(DEADLINE_SECONDS)
        try:
            names, descriptors, _, _ = socket.recv_fds(ours, 4096, _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise Unavailable(f"loading the eBPF program took longer than {DEADLINE_SECONDS:.0f} s", _REMEDY) from None
        finally:
            child.kill()
            child.wait()
        if not names:
            stderr.seek(0)
            raise Unavailable(
                f"the eBPF program was not loaded: {_reason(stderr.read().decode(errors='replace'))}", _REMEDY
            )
    return dict(zip(json.loads(names), descriptors, strict=True))


def _reason(output: str) -> str:
    """The one line of what a compiler, a verifier or Python said that names the cause."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "no reason given")
