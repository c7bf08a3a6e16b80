"""The contract of a serving runtime, as a check that every one of them has to pass; for those built outside this house too."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes.base import NoAnswer, Runtime
from trimtab.agent.runtimes.process import ProcessInfo, own_netns
from trimtab.agent.runtimes.vocabulary import Scrape
from trimtab.agent.wire.columns import check_name

NODE = "check"
_GONE = (1 << 22) + 1
"""Above the kernel's PID_MAX_LIMIT: a process that is gone by the time it is looked at."""
STRANGERS = (
    ("",),
    ("init",),
    ("/bin/sh", "-c", "sleep 1"),
    ("python3", "-m", "http.server"),
    ("java", "-jar", "a.jar"),
)
GARBAGE = (b"", b"\xff\xfe", b"{}", b"[" * 9999, b"nonsense\n", b'a{b="c"', b"\0" * 9999)


def check_runtime(runtime_class: type[Runtime], process: ProcessInfo | None = None) -> Scrape | None:
    """Look at strangers, at what has ended, and at answers that make no sense; and at `process`, a server of this kind, if given.

    What that server said, for what else there is to check. Raises AssertionError that names what is broken.
    """
    runtime = runtime_class()
    check_name("name", runtime.name)
    for command in STRANGERS:
        assert runtime.matches(ProcessInfo(_GONE, 1.0, command)) is False, (
            f"{runtime.name}: {command} is no such server"
        )
    if process is None:
        return None
    assert runtime.matches(process) is True, f"{runtime.name}: does not know {process.command}"
    _check_gone(runtime, process)
    instance = runtime.instance(process, NODE)
    assert instance is not None, f"{runtime.name}: {process.command} does not listen"
    check_instance(runtime, process, instance)
    session = runtime.open(instance)
    try:
        scrape = session.scrape()
    finally:
        session.close()
    check_scrape(runtime, scrape)
    _check_garbage(runtime, instance)
    return scrape


def check_instance(runtime: Runtime, process: ProcessInfo, instance: Instance) -> None:
    """It is this process, and only its own listeners are asked."""
    listeners = process.listeners()
    assert instance.id == f"{NODE}/{instance.port}", f"{runtime.name}: id {instance.id}"
    assert instance.runtime == runtime.name, f"{runtime.name}: runtime {instance.runtime}"
    assert (instance.pid, instance.started) == (process.pid, process.started), f"{runtime.name}: another process"
    assert instance.port in listeners, f"{runtime.name}: it does not listen on port {instance.port}"
    assert instance.netns == process.netns(), f"{runtime.name}: netns {instance.netns}"
    for role, url in instance.urls.items():
        scheme, _, rest = url.partition("://")
        assert scheme == "http", f"{runtime.name}: {role}: {url} is not plain HTTP"
        assert int(rest.rpartition(":")[2]) in listeners, f"{runtime.name}: {role}: {url} is not its own"
    for header in instance.headers.values():
        assert header not in repr(instance), f"{runtime.name}: a header shows when the instance is printed"


def check_scrape(runtime: Runtime, scrape: Scrape) -> None:
    """Every figure is finite and not negative, or None; models and workers are unique."""
    names = [(model.name, model.version) for model in scrape.models or ()]
    assert len(set(names)) == len(names), f"{runtime.name}: a model comes twice"
    assert all(name for name, _ in names), f"{runtime.name}: a model without a name"
    for model in scrape.models or ():
        workers = [worker.id for worker in model.vitals.workers or ()]
        assert len(set(workers)) == len(workers), f"{runtime.name}: a worker comes twice"
    for where, value in _numbers("scrape", scrape):
        assert math.isfinite(value), f"{runtime.name}: {where}: {value}; unknown is None"
        assert value >= 0, f"{runtime.name}: {where}: {value} is negative"


def _numbers(where: str, value: object) -> Iterator[tuple[str, float]]:
    if is_dataclass(value):
        for field in fields(value):
            yield from _numbers(f"{where}.{field.name}", getattr(value, field.name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _numbers(f"{where}[{index}]", item)
    elif isinstance(value, int | float):
        yield where, value


def _check_gone(runtime: Runtime, process: ProcessInfo) -> None:
    try:
        found = runtime.instance(replace(process, pid=_GONE), NODE)
    except (OSError, ValueError):
        return
    assert found is None, f"{runtime.name}: finds an instance where the process has ended"


def _check_garbage(runtime: Runtime, instance: Instance) -> None:
    """It may be no answer, or one that says nothing wrong."""
    for body in GARBAGE:
        with _saying(body) as url:
            fooled = replace(instance, pid=os.getpid(), netns=own_netns(), urls=dict.fromkeys(instance.urls, url))
            session = runtime.open(fooled)
            try:
                check_scrape(runtime, session.scrape())
            except NoAnswer:
                pass
            finally:
                session.close()
    silent = runtime.open(fooled)
    try:
        silent.scrape()
    except NoAnswer:
        return
    finally:
        silent.close()
    raise AssertionError(f"{runtime.name}: an answer from where nothing listens")


@contextmanager
def _saying(body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
