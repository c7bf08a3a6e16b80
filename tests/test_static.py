"""What the linters say is part of the suite."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

import pytest

from tests import protoc

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff-check", "ruff-format", "mypy"],
)
def test_linter(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_generated_code_is_current(tmp_path: Path) -> None:
    protoc.generate(tmp_path)
    fresh = sorted((tmp_path / "trimtab" / "agent" / "wire").glob("*_pb2*"))
    assert len(fresh) == 3 * len(protoc.PROTOS)
    stale = [f.name for f in fresh if not filecmp.cmp(f, ROOT / "agent" / "wire" / f.name, shallow=False)]
    assert stale == [], "run `make proto`"
