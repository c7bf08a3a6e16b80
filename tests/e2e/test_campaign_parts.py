"""The parts of the campaign that need no fleet: shares and their intervals, what counts as found, the file of results."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e import lines
from tests.e2e.campaign import report
from tests.e2e.campaign.__main__ import main, missing
from tests.e2e.campaign.classes import CLASSES, HEALTHY
from tests.e2e.campaign.record import Clients, Record, Told, sort_out
from tests.e2e.campaign.score import Share, score
from tests.e2e.stage import INSTANCES
from trimtab import Exit, TrimtabError

BEGAN = 1_000_000_000_000
MINE = ("demo/1",)


def told(subject: str = "demo/1", after_seconds: float = 6, mechanism: str = "cgroup CPU quota") -> Told:
    return Told(subject, mechanism, 0.9, BEGAN + round(after_seconds * 1e9))


def of(fault: str = "quota", *incidents: Told, subjects: tuple[str, ...] = MINE, cannot: str = "") -> Record:
    chosen, others = sort_out(incidents, BEGAN, subjects)
    clients = Clients(0.02, 0.05, 0.0)
    mechanisms = ("cgroup CPU quota",)
    return Record(fault, "demo/1", subjects, mechanisms, BEGAN, chosen, tuple(others), clients, clients, cannot)


# Wilson's interval

shares = st.integers(0, 200).flatmap(lambda n: st.builds(Share, st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # The worked examples of Newcombe (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    assert Share(successes, trials).interval == pytest.approx((low, high), abs=5e-5)


@given(shares)
def test_the_interval_holds_the_share_and_stays_within_0_and_1(share: Share) -> None:
    low, high = share.interval
    if share.trials:
        assert 0 <= low <= share.value <= high <= 1
        assert low < high
    else:
        assert all(map(math.isnan, (share.value, low, high)))


@given(shares.filter(lambda s: s.trials > 0))
def test_failures_are_successes_turned_over(share: Share) -> None:
    low, high = share.interval
    assert Share(share.trials - share.successes, share.trials).interval == pytest.approx((1 - high, 1 - low))


@given(shares.filter(lambda s: s.trials > 0), st.integers(2, 9))
def test_more_runs_make_it_narrower(share: Share, times: int) -> None:
    low, high = share.interval
    closer_low, closer_high = Share(share.successes * times, share.trials * times).interval
    assert closer_high - closer_low < high - low


# What counts


@pytest.mark.parametrize(
    ("incidents", "chosen", "others"),
    [
        ([], None, 0),
        ([told()], 0, 0),
        ([told("demo/2"), told(after_seconds=9)], 1, 1),
        ([told("demo/2", 8), told("demo/3", 5)], 1, 1),
        ([told(after_seconds=-3)], None, 1),
        ([told(after_seconds=9), told(after_seconds=5)], 1, 1),
    ],
    ids=["none", "right", "right beats earlier", "earliest of the wrong", "before the fault", "earliest of the right"],
)
def test_a_fault_is_judged_by_the_incident_about_it(incidents: list[Told], chosen: int | None, others: int) -> None:
    found, rest = sort_out(incidents, BEGAN, MINE)
    assert found is (None if chosen is None else incidents[chosen])
    assert len(rest) == others


def test_an_incident_of_a_healthy_run_is_a_false_alarm() -> None:
    one = score([of(HEALTHY, told(), subjects=()), of(HEALTHY, subjects=())])
    assert (one.quiet, one.recall.trials, one.precision) == (Share(1, 2), 0, Share(0, 1))


def test_a_score_counts_what_it_says() -> None:
    runs = [
        of("quota", told()),
        of("quota", told(after_seconds=10, mechanism="unknown")),
        of("quota", told("demo/2")),
        of("quota", told(), told("demo/3", 20)),
        of("quota"),
        of("quota", cannot="no cgroups"),
    ]
    one = score(runs)
    assert (one.runs, one.delay_median_seconds, one.delay_worst_seconds) == (5, 6, 10)
    assert (one.recall, one.precision) == (Share(4, 5), Share(3, 5))
    assert (one.right_instance, one.right_mechanism, one.quiet) == (Share(3, 4), Share(2, 3), Share(3, 5))


records = st.builds(
    of,
    st.sampled_from(["quota", "hog"]),
    st.builds(told, st.sampled_from(["demo/1", "demo/2"]), st.floats(-5, 60)),
    st.builds(told, st.sampled_from(["demo/1", "demo/3"]), st.floats(-5, 60)),
)


@given(st.lists(records, max_size=8), st.lists(records, max_size=8))
def test_scores_of_parts_add_up(first: list[Record], second: list[Record]) -> None:
    parts, whole = [score(first), score(second)], score(first + second)
    for name in ("recall", "precision", "right_instance", "right_mechanism", "quiet"):
        shares_of_parts = [getattr(part, name) for part in parts]
        expected = Share(sum(s.successes for s in shares_of_parts), sum(s.trials for s in shares_of_parts))
        assert getattr(whole, name) == expected


# The file


@given(st.lists(records, max_size=5))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, runs: list[Record]) -> None:
    file = tmp_path_factory.mktemp("runs") / "r.jsonl"
    for run in runs:
        lines.append(file, run)
    assert lines.read(file, Record) == runs


def test_a_line_that_was_cut_short_is_dropped_and_the_next_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    lines.append(file, of())
    file.write_bytes(file.read_bytes() + msgspec.json.encode(of("hog"))[:40])
    assert lines.read(file, Record) == [of()]
    lines.append(file, of("hog"))
    assert lines.read(file, Record) == [of(), of("hog")]


def test_a_line_that_is_no_run_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    lines.append(file, of())
    file.write_bytes(file.read_bytes() + b'{"fault": 7}\n')
    with pytest.raises(TrimtabError, match=r"r\.jsonl:2: .*fault.*: remove that line") as caught:
        lines.read(file, Record)
    assert caught.value.exit_code == Exit.STATE


# The plan


@given(st.integers(1, 5), st.lists(st.sampled_from(["quota", "hog", HEALTHY]), max_size=20), st.integers(0, 3))
def test_each_class_is_run_as_often_as_asked(runs: int, made: list[str], seed: int) -> None:
    names = [HEALTHY, "hog", "quota"]
    done = [of(name) for name in made]
    rest = missing(names, runs, done, seed)
    total = Counter(made) + Counter(name for name, _ in rest)
    assert all(total[name] == max(runs, made.count(name)) for name in names)
    assert rest == missing(names, runs, done, seed)


def test_a_class_visits_every_instance_and_what_could_not_be_made_is_tried_again() -> None:
    rest = missing(["quota"], INSTANCES, [of("quota", cannot="no cgroups")], 0)
    assert sorted(instance for _, instance in rest) == list(range(INSTANCES))


def test_every_class_says_whom_it_ails_and_why() -> None:
    assert all(one.mechanisms for name, one in CLASSES.items() if name != HEALTHY)
    assert CLASSES[HEALTHY].mechanisms == ()


# The report


def test_the_table_is_the_same_in_both_forms() -> None:
    runs = [of("quota", told()), of("hog"), of(HEALTHY, subjects=())]
    names = [HEALTHY, "hog", "quota"]
    rows = report.rows(runs, names)
    assert [row[0] for row in rows] == [HEALTHY, "hog", "quota", "all"]
    assert rows[2] == ("quota", "1", "50 → 50", "0 → 0", "6.0–6.0", *["1/1 (21–100)"] * 5)
    assert all(len(row) == len(report.HEAD) for row in rows)
    assert report.table(runs, names).row_count == len(rows)
    assert report.markdown(runs, names).count("\n") == len(rows) + 1


def test_what_was_told_and_what_cannot_be_made_are_listed() -> None:
    runs = [of("quota", told()), of("quota", told("demo/2")), of("quota"), of("loss", cannot="tc: no")]
    names = ["quota", "loss"]
    assert report.told(runs, names) == ["quota: 1 × cgroup CPU quota, 1 × cgroup CPU quota of demo/2, 1 × nothing"]
    assert report.cannot(runs) == ["loss: tc: no"]
    summary = report.summary(runs, names)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["classes"].keys() == {"quota", "all"}


def test_a_whole_file_is_told_without_a_fleet(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    for run in (of("quota", told()), of(HEALTHY, subjects=())):
        lines.append(file, run)
    done = CliRunner().invoke(
        main, ["--runs", "1", "--faults", "quota", "--resume", str(file), "--markdown"], catch_exceptions=False
    )
    assert done.exit_code == 0
    said = done.stdout.splitlines()
    assert said[0].startswith("| fault | runs |")
    assert json.loads(said[-1])["classes"]["quota"]["runs"] == 1


@pytest.mark.parametrize("arguments", [["--faults", "gremlin"], ["--runs", "0"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == Exit.USAGE
