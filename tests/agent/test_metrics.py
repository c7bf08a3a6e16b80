"""The agent's own metrics: true, documented, in a format that Prometheus' own tool accepts, and out of reach of a hostile scraper."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.agent.fakes import NODE, Fake, Service, schema_of, until, window_of
from tests.agent.test_service import fake_host
from trimtab import Exit, TrimtabError
from trimtab.agent import procfs
from trimtab.agent import service as agent
from trimtab.agent.clock import ManualClock, SystemClock
from trimtab.agent.collectors.own import Reads, Vitals
from trimtab.agent.figures import PREFIX, figures_of
from trimtab.agent.losses import LOSSES
from trimtab.agent.probes import Probe, Probes
from trimtab.agent.registry import Host, Reading, Unavailable
from trimtab.agent.settings import AgentSettings, Tls
from trimtab.agent.spool import Spool
from trimtab.agent.wire import exposition
from trimtab.agent.wire.exposition import PATH, Exposition, serve
from trimtab.agent.wire.metrics import SAMPLES_MAX, Figure, Metrics
from trimtab.agent.worker import Worker

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"

FIELD = "agent.metrics_listen"


class Program:
    programs: dict[str, int] = {}  # noqa: RUF012

    def switch(self, hook: str, on: bool) -> None:
        pass


class Agent:
    """What the figures are about, without the rest of it."""

    def __init__(self, directory: Path) -> None:
        self.vitals, self.clock, self.probes = Vitals(), ManualClock(), Probes(0.25)
        self.spool = Spool(directory, 1 << 20, self.vitals, math.inf, self.clock)
        self.vitals.reads = {"cpu": Reads(7, 3.5, 0.5, 2, True, True), "gpu": Reads()}
        self.probes.add(Probe("requests", Program(), ()))
        self.metrics = Metrics(PREFIX)
        self.metrics.add(*figures_of(self.vitals, self.spool, self.probes, self.clock, 1 << 20))

    def page(self, accept: str = "") -> str:
        return self.metrics.page(accept, "")[1]().decode()

    def values(self) -> dict[str, float]:
        return samples(self.page())


@pytest.fixture
def one(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def samples(page: str) -> dict[str, float]:
    """`name` or `name{value of its label}` to the value, without the prefix."""
    out = {}
    for family in parse(page):
        for sample in family.samples:
            label = "".join(f"{{{value}}}" for value in sample.labels.values())
            out[sample.name.removeprefix(PREFIX) + label] = sample.value
    return out


def test_figures_are_what_happened(one: Agent) -> None:
    before = one.values()
    assert before["windows_lost_total{size}"] == 0
    assert before["connected"] == 0
    assert "window_read_seconds" not in before  # unknown until there is a window
    one.vitals.lose(3, "size")
    one.vitals.lose(2, "age")
    one.vitals.windows_closed, one.vitals.window_seconds, one.vitals.connected = 9, 0.25, True
    schema = schema_of()
    for _ in range(4):
        one.spool.append(schema, window_of(schema))
        one.clock.advance(10)
    one.spool.acknowledge(1)
    after = one.values()
    assert {name: after[f"windows_lost_total{{{name}}}"] for name in LOSSES} == {
        **dict.fromkeys(LOSSES, 0),
        "size": 3,
        "age": 2,
    }
    assert (after["windows_closed_total"], after["window_read_seconds"], after["connected"]) == (9, 0.25, 1)
    assert (after["spool_waiting_windows"], after["spool_oldest_age_seconds"]) == (3, 30)
    assert (after["spool_memory_windows"], after["spool_writable"], after["spool_limit_bytes"]) == (0, 1, 1 << 20)
    assert after["spool_bytes"] == sum(path.stat().st_size for path in one.spool._directory.glob("*.windows"))
    assert (after["sampling_probability"], after["probe_on{requests}"]) == (0.25, 1)
    assert after["start_time_seconds"] == one.clock._unix_ns / 1e9


def test_figures_of_the_process_are_the_kernels(one: Agent) -> None:
    values = one.values()
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    assert values["resident_memory_bytes"] == pytest.approx(int(status["VmRSS"].split()[0]) * 1024, rel=0.05)
    assert values["threads"] == int(status["Threads"])
    assert 3 < values["open_fds"] < values["max_fds"]
    assert values["cpu_seconds_total"] > 0


def test_each_source_of_signals_has_its_figures(one: Agent) -> None:
    values = one.values()
    cpu = {name: value for name, value in values.items() if name.endswith("{cpu}")}
    assert cpu == {
        "collector_available{cpu}": 1,
        "collector_success{cpu}": 1,
        "collector_reads_total{cpu}": 7,
        "collector_read_seconds_total{cpu}": 3.5,
        "collector_last_read_seconds{cpu}": 0.5,
        "collector_failures_total{cpu}": 2,
    }
    # One that was never read has no last reading: neither good nor bad, and of no length.
    assert {name for name in values if name.endswith("{gpu}")} == {
        "collector_available{gpu}",
        "collector_reads_total{gpu}",
        "collector_read_seconds_total{gpu}",
        "collector_failures_total{gpu}",
    }
    assert values["collector_available{gpu}"] == 0


def test_one_that_cannot_be_read_does_not_take_the_others_down(one: Agent, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> float:
        raise OSError(5, "Input/output error")

    one.metrics.add(Figure("broken", "gauge", "It fails.", fail))
    one.metrics.add(Figure("many", "gauge", "Too many.", lambda: {f"v{i}": 1.0 for i in range(999)}, "probe"))
    for _ in range(3):
        values = one.values()
    assert "broken" not in values
    assert sum(name.startswith("many") for name in values) == SAMPLES_MAX
    assert "connected" in values
    assert sum("trimtab_agent_broken" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(ValueError, match="connected"):
        one.metrics.add(Figure("connected", "gauge", "Again.", lambda: 1.0))


def test_readings_are_counted_and_timed_where_they_are_made() -> None:
    clock, vitals = ManualClock(), Vitals()
    fails = iter([False, True, False])

    def read(reading: Reading) -> None:
        clock.advance(2.0)
        if next(fails):
            raise OSError(5, "Input/output error")

    def absent() -> None:
        raise Unavailable("no such device")

    worker = Worker(Fake("fake", read), Host(NODE, clock), vitals)
    other = Worker(Fake("other", on_open=absent), Host(NODE, clock), vitals)
    reads = vitals.reads["fake"]
    assert (reads.available, reads.success, reads.count) == (False, None, 0)
    for expected in (None, True, False, True):
        for one in (worker, other):
            if answer := one.ask(()):
                answer.exception(10)
            one.take()
        assert reads.success is expected
    assert (reads.available, reads.count, reads.seconds, reads.last_seconds, reads.failures) == (True, 3, 6.0, 2.0, 1)
    # Lacking something is no failure.
    assert vitals.reads["other"] == Reads()


def families(page: str, parser: Callable[[str], Iterator[Metric]]) -> dict[str, Metric]:
    return {family.name: family for family in parser(page)}


def lint(page: str) -> list[str]:
    """The rules of `promtool check metrics` that a name can break."""
    problems = []
    for name, family in families(page, parse).items():
        full = f"{name}_total" if family.type == "counter" else name
        if f"# TYPE {full} {family.type}\n" not in page:
            problems.append(f"{full}: its type is not told, or it lacks _total")
        if not family.documentation.endswith("."):
            problems.append(f"{full}: no help, or no sentence")
        if family.type != "counter" and name.endswith(("_total", "_sum", "_count", "_bucket")):
            problems.append(f"{full}: a suffix that is not its own")
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", full):
            problems.append(f"{full}: no snake_case")
        words = set(full.split("_"))
        if words & {
            "gauge",
            "counter",
            "histogram",
            "summary",
            "ms",
            "milliseconds",
            "minutes",
            "hours",
            "kb",
            "mb",
            "percent",
        }:
            problems.append(f"{full}: a type, or a unit that is no base unit")
        problems += [f"{full}: label {label}" for s in family.samples for label in s.labels if not label.islower()]
    return problems


def test_the_rules_of_the_house_of_prometheus(one: Agent) -> None:
    assert lint(one.page()) == []
    assert len(lint("# HELP a_total x\n# TYPE a_total gauge\na_total 1\n")) == 2  # it can fail


def test_promtool_accepts_it(one: Agent) -> None:
    if not shutil.which("promtool"):
        pytest.skip("no promtool here: apt install prometheus brings it")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=one.page(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_both_formats_say_the_same(one: Agent) -> None:
    one.vitals.window_seconds = 1.0
    plain, open_ = one.page(), one.page(OPENMETRICS)
    assert open_.endswith("# EOF\n")
    assert "# EOF" not in plain
    one.clock.advance(0)
    told = families(open_, parse_openmetrics)
    assert told.keys() == families(plain, parse).keys()
    for name, family in told.items():
        assert [s.labels for s in family.samples] == [s.labels for s in families(plain, parse)[name].samples]
    for accept in ("", "*/*", "text/plain", "text/html,*/*;q=0.8", "application/json", "\x00"):
        assert one.metrics.page(accept, "")[0].startswith("text/plain; version=0.0.4")
    for accept in (OPENMETRICS, "text/plain, application/openmetrics-text; version=9.9.9"):
        assert one.metrics.page(accept, "")[0].startswith("application/openmetrics-text; version=1.0.0")


def row(figure: Figure) -> str:
    """Its line in docs/metrics.md."""
    name = f"{PREFIX}{figure.name}{'_total' if figure.kind == 'counter' else ''}"
    label = f"`{figure.label}` " if figure.label else ""
    return f"| `{name}` | {figure.kind} | {label}| {figure.help} |"


def test_every_metric_is_documented_as_it_is(one: Agent) -> None:
    metrics, _, reasons = DOCS.read_text().partition("\n### Its metrics\n")[2].partition("\n### Why a window is lost\n")
    documented = [line for line in metrics.splitlines() if line.startswith("| `")]
    assert documented == [row(figure) for figure in one.metrics._figures.values()]
    assert re.findall(r"^\| `(\w+)` \| ", reasons.partition("\n### ")[0], re.MULTILINE)[1:] == list(LOSSES)


# The page over HTTP.


@pytest.fixture
def page() -> Iterator[Exposition]:
    one = serve("127.0.0.1:0", {PATH: lambda accept, query: ("text/plain", lambda: b"up 1\n")}, SystemClock(), FIELD)
    assert one
    yield one
    one.close()


def ask(port: int, request: bytes, family: socket.AddressFamily = socket.AF_INET) -> bytes:
    """All that comes back until it hangs up."""
    with socket.socket(family) as line:
        line.settimeout(10)
        line.connect(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
        line.sendall(request)
        out = b""
        while part := line.recv(65536):
            out += part
    return out


GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET, b"200 OK"),
        (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 8192, b"431"),
    ],
)
def test_what_is_asked_and_what_is_answered(page: Exposition, request_: bytes, status: bytes) -> None:
    answer = ask(page.port, request_)
    assert answer.startswith(b"HTTP/1.1 " + status)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


def test_a_head_has_no_body_and_may_come_in_pieces(page: Exposition) -> None:
    head, _, body = ask(page.port, GET.replace(b"GET", b"HEAD")).partition(b"\r\n\r\n")
    assert (b"Content-Length: 5" in head, body) == (True, b"")
    with socket.create_connection(("127.0.0.1", page.port), 10) as line:
        for at in range(len(GET)):
            line.sendall(GET[at : at + 1])
        assert line.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_over_ipv6_too() -> None:
    try:
        one = Exposition("[::1]:0", {PATH: lambda accept, query: ("text/plain", lambda: b"")}, SystemClock(), FIELD)
    except OSError as error:
        pytest.skip(f"no ::1 here: {error}")
    assert ask(one.port, GET, socket.AF_INET6).startswith(b"HTTP/1.1 200")
    one.close()


@pytest.mark.parametrize("listen", ["0.0.0.0:7472", "192.0.2.1:0", "[::]:0", "example:0", "unix:0"])
def test_it_keeps_to_loopback(listen: str) -> None:
    with pytest.raises(TrimtabError, match=r"agent\.metrics_listen.*use 127\.0\.0\.1") as caught:
        serve(listen, {}, SystemClock(), FIELD)
    assert caught.value.exit_code == Exit.SETTINGS
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken_is_said_and_no_reason_to_stop(page: Exposition, caplog: pytest.LogCaptureFixture) -> None:
    assert serve(f"127.0.0.1:{page.port}", {}, SystemClock(), FIELD) is None
    assert sum("agent.metrics_listen" in record.getMessage() for record in caplog.records) == 1
    assert serve("", {}, SystemClock(), FIELD) is None


def test_a_page_is_made_a_few_times_a_second_at_most() -> None:
    clock, made = ManualClock(), []

    def make() -> bytes:
        made.append(1)
        return b"x"

    one = Exposition("127.0.0.1:0", {PATH: lambda accept, query: ("text/plain", make)}, clock, FIELD)
    for _ in range(20):
        assert ask(one.port, GET).startswith(b"HTTP/1.1 200")
    assert len(made) == 1
    clock.advance(exposition.FRESH_SECONDS)
    ask(one.port, GET)
    assert len(made) == 2
    one.close()


def test_a_page_that_fails_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([ValueError("no"), b"up 1\n"])

    def make() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    one = Exposition("127.0.0.1:0", {PATH: lambda accept, query: ("text/plain", make)}, SystemClock(), FIELD)
    assert ask(one.port, GET) == b""
    assert ask(one.port, GET).endswith(b"up 1\n")
    one.close()
    assert any("failed" in record.getMessage() for record in caplog.records)


def resident_bytes() -> int:
    return procfs.process_stat(procfs.read("/proc/self/stat")).resident_bytes


def test_a_thousand_connections_that_say_nothing_harm_nobody(page: Exposition) -> None:
    threads, memory = threading.active_count(), resident_bytes()
    with ExitStack() as stack:
        for number in range(1000):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", page.port), 10))
            line.sendall((b"", b"GET /met", b"\0\xff")[number % 3])
            if number % 100 == 99:
                assert ask(page.port, GET).endswith(b"up 1\n")
        assert ask(page.port, GET).endswith(b"up 1\n")
        assert len(page._clients) <= exposition.CONNECTIONS_MAX
    assert threading.active_count() == threads
    assert resident_bytes() - memory < 16 << 20


def test_a_head_of_a_megabyte_is_not_kept(page: Exposition) -> None:
    memory = resident_bytes()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", page.port), 10) as line:
            try:
                line.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (1 << 20))
                assert line.recv(100).startswith(b"HTTP/1.1 431")
            except OSError:  # it hung up before we had said it all
                continue
    assert ask(page.port, GET).endswith(b"up 1\n")
    assert resident_bytes() - memory < 16 << 20


def test_who_is_slow_to_ask_or_to_read_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "SECONDS_MAX", 0.3)
    big = b"x" * (32 << 20)
    one = Exposition("127.0.0.1:0", {PATH: lambda accept, query: ("text/plain", lambda: big)}, SystemClock(), FIELD)
    with ExitStack() as stack:
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", one.port), 10)) for _ in range(3)]
        lines[0].sendall(GET[:-1])
        lines[1].sendall(GET)  # and does not read
        until(lambda: not one._clients and one._made)  # type: ignore[arg-type,return-value]
        assert lines[0].recv(100) == b""
        assert lines[2].recv(100) == b""
    one.close()


@settings(max_examples=100, deadline=None)
@given(
    head=st.binary(max_size=300)
    | st.text(alphabet="GET /metrics HTTP/1.\r\n:Accept;,=\x00é", max_size=200).map(str.encode)
)
def test_whatever_is_asked_there_is_an_answer(head: bytes) -> None:
    metrics = Metrics(PREFIX)
    answer = Exposition._answer(_Asked(metrics), head + b"\r\n\r\n")  # type: ignore[arg-type]
    assert re.match(rb"HTTP/1\.1 (200|400|404|405) [A-Z]", answer)


class _Asked:
    """The part of a page that an answer needs."""

    def __init__(self, metrics: Metrics) -> None:
        self._pages, self._made, self._clock = {PATH: metrics.page}, {}, ManualClock()

    _rendered = Exposition._rendered


# The agent as a whole.


def test_a_running_agent_tells_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_host(lambda name, value: monkeypatch.setattr(agent, name, value))
    service = Service()
    service.start()
    stop = threading.Event()
    pages: list[Exposition | None] = []

    def listen(*arguments: object) -> Exposition | None:
        pages.append(serve(*arguments))  # type: ignore[arg-type]
        return pages[-1]

    monkeypatch.setattr(agent, "serve", listen)
    settings = AgentSettings(
        node=NODE, collector=f"127.0.0.1:{service.port}", window_seconds=0.1, metrics_listen="127.0.0.1:0"
    )
    arguments = (settings, Tls(), tmp_path, SystemClock(), stop, lambda: None)
    runner = threading.Thread(target=agent.run, args=arguments)
    runner.start()
    try:
        until(lambda: len(service.stored) >= 3)
        assert pages[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{pages[0].port}/metrics") as answer:
            values = samples(answer.read().decode())
    finally:
        stop.set()
        runner.join(10)
        service.stop()
    assert values["windows_closed_total"] >= 3
    assert (values["connected"], values["connections_total"]) == (1, 1)
    assert (values["collector_success{fake}"], values["collector_available{own}"]) == (1, 1)
    assert values["collector_reads_total{own}"] >= 3
    assert 0 < values["collector_read_seconds_total{own}"] < 60
    assert sum(value for name, value in values.items() if name.startswith("windows_lost_total")) == 0
    # It has let go of the port.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", pages[0].port), 1)
