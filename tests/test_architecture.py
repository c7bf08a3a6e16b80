"""The rules of the house, as tests: who may import whom, and which one file touches which library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import alone, kernel

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("agent", "collector", "detector", "rootcause", "actuator")
SHARED_BY_AGENT = {"wire", "sketch", "clock", "settings"}
SEAMS = {"pynvml", "bcc", "duckdb", "torch", "optuna", "datasketches", "gymnasium"}
HEAVY = {"duckdb", "numba", "sklearn", "torch", "optuna", "trimtab.collector", "trimtab.detector"}
# The root package: errors and the version. The modules that put the services together are above all floors.
ROOT_PACKAGE = {"trimtab"}


def sources(folder: str) -> Iterator[Path]:
    return (p for p in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in p.name)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_from_its_left(floor: str) -> None:
    left = set(FLOORS[: FLOORS.index(floor) + 1])
    for path in sources(floor):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "trimtab" or len(parts) == 1 or parts[1] in {"Exit", "TrimtabError", "Check", "__version__"}:
                continue
            assert parts[1] in left, f"{path.relative_to(ROOT)} imports {name}"
            if parts[1] == "agent" and floor != "agent" and len(parts) > 2:
                assert parts[2] in SHARED_BY_AGENT, f"{path.relative_to(ROOT)} imports {name}"


def test_one_file_a_library_seam() -> None:
    users: dict[str, set[str]] = {seam: set() for seam in SEAMS}
    for floor in FLOORS:
        for path in sources(floor):
            for seam in SEAMS & {name.split(".")[0] for name in imports(path)}:
                users[seam].add(str(path.relative_to(ROOT)))
    assert {seam: files for seam, files in users.items() if len(files) > 1} == {}


def test_the_agent_is_light() -> None:
    for path in sources("agent"):
        for name in imports(path):
            assert not any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY), f"{path} imports {name}"


def test_the_actuator_does_not_need_its_simulator() -> None:
    """A load balancer's host has neither numba nor gymnasium, and no PyTorch."""
    apart = {"fleetsim", "replay", "tune"}
    for path in sources("actuator"):
        if path.parent.name not in apart:
            for name in imports(path):
                simulator = name.split(".")[0] in {"numba", "gymnasium", "torch"} or bool(apart & set(name.split(".")))
                assert not simulator, f"{path.relative_to(ROOT)} imports {name}"


def test_folders_are_packages_only_through_the_links() -> None:
    for floor in FLOORS:
        link = ROOT / "packaging" / "src" / "trimtab" / floor
        assert link.is_symlink()
        assert link.resolve() == ROOT / floor
    assert not (ROOT / "packaging" / "__init__.py").exists()


def test_no_name_says_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    found = [p for floor in FLOORS for p in sources(floor) if p.stem in empty or p.parent.name in empty]
    assert found == []


def test_no_test_attaches_programs_beside_another_that_does(request: pytest.FixtureRequest) -> None:
    attaching = [item.nodeid for item in request.session.items if item.get_closest_marker("ebpf")]
    assert [each for each in attaching if not (kernel(each) or alone(each))] == [], "tests/conftest.py says which do"
