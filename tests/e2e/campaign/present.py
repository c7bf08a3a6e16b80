"""Files by which the instances are told what to do, for as long as they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def present(files: Sequence[Path], content: Callable[[], bytes]) -> Iterator[None]:
    """Each is there at once, with content of its own, until the way out."""
    with ExitStack() as stack:
        for file in files:
            stack.callback(file.unlink, missing_ok=True)
            new = file.with_suffix(".new")
            new.write_bytes(content())
            new.rename(file)
        yield
