"""Finds the Runtime API sockets of the HAProxy processes on this host.

Any local user may name a process "haproxy" and bind a socket to any bytes: what is found is read as such.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from trimtab import TrimtabError
from trimtab.actuator.targets import runtime

SOCKETS_MAX = 16
_CANDIDATES_MAX = 64
"""Most sockets that are asked whether they are an HAProxy's; each may take seconds not to answer."""
_LOOK_SECONDS = 10.0
COMMON = ("/run/haproxy/admin.sock", "/run/haproxy.sock", "/var/lib/haproxy/stats")
_UNIX_TABLE = Path("/proc/self/net/unix")
_ROW = re.compile(r"^[0-9a-f]+: [0-9A-F]+ [0-9A-F]+ ([0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +(\d+) (/.*)$", re.MULTILINE)
"""Flags, inode and path of a socket that has a path; a path may hold anything but NUL, line ends too."""
_ACCEPTS = 0x10000
"""__SO_ACCEPTCON of Linux: the flag of a listening socket."""

log = logging.getLogger("trimtab.actuator")


class Finder:
    """Looks every ten seconds on a thread of its own: a socket that does not answer must not hold up who decides."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = wanted
        self.found = [path for path in wanted if path != "auto"]
        """What `sockets` said last; until it has, those that need no search."""
        self._stop = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="finder").start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def _run(self) -> None:
        trouble = ""
        while not self._stop.is_set():
            try:
                self.found, error = sockets(self._wanted), ""
            except Exception as failure:  # noqa: BLE001 - top of the loop
                error = f"{type(failure).__name__}: {failure}"
            if error != trouble:
                log.warning("search for HAProxy: %s", error or "works again")
            trouble = error
            self._stop.wait(_LOOK_SECONDS)


def sockets(wanted: Sequence[str]) -> list[str]:
    """The sockets that the setting `haproxy_sockets` means: paths as they are, and for "auto" the best one of each HAProxy."""
    out = [path for path in wanted if path != "auto"]
    if "auto" in wanted:
        out += best(candidates())
    return list(dict.fromkeys(out))[:SOCKETS_MAX]


def candidates() -> list[str]:
    """The paths that HAProxy processes listen on; the common paths, where other users' processes cannot be looked into, first."""
    listening = dict(_listening())
    found = {listening[inode] for inode in _held_by_haproxy() if inode in listening}
    common = [path for path in COMMON if Path(path).is_socket()]
    return list(dict.fromkeys([*common, *sorted(found)]))[:_CANDIDATES_MAX]


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
    for flags, inode, path in _ROW.findall(_UNIX_TABLE.read_text(errors="replace")):
        if int(flags, 16) & _ACCEPTS:
            # HAProxy binds under a temporary name, and renames the file then.
            yield inode, re.sub(r"\.\d+\.tmp$", "", path)


def _held_by_haproxy() -> Iterator[str]:
    """Inodes of the sockets that HAProxy processes hold."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_bytes() == b"haproxy\n":
                for link in (comm.parent / "fd").iterdir():
                    name = str(link.readlink())
                    if name.startswith("socket:["):
                        yield name[8:-1]
        except OSError:
            continue  # it ended, or is another user's
