"""The scorers against what can be worked out by hand, and the runners against folders that do not fit."""

from __future__ import annotations

import io
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.bench import detect, rca
from tests.bench.scoring.nab import standard
from tests.bench.scoring.ranges import best_f1, f1, ranges
from tests.bench.scoring.vus import vus_pr
from trimtab import Exit, TrimtabError


def labels(rows: int, *runs: tuple[int, int]) -> np.ndarray:
    out = np.zeros(rows, dtype=np.bool_)
    for first, last in runs:
        out[first : last + 1] = True
    return out


def test_ranges_are_the_runs() -> None:
    assert ranges(labels(10, (0, 1), (4, 4), (8, 9))) == [(0, 1), (4, 4), (8, 9)]
    assert ranges(labels(3)) == []


def test_f1_by_hand() -> None:
    assert f1(labels(10, (2, 5)), labels(10, (4, 7))) == 0.5
    assert f1(labels(10), labels(10)) == 1
    assert f1(labels(10, (1, 1)), labels(10)) == 0
    assert best_f1(labels(4, (2, 3)), np.asarray([0.0, 3.0, 2.0, 2.0])) == pytest.approx(0.8)


def test_vus_is_one_for_the_labels_themselves_and_their_share_for_nothing() -> None:
    marked = labels(1000, (200, 299), (700, 749))
    assert vus_pr(marked, marked.astype(np.float64), 0) == pytest.approx(1.0)
    assert vus_pr(marked, np.zeros(1000), 0) == pytest.approx(0.15, abs=0.01)
    late = np.roll(marked, 5).astype(np.float64)
    assert vus_pr(marked, late, 0) < vus_pr(marked, late, 40), "the slack forgives five rows"
    assert vus_pr(marked, -marked.astype(np.float64), 40) < 0.2
    with pytest.raises(ValueError, match="nothing is labelled"):
        vus_pr(labels(10), np.zeros(10), 0)


def test_nab_by_hand() -> None:
    window = [(500, 599)]

    def score(*alarms: int) -> float:
        scores = np.zeros(1000)
        scores[list(alarms)] = 1
        return standard({"f": (scores, window)}, 0.5)

    assert score() == 0
    assert score(500) == pytest.approx(100)
    assert 50 < score(599) < 60, "at the last moment of the window it earns next to nothing, but it was not missed"
    assert score(500, 510, 550) == pytest.approx(100), "more alarms in a window cost nothing"
    assert score(500, 300) == pytest.approx(100 - 100 * 0.11 / 2), "one far away costs its weight"
    assert score(500, 605) > score(500, 990)
    assert score(500, 10) == pytest.approx(100), "the probation is not scored"


def packed(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(lzma.compress(buffer.getvalue()))


def run(command, *arguments: str) -> str:  # type: ignore[no-untyped-def]
    result = CliRunner().invoke(command, arguments)
    if result.exception:
        raise result.exception
    return result.output


@pytest.mark.parametrize("command", [detect.main, rca.main])
def test_a_folder_that_does_not_fit_is_one_line(command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for arguments, said in (
        ([], "holds none of"),
        (["--sets", "none"], "--sets: none is not known"),
    ):
        with pytest.raises(TrimtabError, match=said) as error:
            run(command, "--data", str(tmp_path), *arguments)
        assert error.value.exit_code == Exit.USAGE
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["smd8", "nab", "msft-cloud-monitoring", "alibaba-gpu-v2020-minibatch"])
def test_an_empty_set_says_what_is_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(TrimtabError, match=f"--data: .*{name}"):
        run(detect.main, "--data", str(tmp_path), "--sets", name)


@pytest.mark.parametrize("name", ["petshop", "nezha"])
def test_an_empty_set_of_incidents_says_what_is_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(TrimtabError, match=f"--data: .*{name}"):
        run(rca.main, "--data", str(tmp_path), "--sets", name)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "asd12"
    folder.mkdir()
    (folder / "m_test.npy.xz").write_bytes(b"no array")
    (folder / "m_train.npy.xz").write_bytes(b"no array")
    with pytest.raises(TrimtabError, match=r"m_train\.npy\.xz"):
        run(detect.main, "--data", str(tmp_path), "--sets", "asd12")


def test_a_small_machine_goes_all_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "asd12"
    folder.mkdir()
    chance = np.random.default_rng(0)
    train, test, marked = chance.standard_normal((2400, 3)), chance.standard_normal((300, 3)), labels(300, (100, 199))
    test[marked] += 8
    for part, array in (("train", train), ("test", test), ("label", marked)):
        packed(folder / f"m_{part}.npy.xz", array)
    figures = json.loads(run(detect.main, "--data", str(tmp_path), "--workers", "1").splitlines()[-1])
    assert figures["asd12_vus_pr"] > 0.9
    assert figures["asd12_f1_auto"] > 0.6
