"""The program of the host's probes, shared by the collectors that read its parts: it is loaded for the first and closed after the last.

Compiling all parts at once takes little longer than compiling one. On a kernel that lacks what one part needs, each is loaded by itself,
so that the others work.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from trimtab.agent.bpf import block, loader, oom, scheduler, tcp
from trimtab.agent.bpf.loader import Program
from trimtab.agent.bpf.source import Source
from trimtab.agent.registry import Unavailable

PARTS: dict[str, Source] = {
    "scheduler": scheduler.source(),
    "block": block.source(),
    "tcp": tcp.source(),
    "oom": oom.source(),
}
"""By name, what each part asks of the loader. Its text stands in host.c under PART_NAME."""


def hooks_of(part: str) -> tuple[str, ...]:
    """In the order in which they are attached."""
    return (*PARTS[part].raw_tracepoints, *PARTS[part].typed_tracepoints)


class HostProgram:
    """Knows who uses what. Called from the threads of all its collectors."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[Program, set[str]] = {}
        self._fails_together = False

    def open(self, part: str) -> Program:
        """A program that has this part, with its hooks attached, for one user. Raises Unavailable."""
        with self._lock:
            loader.require()
            hooks = hooks_of(part)
            program = next((p for p, used in self._users.items() if part not in used and hooks[0] in p.programs), None)
            program = program or self._load(part)
            self._users.setdefault(program, set()).add(part)
        try:
            for hook in hooks:
                program.switch(hook, on=True)
        except OSError as error:
            self.close(program, part)
            raise Unavailable(f"{PARTS[part].file}: {hook} was not attached: {error}", loader.REMEDY) from error
        return program

    def close(self, program: Program, part: str) -> None:
        """Detach the hooks of the part; the last user closes the program."""
        for hook in hooks_of(part):
            program.switch(hook, on=False)
        with self._lock:
            self._users[program].discard(part)
            if not self._users[program]:
                del self._users[program]
                program.close()

    def _load(self, part: str) -> Program:
        if not self._fails_together:
            try:
                return loader.load(_together(tuple(PARTS)), attach=False)
            except Unavailable:
                self._fails_together = True
        return loader.load(_together((part,)), attach=False)


def _together(parts: Sequence[str]) -> Source:
    sources = [PARTS[part] for part in parts]
    return Source(
        file="host.c",
        maps=tuple(name for source in sources for name in source.maps),
        raw_tracepoints=tuple(name for source in sources for name in source.raw_tracepoints),
        typed_tracepoints=tuple(name for source in sources for name in source.typed_tracepoints),
        offsets={macro: members for source in sources for macro, members in source.offsets.items()},
        flags={f"PART_{part.upper()}": "1" for part in parts}
        | {macro: value for source in sources for macro, value in source.flags.items()},
    )


HOST_PROGRAM = HostProgram()
"""That of this process."""
