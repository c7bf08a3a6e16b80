"""One program for several collectors: loaded once, and no part takes the others down."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from trimtab.agent.bpf import host, loader
from trimtab.agent.bpf.host import PARTS, HostProgram, hooks_of
from trimtab.agent.bpf.loader import Program
from trimtab.agent.registry import Unavailable


@pytest.fixture(autouse=True)
def able() -> None:
    try:
        loader.require()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Program]]:
    """Every program that was loaded."""
    programs: list[Program] = []
    load = loader.load

    def noted(*arguments: object, **options: object) -> Program:
        programs.append(load(*arguments, **options))  # type: ignore[arg-type]
        return programs[-1]

    monkeypatch.setattr(loader, "load", noted)
    yield programs
    for program in programs:
        program.close()


def attached(program: Program) -> set[str]:
    return set(program._attached)


def test_all_parts_are_one_program_and_each_has_its_own_hooks(loads: list[Program]) -> None:
    shared = HostProgram()
    first, second = shared.open("block"), shared.open("oom")
    assert first is second
    assert attached(first) == {*hooks_of("block"), *hooks_of("oom")}
    shared.close(first, "block")
    assert attached(first) == set(hooks_of("oom"))
    shared.close(second, "oom")
    assert attached(first) == set()
    assert len(loads) == 1


def test_a_part_that_is_taken_is_loaded_again(loads: list[Program]) -> None:
    shared = HostProgram()
    first, second = shared.open("oom"), shared.open("oom")
    assert first is not second
    shared.close(first, "oom")
    assert attached(second) == set(hooks_of("oom"))


def test_a_part_that_this_kernel_cannot_have_leaves_the_others(
    loads: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = msgspec.structs.replace(PARTS["oom"], offsets={"NODE_NAME": ("kernfs_node.no_such_member",)})
    monkeypatch.setattr(host, "PARTS", PARTS | {"oom": broken})
    shared = HostProgram()
    block = shared.open("block")
    assert attached(block) == set(hooks_of("block"))
    with pytest.raises(Unavailable, match=r"no kernfs_node\.no_such_member"):
        shared.open("oom")
    assert attached(shared.open("tcp")) == set(hooks_of("tcp"))


def test_a_hook_that_this_kernel_lacks_is_named(loads: list[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    attach = Program.switch

    def refuse(program: Program, hook: str, on: bool) -> None:
        if on and hook == "mark_victim":
            raise FileNotFoundError(2, "No such file or directory")
        attach(program, hook, on)

    monkeypatch.setattr(Program, "switch", refuse)
    with pytest.raises(Unavailable, match=r"oom\.c: mark_victim was not attached"):
        HostProgram().open("oom")
