"""The line to the collector heals by itself, and says what was lost on it once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.actuator.conftest import Collector, until
from trimtab import Exit, TrimtabError
from trimtab.actuator import link as module
from trimtab.actuator.link import Link
from trimtab.agent.clock import SystemClock
from trimtab.agent.settings import Tls
from trimtab.agent.wire import query_pb2 as pb


@pytest.fixture
def link(collector: Collector) -> Iterator[Link]:
    made = Link(f"127.0.0.1:{collector.port}", Tls(), SystemClock())
    yield made
    made.close()


def test_a_missing_tls_file_is_tried_again(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, renewed, tries = module.channel, threading.Event(), []

    def channel(*arguments: Any) -> Any:
        tries.append(1)
        if len(tries) > 1 and not renewed.is_set():
            raise TrimtabError("tls: /etc/trimtab/key.pem: No such file or directory", Exit.SETTINGS)
        return real(*arguments)

    monkeypatch.setattr(module, "channel", channel)
    monkeypatch.setattr(module, "_BACKOFF_SECONDS", 0.05)
    link = Link(f"127.0.0.1:{collector.port}", Tls(), SystemClock())
    until(lambda: len(tries) > 3, 5, "tried again")
    assert link.heard is None
    assert "key.pem" in caplog.text
    renewed.set()
    until(lambda: link.heard, 5, "heard once the file is there")
    link.close()


def test_the_next_decision_that_is_taken_says_how_many_were_not(collector: Collector, link: Link) -> None:
    until(lambda: link.heard, 5, "connected")
    collector.refuses = True
    for k in range(3):
        link.record(pb.Decision(version=k))
    until(lambda: link.unrecorded == 3, 5, "refused and counted")
    collector.refuses = False
    for k, reason in enumerate(("why", "")):
        link.record(pb.Decision(version=10 + k, reason=reason))
    until(lambda: len(collector.decisions) == 2, 5, "taken")
    assert [d.reason for d in collector.decisions] == ["why; decisions not recorded: 3", ""]
