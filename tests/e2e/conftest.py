"""One real fleet for all tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import preflight
from tests.e2e.fleet import Instance, fleet
from trimtab import TrimtabError


@pytest.fixture(scope="session")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Instance]]:
    """Three instances that answer. A test leaves them as it found them."""
    try:
        preflight.check_programs()
    except TrimtabError as error:
        pytest.skip(str(error))
    directory: Path = tmp_path_factory.mktemp("fleet")
    with fleet(directory, 3) as running:
        yield running


@pytest.fixture
def root() -> None:
    """For tests that only root can run."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
