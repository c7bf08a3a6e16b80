"""Whatever is fed to a parser gives a value that can be, or the error that is documented; nothing else, and never an endless loop."""

from __future__ import annotations

import dataclasses
import inspect
import ipaddress
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent import test_procfs as good
from tests.agent.fakes import schema_of, window_of
from tests.agent.test_columns import column, schema
from trimtab.agent import cgroup, procfs, segment
from trimtab.agent.wire import columns
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import Malformed

TEXTS = [
    *(good.STAT, good.CPU, good.PRESSURE, good.SNMP, good.TCP6, good.TCP, good.FIB_TRIE, good.IF_INET6, good.HYBRID),
    *(
        good.PURE_V2,
        "500 1500000000 7\n",
        "oom_kill 3\n",
        "0::/a/b\n",
        "9:cpu,cpuacct:/a\n",
        "150000 100000\n",
        "max 1\n",
    ),
]
# These open a file themselves.
READERS = {"read", "throttling", "limit_cores"}
MOUNTS = [good.V1, good.V2, cgroup.Mount(2, PurePosixPath("/sys/fs/cgroup"), PurePosixPath("/box"))]


def parsers() -> dict[str, Callable[[str], Any]]:
    """Every public function of the two modules that makes something of a text: a new one is fuzzed without being named here."""
    found: dict[str, Callable[[str], Any]] = {}
    for module in (procfs, cgroup):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_") or name in READERS:
                continue
            kinds = [str(parameter.annotation) for parameter in inspect.signature(function).parameters.values()]
            if kinds == ["str"]:
                found[name] = function
            elif kinds == ["Mount", "str"]:
                found |= {f"{name} {mount.version} {mount.root}": partial(function, mount) for mount in MOUNTS}
    return found


PARSERS = parsers()


@st.composite
def broken(draw: st.DrawFn) -> str:
    """A file of procfs with a part of it replaced; or something else altogether."""
    text = draw(st.sampled_from(TEXTS))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, len(text)))
    digits = st.text("0123456789ABCDEFabcdef.-+_x :\n\0/", max_size=80)
    part = draw(st.one_of(st.text(max_size=80), digits, st.sampled_from(TEXTS)))
    return part if draw(st.booleans()) and draw(st.booleans()) else text[:start] + part + text[end:]


def check(value: Any) -> None:
    """No negative number, no NaN; texts and containers of such."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        for part in value:
            check(part)
    elif isinstance(value, int | float):
        assert not math.isnan(value)
        assert value >= 0
    else:
        assert value is None or isinstance(value, str | PurePosixPath)


def test_the_parsers_are_found() -> None:
    assert {"process_stat", "pressure", "listeners", "cpu_mount", "quota_cores", "whole"} <= PARSERS.keys()
    assert len(PARSERS) >= 16


@pytest.mark.parametrize("name", sorted(PARSERS))
@settings(max_examples=60, deadline=None)
@given(text=broken())
def test_a_parser_of_procfs(name: str, text: str) -> None:
    try:
        value = PARSERS[name](text)
    except ValueError:
        return
    check(value)
    if name == "listeners":
        for address, port in value.values():
            ipaddress.ip_address(address)
            assert port <= 65535


@pytest.mark.parametrize("port", ["-001", "+1F4", "0x1F", "1_00", "10000", "", "１F90"])
def test_a_port_is_four_hexadecimal_digits(port: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        procfs.listeners(good.TCP.replace("1F90", port))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "cpu.max").write_bytes(b"\xff\xfe")
    assert cgroup.throttling(str(tmp_path)) == cgroup.Throttling(0, 0)
    with pytest.raises(ValueError, match="not a whole number"):
        cgroup.limit_cores(cgroup.Mount(2, PurePosixPath(tmp_path), PurePosixPath("/")), str(tmp_path))


def test_a_file_without_an_end_is_read_so_far_and_no_further() -> None:
    assert len(procfs.read("/dev/zero")) == procfs.BYTES_MAX


# Files of the spool.

WHOLE = segment.pack(segment.SCHEMA, b"schema") + b"".join(
    segment.pack(segment.WINDOW, window_of(schema_of(), size).SerializeToString()) for size in (0, 5, 90)
)


@st.composite
def torn(draw: st.DrawFn, whole: bytes = WHOLE) -> bytes:
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, len(whole)))
    record = st.builds(segment.pack, st.integers(0, 255), st.binary(max_size=40))
    return whole[:start] + draw(st.one_of(st.binary(max_size=60), record)) + whole[end:]


@settings(max_examples=150, deadline=None)
@given(data=torn())
def test_records_of_a_file_that_is_not_whole(data: bytes) -> None:
    ends, offset = [0], 0
    for kind, payload, end in segment.unpack(data):
        assert kind in (segment.SCHEMA, segment.WINDOW)
        assert data[offset:end] == segment.pack(kind, payload)
        ends.append(end)
        offset = end
    assert ends == sorted(set(ends))
    assert ends[-1] <= len(data)


@settings(max_examples=100, deadline=None)
@given(data=torn())
def test_a_file_that_is_not_whole_is_measured(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = segment.path_of(tmp_path_factory.getbasetemp(), 7)
    path.write_bytes(data)
    found = segment.scan(path)
    assert found.windows == sum(kind == segment.WINDOW for kind, _, _ in segment.unpack(data))
    assert 0 <= found.bytes <= len(data)
    assert found.last == 6 + found.windows


# Messages.


@st.composite
def mangled(draw: st.DrawFn, message: Message) -> Message | None:
    """The message with some of its bytes replaced; None where it is no message any more."""
    data = message.SerializeToString()
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 8)))
    try:
        return type(message).FromString(data[:start] + draw(st.binary(max_size=8)) + data[end:])
    except DecodeError:
        return None


@settings(max_examples=120, deadline=None)
@given(bad=mangled(schema()))
def test_a_schema(bad: pb.Schema | None) -> None:
    if bad is None:
        return
    # Its hash would catch all of it.
    bad.hash = columns.schema_hash(bad)
    try:
        columns.check_schema(bad)
    except Malformed:
        return
    for table in bad.tables:
        assert all(0 < len(subject.id) <= columns.TEXT_MAX for subject in table.subjects)


@settings(max_examples=120, deadline=None)
@given(bad=mangled(pb.Window(values=[b"\0" * 48], sketches=[column()])))
def test_a_window(bad: pb.Window | None) -> None:
    if bad is None:
        return
    try:
        for block in columns.unpack_values(bad, schema()):
            assert block.shape == (2, 3)
        for sketches in bad.sketches:
            assert (columns.unpack_sketches(sketches, schema()).buckets < columns.BUCKETS).all()
    except Malformed:
        return


def refusal(check_it: Callable[[str, Any], None], value: Any) -> str:
    """Why it is refused; empty where it is not."""
    try:
        check_it("the field", value)
    except Malformed as error:
        return str(error)
    return ""


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=300), labels=st.dictionaries(st.text(max_size=300), st.text(max_size=300), max_size=80))
def test_names_and_labels(text: str, labels: dict[str, str]) -> None:
    for check_text in (columns.check_name, columns.check_node_name):
        why = refusal(check_text, text)
        assert why.startswith("the field") or (not why and text.isascii() and text.isprintable() and len(text) <= 128)
    why = refusal(columns.check_labels, labels)
    size = sum(len(key) + len(value) for key, value in labels.items())
    assert why.startswith("the field") or (not why and size <= columns.LABELS_CHARACTERS_MAX)
