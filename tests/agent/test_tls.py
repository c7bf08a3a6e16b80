"""Mutual TLS between a real agent's publisher and a real collector: who gets in, who does not, and new certificates without a restart."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.agent.authority import ADDRESS, Authority
from tests.agent.fakes import until
from tests.collector.sender import CLOCK, Recording, Sending, hello, schema, window
from trimtab import Exit, TrimtabError
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.publish import Publisher
from trimtab.agent.settings import Tls
from trimtab.agent.spool import Spool
from trimtab.agent.wire import channel
from trimtab.agent.wire import query_pb2 as query
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.certificates import CertificateFiles
from trimtab.agent.wire.query_pb2_grpc import QueryStub
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub
from trimtab.collector.server import Collector
from trimtab.collector.settings import CollectorSettings

SETTINGS = CollectorSettings(listen=f"{ADDRESS}:0", memory_bytes_max=128 << 20, agents_max=8)


class Host:
    """One that publishes what it is given."""

    def __init__(self, directory: Path, port: int, tls: Tls) -> None:
        self.vitals = Vitals()
        self.spool = Spool(directory / "spool", 64 << 20, self.vitals)
        self.schema = schema({"node": (["cpu_used_cores"], ["n1"])})
        self.publisher = Publisher(
            target=f"{ADDRESS}:{port}",
            tls=tls,
            spool=self.spool,
            hello=lambda: hello(spool_id=self.spool.id, first_seq=self.spool.first_seq).hello,
            refused=directory / "refused",
            clock=SystemClock(),
            rng=random.Random(1),
            vitals=self.vitals,
        )

    def append(self, count: int) -> None:
        for _ in range(count):
            self.spool.append(self.schema, window(1, self.schema).window)

    def delivered(self) -> bool:
        return self.spool.waiting == 0

    def close(self) -> None:
        self.publisher.close(2)
        self.spool.close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server_tls(authority: Authority, tmp_path: Path) -> Tls:
    return authority.issue(tmp_path / "server")


@pytest.fixture
def collector(server_tls: Tls, tmp_path: Path) -> Iterator[Collector]:
    one = Collector(SETTINGS, server_tls, tmp_path / "collector", CLOCK, Recording())
    one.start()
    yield one
    one.stop()


@pytest.fixture
def connect(collector: Collector, tmp_path: Path) -> Iterator[Callable[[Tls], Host]]:
    hosts: list[Host] = []

    def connect(tls: Tls) -> Host:
        hosts.append(Host(tmp_path / f"host{len(hosts)}", collector.port, tls))
        hosts[-1].publisher.start()
        return hosts[-1]

    yield connect
    for host in hosts:
        host.close()


def stored(collector: Collector) -> list[int]:
    collector._writer.settle(20)
    return [seq for (seq,) in collector._store.cursor().execute("SELECT seq FROM windows ORDER BY seq").fetchall()]


def copy(source: Tls, target: Tls) -> None:
    for name in ("ca", "key", "certificate"):
        Path(getattr(target, name)).write_bytes(Path(getattr(source, name)).read_bytes())


def test_an_agent_with_a_certificate_delivers(
    collector: Collector, connect: Callable[[Tls], Host], authority: Authority, tmp_path: Path
) -> None:
    host = connect(authority.issue(tmp_path / "agent"))
    host.append(50)
    until(host.delivered)
    assert stored(collector) == list(range(1, 51))
    assert host.vitals.connected


@pytest.mark.parametrize("who", ["a stranger", "expired", "one that trusts another authority"])
def test_who_has_no_good_certificate_is_not_let_in(
    who: str,
    collector: Collector,
    connect: Callable[[Tls], Host],
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stranger = Authority("authority")
    if who == "expired":
        tls = authority.issue(tmp_path / "agent", expired_days=1)
    else:
        tls = stranger.issue(tmp_path / "agent")
        other = (stranger if who == "one that trusts another authority" else authority).pem
        Path(tls.ca).write_bytes(other)
        if who == "one that trusts another authority":
            key, certificate = authority.pair()
            Path(tls.key).write_bytes(key)
            Path(tls.certificate).write_bytes(certificate)
    host = connect(tls)
    host.append(3)
    until(lambda: host.publisher._failures >= 2)
    assert host.spool.waiting == 3
    assert not host.vitals.connected
    assert host.vitals.streams == 0
    assert stored(collector) == []
    assert sum("is away" in record.getMessage() for record in caplog.records) == 1
    # It is the certificate: with a good one it is let in, without a restart.
    authority.issue(tmp_path / "agent")
    until(host.delivered)
    assert stored(collector) == [1, 2, 3]


def test_a_collector_whose_certificate_has_expired_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    expired = authority.issue(tmp_path / "server", expired_days=1)
    collector = Collector(SETTINGS, expired, tmp_path / "collector", CLOCK, Recording())
    collector.start()
    host = Host(tmp_path / "host", collector.port, authority.issue(tmp_path / "agent"))
    try:
        host.append(1)
        host.publisher.start()
        until(lambda: host.publisher._failures >= 2)
        assert host.vitals.streams == 0
        # The server takes up new files with the next connection.
        authority.issue(tmp_path / "server")
        until(host.delivered)
    finally:
        host.close()
        collector.stop()


def publish_one(link: grpc.Channel) -> pb.CollectorMessage:
    return Sending(TelemetryStub(link), hello()).next()


def remark(link: grpc.Channel) -> query.RemarkReply:
    request = query.RemarkRequest(who="eve", silence=query.SilenceRequest(target="n1", seconds=60))
    reply: query.RemarkReply = QueryStub(link).Remark(request, timeout=10)
    return reply


def steer(link: grpc.Channel) -> query.SteerReply:
    request = query.SteerRequest(who="eve", override=query.OverrideRequest(kind=query.Override.KIND_NEUTRAL))
    reply: query.SteerReply = QueryStub(link).Steer(request, timeout=10)
    return reply


def test_without_a_certificate_nobody_is_let_in(collector: Collector, server_tls: Tls) -> None:
    target = f"{ADDRESS}:{collector.port}"
    only_ca = grpc.ssl_channel_credentials(Path(server_tls.ca).read_bytes())
    for call in (publish_one, remark, steer):
        for link in (grpc.secure_channel(target, only_ca), grpc.insecure_channel(target)):
            with link, pytest.raises(grpc.RpcError) as caught:
                call(link)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with channel.channel(target, server_tls, "test") as link:
        assert publish_one(link).HasField("welcome")
    with channel.channel(target, server_tls, "test") as link:
        assert remark(link).silence.target == "n1"
        assert steer(link).overrides[0].who == "eve"


def test_certificates_and_authority_are_replaced_while_windows_flow(
    collector: Collector,
    connect: Callable[[Tls], Host],
    authority: Authority,
    server_tls: Tls,
    tmp_path: Path,
) -> None:
    """In the order of an operator: both sides trust both authorities, then show the new certificates, then forget the old."""
    old_tls = authority.issue(tmp_path / "old")
    tls = authority.issue(tmp_path / "agent")
    host = connect(tls)
    host.append(20)
    until(lambda: host.vitals.connected)
    new = Authority("new authority")

    def both_trust() -> None:
        for side in (server_tls, tls):
            Path(side.ca).write_bytes(authority.pem + new.pem)

    def both_show() -> None:
        for side in (server_tls, tls):
            key, certificate = new.pair()
            Path(side.key).write_bytes(key)
            Path(side.certificate).write_bytes(certificate)

    def both_forget() -> None:
        for side in (server_tls, tls):
            Path(side.ca).write_bytes(new.pem)

    for step, change in enumerate((both_trust, both_show, both_forget), start=1):
        change()
        deadline_streams = step + 1

        def again(streams: int = deadline_streams) -> bool:
            host.append(5)
            return host.vitals.streams >= streams and host.vitals.connected

        until(again, 15)
    host.append(20)
    until(host.delivered)
    assert stored(collector) == list(range(1, host.spool.last_seq + 1))
    assert host.vitals.windows_lost == 0
    assert host.vitals.certificates_renewed >= 3
    assert host.publisher._failures == 0
    # The old authority's certificates are good no more.
    with channel.channel(f"{ADDRESS}:{collector.port}", old_tls, "test") as link, pytest.raises(grpc.RpcError):
        publish_one(link)


def test_half_a_renewal_changes_nothing_and_is_said_once(
    collector: Collector,
    connect: Callable[[Tls], Host],
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    tls = authority.issue(tmp_path / "agent")
    host = connect(tls)
    until(lambda: host.vitals.connected)
    key, certificate = authority.pair()
    Path(tls.key).write_bytes(key)
    until(lambda: host.vitals.certificates_refused == 1)
    Path(tls.certificate).write_bytes(certificate[: len(certificate) // 2])
    until(lambda: host.vitals.certificates_refused == 2)
    host.append(5)
    until(host.delivered)
    assert host.vitals.streams == 1
    assert sum("stay in force" in record.getMessage() for record in caplog.records) == 2
    Path(tls.certificate).write_bytes(certificate)
    until(lambda: host.vitals.streams == 2)
    host.append(5)
    until(host.delivered)
    assert stored(collector) == list(range(1, 11))


def test_files_that_never_fitted_are_one_line(authority: Authority, tmp_path: Path) -> None:
    def refused(tls: Tls, names: str) -> None:
        with pytest.raises(TrimtabError, match=names) as caught:
            channel.channel("192.0.2.1:7470", tls, "agent.collector")
        assert caught.value.exit_code == Exit.SETTINGS
        assert "\n" not in str(caught.value)

    tls = authority.issue(tmp_path / "a")
    other = authority.issue(tmp_path / "b")
    refused(Tls(ca=tls.ca, certificate=tls.certificate, key=other.key), r"b/host\.key is not the key of .*a/host\.pem")
    refused(Tls(ca=str(tmp_path / "gone"), certificate=tls.certificate, key=tls.key), "gone: No such file")
    (tmp_path / "empty").touch()
    refused(Tls(ca=str(tmp_path / "empty"), certificate=tls.certificate, key=tls.key), "empty.*no certificate")
    refused(Tls(ca=tls.ca, certificate=str(tmp_path / "empty"), key=tls.key), "damaged")
    refused(Tls(ca=tls.ca, certificate=tls.certificate), r"tls\.key")


def test_only_what_changed_is_new(authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tls = authority.issue(tmp_path / "a")
    files = CertificateFiles(tls)
    before = files.current
    assert not files.refresh()
    Path(tls.key).touch()  # the same once more
    assert not files.refresh()
    assert (files.renewed, files.refused) == (0, 0)
    Path(tls.key).rename(tmp_path / "aside")
    for _ in range(3):
        assert not files.refresh()
    assert (files.renewed, files.refused) == (0, 1)
    assert files.current is before
    copy(authority.issue(tmp_path / "b"), tls)
    assert files.refresh()
    assert not files.refresh()
    assert files.current != before
    assert (files.renewed, files.refused) == (1, 1)
