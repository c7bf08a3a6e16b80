"""A new version of the model that is slower, on every instance."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from tests.e2e.archive import MODEL, SLOW, SLOW_VERSION
from tests.e2e.fleet import Instance
from trimtab import Exit, TrimtabError

_FIRST = "1.0"
_SECONDS = 60


@contextmanager
def loaded(instances: Sequence[Instance]) -> Iterator[None]:
    """Every instance holds the new version beside the old one, which goes on to answer. Raises TrimtabError."""
    register = f"models?url={SLOW}.mar&model_name={MODEL}&initial_workers=1&synchronous=true"
    try:
        _ask_all(instances, "POST", register)
        yield
    finally:
        with suppress(TrimtabError):
            _ask_all(instances, "DELETE", f"models/{MODEL}/{SLOW_VERSION}")


@contextmanager
def rolled_out(instances: Sequence[Instance]) -> Iterator[None]:
    """Every instance answers with the new version. Raises TrimtabError."""
    try:
        _ask_all(instances, "PUT", f"models/{MODEL}/{SLOW_VERSION}/set-default")
        yield
    finally:
        _ask_all(instances, "PUT", f"models/{MODEL}/{_FIRST}/set-default")


def _ask_all(instances: Sequence[Instance], method: str, path: str) -> None:
    def ask(instance: Instance) -> None:
        request = urllib.request.Request(f"http://{instance.management}/{path}", method=method)
        try:
            urllib.request.urlopen(request, timeout=_SECONDS).close()
        except OSError as error:
            raise TrimtabError(f"TorchServe {instance.name}: {method} {path}: {error}", Exit.UNREACHABLE) from error

    with ThreadPoolExecutor(len(instances)) as pool:
        list(pool.map(ask, instances))
