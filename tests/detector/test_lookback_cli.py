"""`trimtab lookback` on files as users have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import csv, parquet

from trimtab import Exit, TrimtabError
from trimtab.detector.lookback_cli import lookback

ROWS, FIRST, LAST = 1200, 900, 949


def table() -> pa.Table:
    chance = np.random.default_rng(0)
    calm, steady = chance.standard_normal(ROWS), 5 + 0.1 * chance.standard_normal(ROWS)
    steady[FIRST : LAST + 1] += 3
    times = [f"2026-11-27 {k // 60:02}:{k % 60:02}" for k in range(ROWS)]
    return pa.table({"time": times, "calm": calm, "steady": steady, "empty": pa.nulls(ROWS, pa.float64())})


def run(*arguments: str) -> str:
    result = CliRunner().invoke(lookback, list(arguments))
    if result.exception:
        raise result.exception
    return result.output


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_fault_is_told_with_its_time_and_its_signal(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"machine.{form}"
    csv.write_csv(table(), file) if form == "csv" else parquet.write_table(table(), file)
    found = json.loads(run(str(file), "--json"))
    worst = max(found, key=lambda episode: episode["strangeness"])
    assert "2026-11-27 14:51" <= worst["since"] <= "2026-11-27 15:00"
    assert "2026-11-27 15:49" <= worst["until"] <= "2026-11-27 15:59"
    assert worst["features"][0].startswith("steady +")
    assert "steady" in run(str(file))


def test_the_budget_allows_the_strangest_and_says_how_many_it_left_out(tmp_path: Path) -> None:
    day = 1440
    chance = np.random.default_rng(1)
    values = chance.standard_normal((22 * day, 2))
    began = np.datetime64("2026-11-01T00:00:00")
    for number, first in enumerate(range(12 * day, 22 * day, day)):
        values[first : first + 40] += 4 + number
    file = tmp_path / "machine.csv"
    csv.write_csv(
        pa.table(
            {
                "time": [str(began + np.timedelta64(60 * k, "s")) for k in range(len(values))],
                "a": values[:, 0],
                "b": values[:, 1],
            }
        ),
        file,
    )
    found = json.loads(run(str(file), "--json"))
    told = [episode for episode in found if episode["within_budget"]]
    assert len(found) >= 5
    # One a week, of eleven days.
    assert len(told) == 2
    assert min(e["strangeness"] for e in told) >= max(e["strangeness"] for e in found if not e["within_budget"])
    shown = run(str(file))
    assert f"{len(found) - 2} less strange, beyond 1 false alarms a week: --all tells them" in shown
    assert told[0]["since"] in shown
    assert "--all" not in run(str(file), "--all")
    assert all(e["within_budget"] for e in json.loads(run(str(file), "--json", "--false-alarms-per-week", "100")))


def test_rows_without_times_have_no_weeks_unless_it_is_said_how_far_they_are_apart(tmp_path: Path) -> None:
    file = tmp_path / "machine.csv"
    values = table()["steady"].to_numpy().copy()
    values[620:640] += 9
    values[750:770] += 9
    csv.write_csv(pa.table({"steady": values}), file)
    assert "give --row-seconds" in run(str(file))
    assert sum(e["within_budget"] for e in json.loads(run(str(file), "--json"))) >= 3
    assert sum(e["within_budget"] for e in json.loads(run(str(file), "--json", "--row-seconds", "60"))) == 1


def test_numbers_without_a_time_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "machine.csv"
    csv.write_csv(table().select(["calm", "steady"]), file)
    worst = max(json.loads(run(str(file), "--json")), key=lambda episode: episode["strangeness"])
    assert FIRST - 10 <= int(worst["since"]) <= FIRST


@pytest.mark.filterwarnings("error")
def test_what_the_training_does_not_know_and_what_never_moved_in_it(tmp_path: Path) -> None:
    late, still = np.full(ROWS, np.nan), np.full(ROWS, 7.0)
    late[800:] = 1e6
    still[FIRST : LAST + 1] = 8
    file = tmp_path / "machine.parquet"
    parquet.write_table(
        pa.table({"late": late, "still": still, "calm": np.random.default_rng(0).standard_normal(ROWS)}), file
    )
    worst = max(json.loads(run(str(file), "--json")), key=lambda episode: episode["strangeness"])
    assert worst["features"][0] == "still (was constant)"
    assert not any("late" in feature for feature in worst["features"])


def test_a_calm_course_says_so(tmp_path: Path) -> None:
    file = tmp_path / "calm.csv"
    csv.write_csv(pa.table({"flat": [1.0] * 400}), file)
    assert "nothing was strange" in run(str(file))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "give a CSV or Parquet file"),
        ("", "give a CSV or Parquet file"),
        ("a,b\nx,y\n", "no column of numbers"),
        ("a\n" + "1\n" * 20, "--training 0.5: 10 rows of 20"),
        ("a\n", "0 rows"),
    ],
)
def test_what_cannot_be_judged_is_one_line(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(TrimtabError, match=said) as error:
        run(str(file))
    assert error.value.exit_code == Exit.USAGE
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    file.write_bytes(b"PAR1 no")
    with pytest.raises(TrimtabError, match="give a CSV or Parquet file"):
        run(str(file))
