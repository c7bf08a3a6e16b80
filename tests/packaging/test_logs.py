"""Log lines as entries of the journal, read back from the datagrams."""

from __future__ import annotations

import io
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab import logs


def parse(entry: bytes) -> dict[str, str]:
    """The journal's native format, as its specification has it."""
    out, rest = {}, io.BytesIO(entry)
    while line := rest.readline():
        name, equals, value = line.removesuffix(b"\n").partition(b"=")
        if not equals:
            value = rest.read(int.from_bytes(rest.read(8), "little"))
            assert rest.read(1) == b"\n"
        out[name.decode()] = value.decode()
    return out


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "journal"))
        line.settimeout(5)
        yield line


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.WARNING, "4"), (logging.ERROR, "3"), (logging.CRITICAL, "2")],
)
def test_an_entry_has_its_fields(journal: socket.socket, tmp_path: Path, level: int, priority: str) -> None:
    handler = logs.JournalHandler(str(tmp_path / "journal"), "agent")
    handler.handle(logging.LogRecord("trimtab.x", level, "/a/b.py", 7, "%d of\nthem", (3,), None, "f"))
    entry = parse(journal.recv(1 << 20))
    assert entry.pop("TRIMTAB_VERSION")
    assert entry == {
        "MESSAGE": "3 of\nthem",
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": "trimtab-agent",
        "TRIMTAB_SERVICE": "agent",
        "LOGGER": "trimtab.x",
        "THREAD_NAME": "MainThread",
        "CODE_FILE": "/a/b.py",
        "CODE_LINE": "7",
        "CODE_FUNC": "f",
    }


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_one_field_and_comes_back(text: str) -> None:
    assert parse(logs.field("A", text) + logs.field("B", "b")) == {"A": text, "B": "b"}


def test_a_huge_message_is_cut(journal: socket.socket, tmp_path: Path) -> None:
    handler = logs.JournalHandler(str(tmp_path / "journal"), "agent")
    handler.handle(logging.LogRecord("x", logging.INFO, "p", 1, "y" * 10_000_000, None, None))
    assert parse(journal.recv(1 << 20))["MESSAGE"] == "y" * logs.FIELD_BYTES_MAX


def test_without_a_journal_lines_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = logs.JournalHandler(str(tmp_path / "nobody"), "agent")
    handler.handle(logging.LogRecord("trimtab.x", logging.WARNING, "p", 1, "text", None, None))
    assert capsys.readouterr().err == "WARNING trimtab.x: text\n"


SAYS = "import logging, os; from trimtab.logs import set_up; set_up(20, 'agent', os.environ); logging.info('hello')"


@pytest.mark.parametrize("to_journal", [True, False])
def test_the_time_is_written_where_nobody_else_writes_it(tmp_path: Path, to_journal: bool) -> None:
    with (tmp_path / "stderr").open("w+") as stderr:
        status = os.fstat(stderr.fileno())
        inode = status.st_ino if to_journal else status.st_ino + 1
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{inode}"}
        # No journal listens there, so that the line comes back to standard error.
        code = SAYS.replace("set_up(", f"import trimtab.logs; trimtab.logs.JOURNAL = '{tmp_path}/nobody'; set_up(")
        subprocess.run([sys.executable, "-c", code], env=environment, stderr=stderr, check=True, timeout=60)
        stderr.seek(0)
        written = stderr.read()
    assert written.endswith("INFO root: hello\n")
    assert (written == "INFO root: hello\n") is to_journal
