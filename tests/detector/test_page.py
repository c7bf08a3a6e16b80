"""The incidents in a browser: the plots keep to their box, and what agents sent is shown, never run."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.collector.sender import CLOCK, Recording, collecting
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.server import Collector
from trimtab.detector.page import pages
from trimtab.detector.plot import HEIGHT, WIDTH, plot

S = 10**9
VALUES = st.one_of(st.floats(width=32), st.floats(-1e3, 1e3, width=32))


@given(st.lists(VALUES, max_size=60), VALUES, VALUES)
def test_a_plot_keeps_to_its_box_and_shows_all_that_is_known(course: list[float], before: float, peers: float) -> None:
    drawn = plot(course, before, peers)
    points = [tuple(map(float, p.split(","))) for line in drawn.lines for p in line.split()] + list(drawn.dots)
    assert len(points) == sum(map(math.isfinite, course))
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert all(y is None or 0 <= y <= HEIGHT for y in (drawn.before, drawn.peers))
    assert [y is not None for y in (drawn.before, drawn.peers)] == [math.isfinite(before), math.isfinite(peers)]
    assert 0 <= drawn.onset <= WIDTH


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=2, max_size=30))
def test_higher_values_are_drawn_higher(course: list[float]) -> None:
    [line] = plot(course, math.nan, math.nan).lines
    heights = [-float(p.split(",")[1]) for p in line.split()]
    for one, other in zip(range(len(course)), range(1, len(course)), strict=False):
        assert (course[one] <= course[other]) <= (heights[one] <= heights[other])


def test_a_gap_is_no_line() -> None:
    drawn = plot([1, 2, math.nan, 3, math.nan, 4, 5], 1, math.nan)
    assert [len(line.split()) for line in drawn.lines] == [2, 2]
    assert len(drawn.dots) == 1
    assert drawn.peers is None


class Reader(HTMLParser):
    """What a browser would make of a page: its tags, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(collector: Collector, query: str = "") -> Reader:
    assert collector._exposition
    url = f"http://127.0.0.1:{collector._exposition.port}/incidents{query}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        return Reader(answer.read().decode())


def shown(collector: Collector, told: str) -> Reader:
    """The list, once the incident is in it: the writer stores it beside us."""
    deadline = CLOCK.monotonic() + 20
    while told not in (page := read(collector, "?")).text:
        assert CLOCK.monotonic() < deadline, page.text
    return page


def incident(**changes: object) -> pb.Incident:
    evidence = pb.Evidence(
        subject="n1/1", signal="cpu_throttled_ratio", before=0, after=0.9, peers=0, deviation=40, unit="1",
        changed_unix_ns=100 * S, course=[0.0] * 10 + [0.9] * 10,
    )  # fmt: skip
    quota = pb.Cause(
        subject="n1/1", mechanism="cgroup CPU quota", confidence=0.94, summary="it is throttled", remedy="raise it",
        evidence=[evidence, pb.Evidence(subject="n1", event="oom_kill: <b>python</b>", changed_unix_ns=90 * S)],
    )  # fmt: skip
    told = {"id": "i-1", "status": pb.Incident.STATUS_OPEN, "subject": "n1/1", "node": "n1", "model": "m"}
    told |= {"symptom": "slow", "since_unix_ns": 100 * S, "opened_unix_ns": 105 * S, "causes": [quota]}
    return pb.Incident(**{**told, **changes})


def test_incidents_are_listed_and_shown(tmp_path: Path) -> None:
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis, views=pages, metrics_listen="127.0.0.1:0") as (collector, *_):
        assert "None so far" in read(collector).text
        analysis.journal.save_incident(incident())
        listed, one = shown(collector, "i-1"), read(collector, "?id=i-1")
    assert "cgroup CPU quota 94 %" in listed.text
    for told in ("noticed 5 s later", "cpu_throttled_ratio", "+40 σ", "raise it", "No weight was changed", "unknown"):
        assert told in one.text
    assert one.tags.count("svg") == 1
    assert one.tags.count("polyline") == 1


def test_what_was_sent_is_shown_and_not_run(tmp_path: Path) -> None:
    hostile = "</td><script>alert(1)</script>\"' onload=x {{ 7*7 }}"
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis, views=pages, metrics_listen="127.0.0.1:0") as (collector, *_):
        analysis.journal.save_incident(incident(subject=hostile, symptom=hostile, model=hostile))
        for page in (shown(collector, hostile), read(collector, "?id=i-1")):
            assert "script" not in page.tags
            assert hostile in page.text
            assert "b" not in page.tags


@pytest.mark.parametrize(
    ("query", "status", "told"), [("?id=i-9", 404, "no incident 'i-9'"), ("?x=1", 400, "x: not known")]
)
def test_what_there_is_not_is_said(tmp_path: Path, query: str, status: int, told: str) -> None:
    with (
        collecting(tmp_path, views=pages, metrics_listen="127.0.0.1:0") as (collector, *_),
        pytest.raises(urllib.error.HTTPError) as caught,
    ):
        read(collector, query)
    assert caught.value.code == status
    assert told in caught.value.read().decode()
