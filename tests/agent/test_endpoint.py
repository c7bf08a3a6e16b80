"""Asking a server over HTTP, within limits: servers that answer well, and servers that do not."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.http_stub import answering, said_with
from trimtab.agent.registry import Instance
from trimtab.agent.runtimes import api
from trimtab.agent.runtimes.base import NoAnswer
from trimtab.agent.runtimes.endpoint import ANSWER_BYTES_MAX, Endpoint, Refused
from trimtab.agent.runtimes.netns import inside
from trimtab.agent.runtimes.process import ProcessInfo, own_netns

BODY = b"x" * 20
GOOD = said_with(b"200 OK", BODY)
BAD_ANSWERS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "trickles": (GOOD, {"pause_seconds": 0.05, "pieces": 20}),
    "too much": (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + bytes(ANSWER_BYTES_MAX * 2), {}),
    "endless": (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(ANSWER_BYTES_MAX * 2), {}),
    "endless in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * ANSWER_BYTES_MAX,
        {},
    ),
    "endless head": (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * ANSWER_BYTES_MAX, {}),
    "cut short": (b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n" + BODY, {}),
    "two at once": (GOOD + GOOD, {}),
    "not HTTP": (b"SSH-2.0-OpenSSH\r\n", {}),
    "silence": (b"", {}),
    "another protocol from now on": (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", {}),
}


def served(url: str, pid: int = 0, netns: int = 0) -> Instance:
    return Instance("n/1", "stub", pid or os.getpid(), 0.0, 1, netns or own_netns(), (), urls={"api": url})


def asking(url: str) -> closing[Endpoint]:
    return closing(Endpoint(served(url), "api"))


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_is_no_answer(answer: tuple[bytes, dict[str, Any]]) -> None:
    with answering(answer[0], **answer[1]) as stub, asking(stub.url) as api, pytest.raises(NoAnswer):
        api.get("/")


PIECES = [
    b"HTTP/1.1 ",
    b"200",
    b" OK\r\n",
    b"Content-Length: ",
    b"20",
    b"\r\n",
    b"\r\n",
    b"Transfer-Encoding: chunked\r\n",
    BODY,
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=14))
def test_any_answer_is_a_body_or_no_answer(pieces: list[bytes]) -> None:
    with answering(b"".join(pieces)) as stub, asking(stub.url) as api, contextlib.suppress(NoAnswer):
        assert len(api.get("/")) <= len(b"".join(pieces))


def test_a_connection_is_kept_and_made_anew_when_it_was_closed() -> None:
    with answering(GOOD, each=2) as stub, asking(stub.url) as api:
        assert [api.get("/") for _ in range(5)] == [BODY] * 5
        assert stub.connections == 3


def test_where_nothing_listens_there_is_no_answer() -> None:
    with answering(GOOD) as stub:
        instance = served(stub.url)
    with closing(Endpoint(instance, "api")) as api, pytest.raises(NoAnswer):
        api.get("/")


def test_chunks_are_put_together() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nxxxxx\r\nf\r\n" + BODY[5:] + b"\r\n0\r\n\r\n"
    with answering(chunked, pieces=7) as stub, asking(stub.url) as api:
        assert api.get("/") == BODY


def test_redirects_are_not_followed() -> None:
    redirect = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with answering(redirect) as stub, asking(stub.url) as api, pytest.raises(Refused, match="302"):
        api.get("/")


SERVE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hidden")
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def elsewhere() -> Iterator[tuple[int, int]]:
    """The pid and port of a server on the loopback of another network namespace."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" -c "$1"', sys.executable, SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def test_an_api_in_another_network_namespace_is_asked_there(elsewhere: tuple[int, int]) -> None:
    pid, port = elsewhere
    process = ProcessInfo(pid, 0.0, ())
    assert process.netns() != own_netns()
    urls = api.urls("n/1", process, process.listeners(), {"api": port}, api.Told())
    assert urls == {"api": f"http://127.0.0.1:{port}"}
    instance = served(urls["api"], pid, process.netns())
    with closing(Endpoint(instance, "api")) as asked:
        assert asked.get("/") == b"hidden"
    with closing(Endpoint(served(urls["api"]), "api")) as ours, pytest.raises(NoAnswer):
        ours.get("/")
    assert Path("/proc/self/ns/net").stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino == own_netns()


def test_a_namespace_that_its_process_has_left_is_not_entered(elsewhere: tuple[int, int]) -> None:
    with pytest.raises(ProcessLookupError):
        inside(elsewhere[0], own_netns() + 1, socket.socket)


WITHOUT_SYS_ADMIN = """
import ctypes, logging, os, struct, sys
from trimtab.agent.runtimes import api
from trimtab.agent.runtimes.process import ProcessInfo
logging.basicConfig(stream=sys.stdout)
libc = ctypes.CDLL(None, use_errno=True)
header = struct.pack("II", 0x20080522, 0)
data = bytearray(24)
assert libc.capget(header, (ctypes.c_char * 24).from_buffer(data)) == 0
words = list(struct.unpack("6I", data))
words[0] &= ~(1 << 21)
assert libc.capset(header, struct.pack("6I", *words)) == 0
process = ProcessInfo(int(sys.argv[1]), 0.0, ())
print(api.urls("n/1", process, process.listeners(), {"api": int(sys.argv[2])}, api.Told()))
"""


def test_without_the_capability_it_is_unknown_and_said_so(elsewhere: tuple[int, int]) -> None:
    command = [sys.executable, "-c", WITHOUT_SYS_ADMIN, *map(str, elsewhere)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.endswith("{}\n")
    assert said.count("CAP_SYS_ADMIN") == 1
