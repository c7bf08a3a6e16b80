"""Work inside the network namespace of another process, as that of a container. Sockets stay in the one they were made in."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from trimtab.agent.runtimes.process import own_netns

CLONE_NEWNET = 0x40000000
T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12


def inside(pid: int, netns: int, work: Callable[[], T]) -> T:
    """What `work` returns, done in namespace `netns`, which must be that of process `pid`.

    Raises OSError, as PermissionError without CAP_SYS_ADMIN or CAP_SYS_PTRACE, and what `work` raises.
    """
    if netns == own_netns():
        return work()
    answer: Future[T] = Future()

    def run() -> None:
        try:
            _enter(pid, netns)
            answer.set_result(work())
        except Exception as error:  # noqa: BLE001 - handed to the caller
            answer.set_exception(error)

    # The namespace is each thread's own: only one that ends right after may leave ours.
    threading.Thread(target=run, name="netns").start()
    return answer.result()


def _enter(pid: int, netns: int) -> None:
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_ino != netns:
            raise ProcessLookupError(f"pid {pid} is not in the network namespace it was found in")
        if _libc.setns(descriptor, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
