"""Readers of recorded arrivals, on small files of each kind."""

from __future__ import annotations

import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.bench.fleetsim.traces import client, recorded
from tests.bench.routing.recordings import recorded as rows_of


def test_azure(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv.xz"
    with lzma.open(path, "wt") as file:
        file.write(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,48,10\n2023-11-16 18:17:05.4799600,3,8\n"
        )
    assert recorded(path).times_seconds == pytest.approx((0.0, 1.5))


def test_mooncake(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text("".join(f'{{"timestamp": {t}, "input_length": 9}}\n' for t in (1000, 1000, 1500, 9000)))
    arrivals = recorded(path)
    assert arrivals.times_seconds == (0.0, 0.0, 0.5, 8.0)
    assert arrivals.rate_per_second == 0.5


def test_a_trace_is_stretched_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text("".join(f'{{"timestamp": {t}}}\n' for t in range(0, 101_000, 1000)))
    arrivals = recorded(path, rate_per_second=10.1, seconds_max=5)
    assert np.diff(arrivals.times_seconds) == pytest.approx(np.full(49, 0.1))
    assert arrivals.rate_per_second == pytest.approx(10, rel=0.05)


def test_a_client_of_servegen(tmp_path: Path) -> None:
    path = tmp_path / "chunk-0-trace.csv"
    path.write_text("0,0.1,3.0,Gamma,1,1\n600,0.3,5.0,Gamma,1,1\n1200,0.2,4.0,Gamma,1,1\n")
    arrivals = client(path, 50)
    assert (arrivals.kind, arrivals.cv, arrivals.rate_per_second) == ("gamma", 4.0, 50)
    assert np.array(arrivals.profile)[[0, 599, 600, 1799]] == pytest.approx([0.5, 0.5, 1.5, 1])


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text('{"timestamp": 5}\n')
    with pytest.raises(ValueError, match="two arrivals"):
        recorded(path)


def test_rows_of_recorded_arrivals_need_every_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="azure"):
        rows_of(tmp_path)
    archive = tmp_path / "servegen-rates" / "data.tar.xz"
    (tmp_path / "llm-traces").mkdir()
    archive.parent.mkdir()
    times = [f"2023-11-16 18:17:{k / 100:09.6f}0" for k in range(6000)]
    (tmp_path / "llm-traces" / "azure.csv").write_text("TIMESTAMP\n" + "\n".join(times))
    (tmp_path / "llm-traces" / "mooncake.jsonl").write_text("".join(f'{{"timestamp": {k}}}\n' for k in range(9000)))
    with tarfile.open(archive, "w:xz") as packed:
        for name, rate in (("chunk-0", 0.1), ("chunk-1", 5.0)):
            path = tmp_path / f"{name}-trace.csv"
            path.write_text("".join(f"{600 * k},{rate * (1 + k % 2)},2,Gamma,1,1\n" for k in range(144)))
            packed.add(path, path.name)
    made = {row.name: row for row in rows_of(tmp_path)}
    assert set(made) == {f"{name}{ill}" for name in ("azure", "mooncake", "servegen") for ill in ("", "-slow3")}
    assert all(row.compare == "harmless" for row in made.values())
    day = made["servegen"].base.arrivals
    assert len(day.profile) == 90
    assert np.mean(day.profile) == pytest.approx(1)
    assert made["azure"].base.arrivals.times_seconds[-1] <= 90
