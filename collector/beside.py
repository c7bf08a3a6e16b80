"""A file appears under its name only when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimtab import Exit, TrimtabError


@contextmanager
def beside(path: Path, replace: bool) -> Iterator[Path]:
    """Where to write what becomes `path` once the block ends well; else it is removed, and `path` stays as it was.

    It is alone in a directory that only this user can enter. Raises TrimtabError when there can be no such file, and when
    there already is one, unless `replace`.
    """
    target = Path(os.path.realpath(path))
    try:
        _check(path, target, replace)
        room = Path(tempfile.mkdtemp(prefix=f".{target.name[:64]}.", dir=target.parent))
        try:
            part = room / target.name
            yield part
            _flush(part)
            _check(path, target, replace)
            part.rename(target)
            _flush(target.parent)
        finally:
            shutil.rmtree(room, ignore_errors=True)
    except OSError as error:
        raise TrimtabError(f"{path}: cannot be written: {error.strerror or error}", Exit.STATE) from error


def _check(path: Path, target: Path, replace: bool) -> None:
    if target.exists() and not target.is_file():
        raise TrimtabError(f"{path}: is no ordinary file; give another name", Exit.STATE)
    if target.exists() and not replace:
        raise TrimtabError(f"{path}: is there already, and is not overwritten; give another name", Exit.STATE)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
