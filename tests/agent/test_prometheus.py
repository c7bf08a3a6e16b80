"""The parser of metric expositions: what it reads, and that nothing whatever breaks it."""

from __future__ import annotations

import contextlib
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.stand_in import EXPOSITIONS
from trimtab.agent.runtimes import torchserve_words, triton, vllm
from trimtab.agent.runtimes.endpoint import ANSWER_BYTES_MAX
from trimtab.agent.runtimes.prometheus import SAMPLES_MAX, Sample, parse

BODY = b"""# HELP hits_total Whatever
# TYPE hits_total counter
# TYPE none_yet_total counter
# TYPE depth gauge
hits_total{model="a} 7 {",version="1",} 3.0
hits_total { model = "b" , note = "two\\nlines \\"quoted\\" \\\\ \\x" } 4.5e1 1700000000000
hits_total 2
depth{model="a"} -5
depth{model="b"} NaN
depth{model="c"} +Inf
other{broken 1
"""
NAMES = ("hits_total", "none_yet_total", "depth", "absent")


def test_samples_and_their_labels() -> None:
    assert parse(BODY, NAMES).samples["hits_total"] == [
        Sample({"model": "a} 7 {", "version": "1"}, 3.0),
        Sample({"model": "b", "note": 'two\nlines "quoted" \\ \\x'}, 45.0, 1_700_000_000.0),
        Sample({}, 2.0),
    ]


def test_totals() -> None:
    said = parse(BODY, NAMES)
    assert said.total("hits_total") == 50
    assert said.total("hits_total", model="b") == 45
    assert said.total("hits_total", model="c") == 0
    assert said.total("none_yet_total") == 0  # declared, and never counted
    assert said.total("absent") is None


def test_gauges() -> None:
    said = parse(BODY, NAMES)
    assert said.gauge("depth") == -5  # the others are no numbers
    assert said.gauge("depth", model="b") is None
    assert said.gauge("absent") is None


def test_age() -> None:
    said = parse(BODY, NAMES)
    assert said.age_seconds(1_700_000_002.5) == 2.5
    assert said.age_seconds(1_600_000_000.0) == 0  # by the server's clock that is still to come
    assert parse(BODY, ("depth",)).age_seconds(1.0) is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1e999"])
def test_what_is_no_total(value: str) -> None:
    said = parse(f"a{{}} {value}\n".encode(), ("a",))
    with pytest.raises(ValueError, match="not a total"):
        said.total("a")


def test_totals_that_are_too_large_together() -> None:
    with pytest.raises(ValueError, match="not a total"):
        parse(b'a{b="1"} 1e308\na{b="2"} 1e308\n', ("a",)).total("a")


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "a ",
        "a{} ",
        "a x",
        "a 1_000",
        "a ١",
        "a 0x1",
        "a infinity",
        "a 1 2 3",
        "a 1 1.5",
        "a 1 " + "9" * 19,
        "a " + "1" * 65,
        "a{b} 1",
        'a{b="c" 1',
        'a{b="c"d="e"} 1',
        'a{b="c',
        'a{b="c\\"} 1',
        'a{1b="c"} 1',
        "a{b='c'} 1",
    ],
)
def test_what_is_no_sample(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which one, the line says
        parse(line.encode(), ("a",))
    assert parse(line.encode(), ("b",)).samples == {}


def test_the_number_of_samples_has_a_limit() -> None:
    assert len(parse(b"a 1\n" * SAMPLES_MAX, ("a",)).samples["a"]) == SAMPLES_MAX
    with pytest.raises(ValueError, match="more than"):
        parse(b"a 1\n" * (SAMPLES_MAX + 1), ("a",))


LABELS = st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True), st.text(max_size=8), max_size=4)


@given(LABELS, st.floats(), st.none() | st.integers(-(10**17), 10**17))
def test_what_is_written_is_read(labels: dict[str, str], value: float, stamp: int | None) -> None:
    escaped = {k: v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for k, v in labels.items()}
    inside = ",".join(f'{k}="{v}"' for k, v in escaped.items())
    number = "NaN" if math.isnan(value) else repr(value).replace("inf", "Inf")
    line = f"a{{{inside}}} {number}" + ("" if stamp is None else f" {stamp}")
    try:
        (sample,) = parse(line.encode(), ("a",)).samples["a"]
    except UnicodeEncodeError:  # half a surrogate cannot be sent
        return
    assert sample.labels == labels
    assert sample.value == value or math.isnan(value)
    assert sample.unix_seconds == (None if stamp is None else stamp / 1000)


FILES = {path.name: path.read_bytes() for path in sorted(EXPOSITIONS.glob("*.txt"))}
ALL_NAMES = frozenset({*torchserve_words.NAMES, *triton.NAMES, *vllm.NAMES})
PIECES = st.sampled_from(
    [b"{", b"}", b'"', b"\\", b"\n", b",", b"=", b" ", b"# TYPE ", b"NaN", b"\xff", b"\0", *map(str.encode, ALL_NAMES)]
)


def survive(body: bytes) -> None:
    """Either it makes sense of it, or says ValueError; and so do those who put it into words."""
    with contextlib.suppress(ValueError):
        said = parse(body, ALL_NAMES)
        assert sum(map(len, said.samples.values())) <= min(SAMPLES_MAX, body.count(b"\n") + 1)
        for name in ALL_NAMES:
            with contextlib.suppress(ValueError):
                total = said.total(name)
                assert total is None or (math.isfinite(total) and total >= 0)
            assert all(math.isfinite(value) for value in said.gauges(name))
        for told in (triton.told, vllm.told, lambda said: torchserve_words.told(said, None, 0.0)):
            with contextlib.suppress(ValueError):
                told(said)


@given(st.binary(max_size=400) | st.text(max_size=400).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_are_survived(body: bytes) -> None:
    survive(body)


@given(st.lists(PIECES | st.binary(max_size=4), max_size=60))
def test_anything_that_looks_like_it_is_survived(pieces: list[bytes]) -> None:
    survive(b"".join(pieces))


@given(st.sampled_from(sorted(FILES)), st.data())
def test_recordings_that_were_damaged_are_survived(name: str, data: st.DataObject) -> None:
    body = FILES[name]
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(len(body), start + 200)))
    survive(body[:start] + data.draw(st.binary(max_size=20) | PIECES) + body[end:])


WORST = {
    "newlines": b"\n" * ANSWER_BYTES_MAX,
    "one line": b"a" * ANSWER_BYTES_MAX,
    "an open label": b'hits_total{a="' + b"\\" * (ANSWER_BYTES_MAX - 20),
    "labels": b"hits_total{" + b'a="",' * (ANSWER_BYTES_MAX // 5) + b"} 1",
    "other labels": b"hits_total{" + b",".join(b'a%d=""' % i for i in range(90_000)) + b"} 1",
    "blanks": b"hits_total" + b" " * ANSWER_BYTES_MAX,
    "blanks before a label": b"hits_total{" + b" \t" * (ANSWER_BYTES_MAX // 2),
    "a number": b"hits_total " + b"1" * ANSWER_BYTES_MAX,
    "types": b"# TYPE hits_total counter\n" * (ANSWER_BYTES_MAX // 26),
    "samples": b"hits_total 1\n" * (ANSWER_BYTES_MAX // 13),
}


@pytest.mark.parametrize("body", WORST.values(), ids=WORST.keys())
def test_the_worst_that_fits_takes_little_memory(body: bytes) -> None:
    """And ends: in a regular expression that tries all there is, it would not."""
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            parse(body, NAMES)
        assert tracemalloc.get_traced_memory()[1] < 80 * ANSWER_BYTES_MAX
    finally:
        tracemalloc.stop()
