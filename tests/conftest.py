"""`-n 2`: two tests at a time, but for those that measure: they have the machine to themselves, after all others.

Without `-n` it is one after the other, in the order in which they are written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest

ALONE = {
    "tests/agent/test_host.py": "They tell how busy the machine's cores are.",
    "tests/agent/test_process.py": "They tell what others leave of a core.",
    "tests/bench/": "They measure time and memory.",
    "tests/collector/test_floods.py": "They take all cores, and bound the memory that a collector has meanwhile.",
    "tests/e2e/test_accuracy.py": "They compare the clients' clocks with the kernel's, within 5 %.",
    "tests/e2e/test_campaign_faults.py": "They take cores, memory and the disk away from servers.",
    "tests/e2e/test_fleet.py": "They take cores away from servers.",
    "tests/e2e/test_hostile.py": "They compare the clients' clocks with the kernel's, within 5 %.",
}
"""Whose tests these are, and why nothing may run beside them."""
KERNEL = {
    "tests/agent/": "They count every event. The kernel may skip one whenever another program is attached.",
    "tests/e2e/test_system.py": "Its agents attach programs.",
    "tests/packaging/test_notify.py": "Its agents attach programs.",
}
"""Those of which no two run at a time, and why; others may run beside them."""
_SHARE = pytest.StashKey[int]()
"""Of a worker: the checkout, opened. Its lock stands for the machine."""

# No test times anything: how long one example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def alone(nodeid: str) -> bool:
    """Whether nothing else may run beside this test."""
    return nodeid.startswith(tuple(ALONE))


def kernel(nodeid: str) -> bool:
    """Whether it attaches programs of its own."""
    return nodeid.startswith(tuple(KERNEL))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Sharing(LoadFileScheduling):
        """Gives a worker a file at a time; but one of them all that attaches programs, and one all that runs alone."""

        def _split_scope(self, nodeid: str) -> str:
            scope: str = "alone" if alone(nodeid) else "kernel" if kernel(nodeid) else super()._split_scope(nodeid)
            return scope

    # As `pytest_collection_modifyitems` has put them.
    config.option.loadscopereorder = False
    return Sharing(config, log)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.stash[_SHARE] = os.open(config.rootpath, os.O_RDONLY)


def pytest_unconfigure(config: pytest.Config) -> None:
    # The process of a worker lives on when its tests are over.
    if _SHARE in config.stash:
        os.close(config.stash[_SHARE])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first, what runs alone last; between them by the names of files: then what computes runs beside what waits."""
    if _SHARE in config.stash:
        items.sort(key=lambda i: (alone(i.nodeid), not kernel(i.nodeid), "" if alone(i.nodeid) else i.path.name))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for the other worker to be done with its last test before the first that runs alone. No test's time runs meanwhile."""
    if (share := item.config.stash.get(_SHARE, None)) is not None:
        fcntl.flock(share, fcntl.LOCK_EX if alone(item.nodeid) else fcntl.LOCK_SH)
    return (yield)
