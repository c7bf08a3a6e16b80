"""A file of results, a line of JSON each, written as soon as there is one, so that a long measurement can go on where it ended."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from trimtab import Exit, TrimtabError

S = TypeVar("S", bound=msgspec.Struct)


def append(file: Path, record: msgspec.Struct) -> None:
    """Add a record to the file."""
    with file.open("ab") as out:
        out.write(msgspec.json.encode(record) + b"\n")


def read(file: Path, kind: type[S]) -> list[S]:
    """The records of the file; none if it is not there. A last line that was cut short is cut off.

    Raises TrimtabError that names the first other line that is no such record.
    """
    if not file.exists():
        return []
    whole, _, rest = file.read_bytes().rpartition(b"\n")
    if rest:
        file.write_bytes(whole + b"\n" * bool(whole))
    return [_decode(file, number, line, kind) for number, line in enumerate(whole.splitlines(), 1)]


def _decode(file: Path, number: int, line: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise TrimtabError(f"{file}:{number}: {error}: remove that line or name another file", Exit.STATE) from error
