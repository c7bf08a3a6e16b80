"""Finds the Runtime API sockets of the HAProxy processes on this host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trimtab import TrimtabError
from trimtab.actuator.targets import runtime

SOCKETS_MAX = 16
COMMON = ("/run/haproxy/admin.sock", "/run/haproxy.sock", "/var/lib/haproxy/stats")
_ACCEPTS = 0x10000
"""__SO_ACCEPTCON of Linux: the flag of a listening socket in /proc/net/unix."""


def sockets(wanted: Sequence[str]) -> list[str]:
    """The sockets that the setting `haproxy_sockets` means: paths as they are, and for "auto" the best one of each HAProxy."""
    out = [path for path in wanted if path != "auto"]
    if "auto" in wanted:
        out += best(candidates())
    return list(dict.fromkeys(out))[:SOCKETS_MAX]


def candidates() -> list[str]:
    """Every path that a HAProxy process listens on; the common paths where other users' processes cannot be looked into."""
    listening = dict(_listening())
    found = [listening[inode] for inode in _held_by_haproxy() if inode in listening]
    return sorted({*found, *(path for path in COMMON if Path(path).is_socket())})


def best(paths: Sequence[str]) -> list[str]:
    """One socket for each HAProxy process among `paths`: one of level admin if there is any."""
    chosen: dict[str, tuple[bool, str]] = {}
    for path in paths:
        try:
            pid, admin = identify(path)
        except TrimtabError:
            continue
        if pid not in chosen or admin > chosen[pid][0]:
            chosen[pid] = (admin, path)
    return [path for _, path in chosen.values()]


def identify(path: str) -> tuple[str, bool]:
    """The process id behind a Runtime API socket, and whether it lets us set weights. Raises TrimtabError."""
    answer = runtime.ask(path, "show info;show cli level")
    pid = re.search(r"^Pid: (\d+)$", answer, re.MULTILINE)
    if not pid or not answer.startswith("Name: HAProxy"):
        raise TrimtabError(f"{path}: not the Runtime API of an HAProxy worker")
    return pid.group(1), answer.rstrip().endswith("admin")


def _listening() -> Iterator[tuple[str, str]]:
    """Inode and path of the listening Unix sockets that have a path."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS and fields[7].startswith("/"):
            # HAProxy binds under a temporary name, and renames the file then.
            yield fields[6], re.sub(r"\.\d+\.tmp$", "", fields[7])


def _held_by_haproxy() -> Iterator[str]:
    """Inodes of the sockets that HAProxy processes hold."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == "haproxy":
                for link in (comm.parent / "fd").iterdir():
                    name = str(link.readlink())
                    if name.startswith("socket:["):
                        yield name[8:-1]
        except OSError:
            continue  # it ended, or is another user's
