"""Starts the loader child, and owns what it hands over: the descriptors that keep a program attached, and its maps."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading

import msgspec

from trimtab.agent.bpf import syscall
from trimtab.agent.bpf.capability import what_is_missing
from trimtab.agent.bpf.source import Source
from trimtab.agent.registry import Unavailable

DEADLINE_SECONDS = 20.0
REMEDY = "run `trimtab doctor`"

_DESCRIPTORS_MAX = 64
# One compiler at a time: each takes 120 MB for its half second.
_compiling = threading.Lock()


class Program:
    """A program that stays attached until it is closed; each of its hooks can be switched off and on."""

    def __init__(self, descriptors: dict[str, int]) -> None:
        self._open = set(descriptors.values())
        self.maps = _of("map", descriptors)
        """Descriptors of the maps, by name."""
        self._typed = _of("typed", descriptors)
        self.programs = _of("program", descriptors) | self._typed
        """Descriptors of what runs at its hooks, by hook."""
        self._attached: dict[str, int] = {}

    def switch(self, hook: str, on: bool) -> None:
        """Attach a hook, or detach it. Raises OSError."""
        if on and hook not in self._attached:
            name = None if hook in self._typed else hook
            self._attached[hook] = syscall.attach_raw_tracepoint(name, self.programs[hook])
        elif not on and hook in self._attached:
            os.close(self._attached.pop(hook))

    def close(self) -> None:
        """Detach it, and free its maps."""
        for hook in tuple(self._attached):
            self.switch(hook, on=False)
        while self._open:
            os.close(self._open.pop())


def require() -> None:
    """Raises Unavailable, with the reason and the remedy, where this host cannot run eBPF programs."""
    for check in what_is_missing():
        if not check.ok:
            raise Unavailable(check.detail, check.remedy)


def load(source: Source, attach: bool = True) -> Program:
    """Load a program and `attach` all its hooks, in their order, where `require` found nothing amiss. Takes half a second.

    Raises Unavailable.
    """
    try:
        with _compiling:
            program = Program(_run_child(source))
    except OSError as error:
        raise Unavailable(f"the eBPF loader could not be started: {error}", REMEDY) from error
    try:
        for hook in program.programs if attach else ():
            program.switch(hook, on=True)
    except OSError as error:
        program.close()
        raise Unavailable(f"{source.file}: {hook} was not attached: {error}", REMEDY) from error
    return program


def _of(kind: str, descriptors: dict[str, int]) -> dict[str, int]:
    named = ((name.split(), fd) for name, fd in descriptors.items())
    return {name: fd for (prefix, name), fd in named if prefix == kind}


def _run_child(source: Source) -> dict[str, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-m", "trimtab.agent.bpf.load_child"]
    # A file, because a pipe that nobody reads would block a child with much to say.
    with ours, tempfile.TemporaryFile() as stderr:
        with theirs:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and file
                [*command, str(theirs.fileno()), msgspec.json.encode(source).decode()],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        ours.settimeout(DEADLINE_SECONDS)
        try:
            names, descriptors, _, _ = socket.recv_fds(ours, 4096, _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise Unavailable(f"loading the eBPF program took longer than {DEADLINE_SECONDS:.0f} s", REMEDY) from None
        finally:
            child.kill()
            child.wait()
        if not names:
            stderr.seek(0)
            raise Unavailable(
                f"the eBPF program was not loaded: {_reason(stderr.read().decode(errors='replace'))}", REMEDY
            )
    return dict(zip(json.loads(names), descriptors, strict=True))


def _reason(output: str) -> str:
    """The one line of what a compiler, a verifier or Python said that names the cause."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "no reason given")
