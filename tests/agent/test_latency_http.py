"""What the request probes make of HTTP/1: status, interim answers, pipelining, bodies, pieces of heads. Counted workloads."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from threading import Event

import pytest

from tests.agent.requests_kit import (
    BODY,
    Client,
    Server,
    Watch,
    head,
    instance,
    needs_ebpf,
    sent_hook,
    serve,
    server,
    shared,
    until,
    watch,
)
from trimtab.agent.bpf.capability import SentHook

__all__ = ["sent_hook", "serve", "server", "shared", "watch"]
pytestmark = needs_ebpf

MEGABYTE = bytes(1 << 20)


def each_line(answers: Callable[[socket.socket, bytes], object]) -> Callable[[socket.socket], None]:
    """A server that does this for each line that it reads."""

    def handle(conversation: socket.socket) -> None:
        with conversation.makefile("rb") as lines:
            for line in lines:
                answers(conversation, line)

    return handle


def with_status(conversation: socket.socket, line: bytes) -> None:
    conversation.sendall(head(int(line)) + BODY)


def test_answers_with_an_error_are_counted_by_whose_fault_it_is(
    serve: Callable[..., Server], watch: Callable[..., Watch], sent_hook: SentHook
) -> None:
    server = serve(each_line(with_status))
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    for status in [200] * 9 + [503] * 7 + [404] * 4 + [301, 204, 499, 500]:
        client.socket.sendall(f"{status}\n".encode())
        client.receive(BODY)
    until(lambda: seen.count(serving) >= 24)
    assert seen.count(serving) == seen.sampled(serving) == 24
    assert seen.count(serving, "request_errors_per_second") == 8
    assert seen.count(serving, "request_client_errors_per_second") == 5
    assert seen.count(serving, "requests_unmeasured_per_second") == 0


def test_an_interim_answer_does_not_end_the_request(
    serve: Callable[..., Server], watch: Callable[..., Watch], sent_hook: SentHook
) -> None:
    """`100 Continue`, and early hints: the latency is that of the final answer."""

    def handle(conversation: socket.socket) -> None:
        with conversation.makefile("rb") as lines:
            while lines.readline():
                conversation.sendall(head(100, ""))
                lines.readline()
                conversation.sendall(head(103, "link: x\r\n"))
                time.sleep(0.05)
                conversation.sendall(head() + BODY)

    server = serve(handle)
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    for _ in range(5):
        client.socket.sendall(b"may I\n")
        client.receive(b"\r\n\r\n")
        client.socket.sendall(b"the body\n")
        client.receive(BODY)
    until(lambda: seen.count(serving) >= 5)
    assert seen.count(serving) == seen.sampled(serving) == 5
    assert seen.sketch(serving).quantiles_seconds((0.0,))[0] > 0.045
    assert seen.in_flight(serving) == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_pipelined_requests_have_no_latency(
    serve: Callable[..., Server], watch: Callable[..., Watch], sent_hook: SentHook, at_once: bool
) -> None:
    """The first answer is to what came first; that more of them go while nothing waits proves the rest."""
    server = serve(each_line(with_status))
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    client.socket.sendall(b"503\n" * 10)
    if at_once:
        client.socket.sendall(b"200\n" * 5)
    count = 15 if at_once else 10
    received = b""
    while received.count(BODY) < count:
        received += client.socket.recv(65536)
    until(lambda: seen.count(serving) >= count)
    assert seen.count(serving) == count
    assert seen.count(serving, "request_errors_per_second") == 10
    assert seen.count(serving, "requests_unmeasured_per_second") == count - 1
    assert seen.sampled(serving) == 1
    client.socket.sendall(b"200\n")
    client.receive(BODY)
    assert seen.count(serving) == count + 1
    assert seen.count(serving, "requests_unmeasured_per_second") == count, "not measured till it closes"
    assert seen.in_flight(serving) == 0
    other = Client(server.port)
    other.socket.sendall(b"200\n")
    other.receive(BODY)
    until(lambda: seen.sampled(serving) == 2)


def test_an_answer_to_a_request_before_the_one_that_waits_is_no_latency(
    serve: Callable[..., Server], watch: Callable[..., Watch]
) -> None:
    """Two requests are always under way: nothing ever waits alone, but the server answers before it reads."""
    may_answer = Event()

    def handle(conversation: socket.socket) -> None:
        while conversation.recv(4):
            may_answer.wait()
            may_answer.clear()
            conversation.sendall(head() + BODY)

    server = serve(handle)
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    client.socket.sendall(b"ask\n" * 2)
    for _ in range(8):
        may_answer.set()
        client.receive(BODY)
        client.socket.sendall(b"ask\n")
    for _ in range(2):
        may_answer.set()
        client.receive(BODY)
    until(lambda: seen.count(serving) >= 10)
    assert seen.count(serving) == 10
    assert seen.sampled(serving) <= 1, "only the first can be known"
    assert seen.in_flight(serving) == 0


@pytest.mark.parametrize("length", [1, 3, 8, 11])
def test_a_head_in_pieces_is_one(
    serve: Callable[..., Server], watch: Callable[..., Watch], sent_hook: SentHook, length: int
) -> None:
    """Whether in many sends or in one with many parts. The first byte is what ends the latency."""

    def in_pieces(conversation: socket.socket, line: bytes) -> None:
        text = head(int(line[:3]))
        pieces = [text[i : i + length] for i in range(0, 18, length)] + [text[18 + -18 % length :] + BODY]
        if line.startswith(b"5"):
            conversation.sendmsg(pieces)
        else:
            for piece in pieces:
                conversation.sendall(piece)
                time.sleep(0.002)

    server = serve(each_line(in_pieces))
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    for status in [500, 404] * 3:
        client.socket.sendall(f"{status}\n".encode())
        client.receive(BODY)
    until(lambda: seen.count(serving) >= 6)
    assert seen.count(serving) == seen.sampled(serving) == 6
    assert seen.count(serving, "request_client_errors_per_second") == 3
    assert seen.count(serving, "request_errors_per_second") == 3


def chunks(conversation: socket.socket, line: bytes) -> None:
    conversation.sendall(head(200, "transfer-encoding: chunked\r\n"))
    for _ in range(5):
        conversation.sendall(b"400\r\n" + bytes(0x400) + b"\r\n")
        time.sleep(0.01)
    conversation.sendall(b"0\r\n\r\n")


def test_the_last_byte_of_a_chunked_answer_ends_its_duration(
    serve: Callable[..., Server], watch: Callable[..., Watch], sent_hook: SentHook
) -> None:
    server = serve(each_line(chunks))
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    for _ in range(4):
        client.socket.sendall(b"ask\n")
        client.receive(b"0\r\n\r\n")
    assert seen.sampled(serving, "request_duration") == 3, "the last one is not known to be complete"
    client.close()
    until(lambda: seen.sampled(serving, "request_duration") >= 4)
    assert seen.count(serving) == seen.sampled(serving) == seen.sampled(serving, "request_duration") == 4
    assert seen.sketch(serving).quantiles_seconds((0.0,))[0] < 0.045
    assert seen.sketch(serving, "request_duration").quantiles_seconds((0.0,))[0] > 0.045


def megabytes(conversation: socket.socket) -> None:
    """Takes a megabyte, gives a megabyte."""
    while True:
        left = len(MEGABYTE)
        while left:
            taken = len(conversation.recv(left))
            if not taken:
                return
            left -= taken
        conversation.sendall(head(200, f"content-length: {len(MEGABYTE)}\r\n") + MEGABYTE)


def test_large_bodies_are_one_request_each(
    serve: Callable[..., Server], watch: Callable[..., Watch], sent_hook: SentHook
) -> None:
    server = serve(megabytes)
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    for _ in range(6):
        client.socket.sendall(MEGABYTE)
        left = len(MEGABYTE)
        received = client.receive(b"\r\n\r\n") if left < 0 else client.socket.recv(65536)
        left -= len(received.partition(b"\r\n\r\n")[2])
        while left:
            time.sleep(0.001)  # so that the server must wait for room
            left -= len(client.socket.recv(left))
    client.close()
    until(lambda: seen.count(serving) >= 6)
    assert seen.count(serving) == seen.sampled(serving) == 6
    until(lambda: seen.sampled(serving, "request_duration") >= 6)
    assert seen.count(serving, "requests_unmeasured_per_second") == 0
    assert seen.in_flight(serving) == 0


def test_an_answer_that_goes_on_while_the_next_request_comes_has_its_own_duration(
    serve: Callable[..., Server], watch: Callable[..., Watch]
) -> None:
    begun, go_on = Event(), Event()

    def handle(conversation: socket.socket) -> None:
        conversation.recv(4)
        conversation.sendall(head())
        begun.set()
        go_on.wait()
        time.sleep(0.03)
        conversation.sendall(BODY)
        conversation.recv(4)
        conversation.sendall(head() + BODY)

    server = serve(handle)
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    client.socket.sendall(b"ask\n")
    begun.wait()
    client.socket.sendall(b"ask\n")
    until(lambda: seen.in_flight(serving) == 1)
    go_on.set()
    client.receive(BODY)
    until(lambda: seen.count(serving) == 2)
    client.close()
    until(lambda: seen.sampled(serving, "request_duration") == 1)
    assert seen.sketch(serving, "request_duration").quantiles_seconds((0.0,))[0] > 0.03
    assert seen.count(serving, "requests_unmeasured_per_second") == 1, (
        "who asks before the answer ends does not take turns"
    )
