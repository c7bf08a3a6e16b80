"""Who talks most: the kernel's map is read to the last count, the sketches keep their laws, and foreign bytes are contained."""

from __future__ import annotations

import math
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.fakes import INSTANCE, NODE, Fake
from tests.agent.requests_kit import BODY, Client, Server, head, instance, serve, until
from trimtab.agent import service
from trimtab.agent.bpf import capability, syscall
from trimtab.agent.bpf.remotes import ENTRIES_MAX, KEY, VALUE, Look, Remotes, growth
from trimtab.agent.check import NODE as CHECKED
from trimtab.agent.check import check_reading
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.latency import Latency
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.collectors.talkers import Talkers as Collector
from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.settings import AgentSettings, Tls
from trimtab.agent.sketch.talkers import MERGED_LOG2, Tally
from trimtab.agent.window import Builder
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import Malformed
from trimtab.agent.wire.talkers import (
    FREQUENT_ITEMS_BYTES_MAX,
    HLL_BYTES_MAX,
    REMOTES_MAX,
    TALKERS_MAX,
    WEIGHT_MAX,
    Talkers,
    check_talkers,
)
from trimtab.agent.worker import Worker

__all__ = ["serve"]
MISSING = [check.detail for check in capability.what_is_missing() if not check.ok]
in_the_kernel = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
_MAP_CREATE, _LRU_HASH = 0, 9


def text_of(address: str) -> str:
    """As the agent writes it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, address))


addresses = st.ip_addresses().map(str).map(text_of)
weights = st.dictionaries(addresses, st.integers(1, 1 << 30), min_size=1, max_size=REMOTES_MAX)


def tally(of: dict[str, int]) -> Tally:
    one = Tally()
    for remote, weight in of.items():
        one.add(remote, weight)
    return one


def message(packed: Talkers, **changes: object) -> pb.Talkers:
    fields = {"name": "requests", "seconds": packed.seconds, "frequent_items": packed.frequent_items, "hll": packed.hll}
    kind = pb.SUBJECT_KIND_INSTANCE
    return pb.Talkers(**{"subject_kind": kind, "subject": INSTANCE.id, **fields, **changes})


def merged(*parts: Talkers) -> Tally:
    whole = Tally(MERGED_LOG2)
    for part in parts:
        whole.merge(part.frequent_items, part.hll)
    return whole


def many(count: int, start: int = 0) -> list[str]:
    return [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(start, start + count)]


# The map in the kernel.


@pytest.fixture
def remotes_fd() -> Iterator[int]:
    shape = (_LRU_HASH, KEY.itemsize, VALUE.itemsize, ENTRIES_MAX, 0)
    fd = syscall._bpf(_MAP_CREATE, struct.pack("<IIIII", *shape))
    yield fd
    os.close(fd)


def count(fd: int, slot: int, address: str, answered: int, errors: int = 0) -> None:
    raw = socket.inet_pton(socket.AF_INET6, address if ":" in address else f"::ffff:{address}")
    syscall.map_update(fd, struct.pack("<I", slot) + raw, struct.pack("<QQQ", answered, errors, answered * 1000))


def forget(fd: int, slot: int, address: str) -> None:
    syscall.map_delete(fd, struct.pack("<I", slot) + socket.inet_pton(socket.AF_INET6, f"::ffff:{address}"))


@in_the_kernel
@pytest.mark.ebpf
@pytest.mark.parametrize("entries", [0, 1, 1023, 1024, 3000])
def test_a_batch_reads_every_element_once(remotes_fd: int, entries: int) -> None:
    for n, address in enumerate(many(entries)):
        count(remotes_fd, n % 3, address, n + 1)
    board = Remotes()
    assert board.look() is None
    board.offer(remotes_fd, {})
    look = board.look()
    assert look is not None
    assert len(set(look.keys.tolist())) == len(look.keys) == entries
    assert sorted(look.values["answered"].tolist()) == list(range(1, entries + 1))
    assert look.keys.tolist() == sorted(look.keys.tolist())
    for key, value in zip(look.keys.view(KEY), look.values, strict=True):
        n = int(value["answered"]) - 1
        assert (key["slot"], socket.inet_ntop(socket.AF_INET, bytes(key["address"])[12:])) == (n % 3, many(1, n)[0])


@in_the_kernel
@pytest.mark.ebpf
def test_a_full_map_is_read_and_a_closed_one_is_an_error(remotes_fd: int) -> None:
    for address in many(ENTRIES_MAX + 500):
        count(remotes_fd, 0, address, 1)
    board = Remotes()
    board.offer(remotes_fd, {})
    look = board.look()
    assert look is not None
    assert ENTRIES_MAX // 2 < len(look.keys) <= ENTRIES_MAX
    board.offer(10_000, {})
    with pytest.raises(OSError, match="Bad file descriptor"):
        board.look()


class Bench:
    """The collector on a map of this test's own."""

    def __init__(self, fd: int, *instances: Instance) -> None:
        self.fd, self.instances = fd, instances or (INSTANCE,)
        self.clock, self.remotes = ManualClock(0), Remotes()
        self.collector = Collector()
        self.collector.open(Host(NODE, self.clock, remotes=self.remotes))
        self.offer(*self.instances)

    def offer(self, *instances: Instance) -> None:
        self.remotes.offer(self.fd, {(one.netns, one.port): slot for slot, one in enumerate(instances)})

    def read(self, seconds: float = 10.0) -> Reading:
        self.clock.advance(seconds)
        reading = Reading(self.instances, seconds)
        self.collector.read(reading)
        return reading

    def talked(self, name: str = "requests", instance: Instance = INSTANCE, seconds: float = 10.0) -> dict[str, float]:
        reading = self.read(seconds)
        talkers = reading.talkers.get(("instance", instance.id, name))
        distinct = reading.values.get(("instance", instance.id, "remotes_distinct"))
        if talkers is None:
            return {}
        check_talkers(message(talkers))
        assert talkers.seconds == pytest.approx(seconds)
        found = merged(talkers).top(1000)
        assert all(bounds.low == bounds.high == bounds.value for _, bounds in found)
        if name == "requests":
            assert distinct == len(found)
        return {remote: bounds.value for remote, bounds in found}


OTHER = Instance(f"{NODE}/9090", "torchserve", 124, 1.0, 9090, 7, ("127.0.0.1:9090",))


@in_the_kernel
@pytest.mark.ebpf
def test_requests_and_errors_are_counted_by_remote_and_instance(remotes_fd: int) -> None:
    bench = Bench(remotes_fd, INSTANCE, OTHER)
    count(remotes_fd, 0, "10.0.0.1", 5)
    assert bench.talked() == {}  # the first look has nothing before it
    count(remotes_fd, 0, "10.0.0.1", 28, errors=3)
    count(remotes_fd, 0, "2001:db8::7", 7)
    count(remotes_fd, 0, "10.0.0.2", 4, errors=4)
    count(remotes_fd, 1, "10.0.0.1", 11)
    reading = bench.read()
    found = {
        (subject, name): {remote: bounds.value for remote, bounds in merged(packed).top(10)}
        for (_, subject, name), packed in reading.talkers.items()
    }
    assert found == {
        (INSTANCE.id, "requests"): {"10.0.0.1": 23, "2001:db8::7": 7, "10.0.0.2": 4},
        (INSTANCE.id, "errors"): {"10.0.0.1": 3, "10.0.0.2": 4},
        (OTHER.id, "requests"): {"10.0.0.1": 11},
    }
    distinct = {subject: value for (_, subject, _), value in reading.values.items()}
    assert distinct == {INSTANCE.id: 3, OTHER.id: 1}


@in_the_kernel
@pytest.mark.ebpf
def test_between_intervals_the_count_is_held_and_quiet_remotes_do_not_count(remotes_fd: int) -> None:
    bench = Bench(remotes_fd)
    bench.read()
    assert not bench.read(1.0).values
    count(remotes_fd, 0, "10.0.0.1", 5)
    count(remotes_fd, 0, "10.0.0.2", 5)
    assert bench.talked(seconds=8.0) == {}
    assert bench.read(1.0).talkers
    held = bench.read(1.0)
    assert held.values["instance", INSTANCE.id, "remotes_distinct"] == 2
    assert not held.talkers
    silent = bench.read(10.0)
    assert silent.values["instance", INSTANCE.id, "remotes_distinct"] == 0
    assert not silent.talkers


@in_the_kernel
@pytest.mark.ebpf
def test_a_remote_that_made_room_and_came_back_counts_from_zero(remotes_fd: int) -> None:
    bench = Bench(remotes_fd)
    count(remotes_fd, 0, "10.0.0.1", 100, errors=9)
    count(remotes_fd, 0, "10.0.0.2", 100)
    bench.read()
    forget(remotes_fd, 0, "10.0.0.1")
    count(remotes_fd, 0, "10.0.0.1", 6, errors=2)
    forget(remotes_fd, 0, "10.0.0.2")
    assert bench.talked() == {"10.0.0.1": 6}
    count(remotes_fd, 0, "10.0.0.2", 3)
    assert bench.talked() == {"10.0.0.2": 3}


@in_the_kernel
@pytest.mark.ebpf
@pytest.mark.parametrize("others", [0, 1])
def test_a_sketch_that_has_let_go_of_every_remote_is_left_out(remotes_fd: int, others: int) -> None:
    bench = Bench(remotes_fd)
    assert bench.talked() == {}
    for remote in many(REMOTES_MAX + 1 + others):
        count(remotes_fd, 0, remote, 1)
    reading = bench.read()
    assert reading.values["instance", INSTANCE.id, "remotes_distinct"] == REMOTES_MAX + 1 + others
    for packed in reading.talkers.values():
        check_talkers(message(packed))
    # The first that is too many makes room for itself, and for all others of its weight.
    assert len(reading.talkers) == others


@in_the_kernel
@pytest.mark.ebpf
def test_what_cannot_be_told_apart_is_left_out(remotes_fd: int) -> None:
    bench = Bench(remotes_fd, OTHER)
    bench.instances = (INSTANCE, OTHER)
    bench.read()
    count(remotes_fd, 0, "10.0.0.1", 5)
    bench.offer(INSTANCE)  # the slot changed hands within the interval
    assert not bench.read().talkers
    count(remotes_fd, 0, "10.0.0.1", 9)
    assert bench.talked() == {"10.0.0.1": 4}
    count(remotes_fd, 0, "10.0.0.1", 10)
    bench.remotes.withdraw()
    bench.offer(INSTANCE)  # other probes, which counted other things
    assert not bench.read().talkers
    count(remotes_fd, 0, "10.0.0.1", 12)
    assert not bench.read(4000.0).talkers  # suspended for an hour
    bench.remotes.withdraw()
    assert not bench.read().values
    bench.offer(INSTANCE)
    bench.read()
    count(remotes_fd, 0, "10.0.0.1", 13)
    assert bench.talked() == {"10.0.0.1": 1}


def statuses(conversation: socket.socket) -> None:
    """Answers each line with the status that it asks for."""
    with conversation.makefile("rb") as requests:
        for line in requests:
            conversation.sendall(head(int(line)) + BODY)


def send(port: int, host: str, *wanted: int) -> None:
    """One connection, one request after the other."""
    client = Client(port, host=host)
    for status in wanted:
        client.socket.sendall(b"%d\n" % status)
        client.receive(BODY)
    client.close()


class Both:
    """The collector that loads the request probes, and this one, on one host."""

    def __init__(self, serving: Instance) -> None:
        self.serving, self.clock, self.answered = serving, ManualClock(0), 0.0
        self.host = Host(NODE, self.clock)
        self.probes, self.talkers = Latency(), Collector()
        self.probes.open(self.host)
        self.talkers.open(self.host)

    def count(self) -> float:
        reading = Reading((self.serving,), 1.0)
        self.probes.read(reading)
        self.answered += reading.values.get(("instance", self.serving.id, "requests_per_second"), 0.0)
        return self.answered

    def interval(self) -> Reading:
        self.count()
        self.clock.advance(10.0)
        reading = Reading((self.serving,), 10.0)
        self.talkers.read(reading)
        return reading


@pytest.fixture
def both(serve: Callable[..., Server]) -> Iterator[Both]:
    one = Both(instance(serve(statuses, host="0.0.0.0").port))
    yield one
    one.probes.close()


@in_the_kernel
@pytest.mark.ebpf
def test_real_clients_are_counted_by_the_probes(both: Both) -> None:
    port, subject = both.serving.port, both.serving.id
    both.interval()
    send(port, "127.0.0.2", *[200] * 19, *[503] * 4)
    for _ in range(7):
        send(port, "127.0.0.3", 200)
    until(lambda: both.count() >= 30)
    reading = both.interval()
    found = {name: dict(merged(packed).top(10)) for (_, _, name), packed in reading.talkers.items()}
    assert {name: {remote: bounds.value for remote, bounds in of.items()} for name, of in found.items()} == {
        "requests": {"127.0.0.2": 23, "127.0.0.3": 7},
        "errors": {"127.0.0.2": 4},
    }
    assert reading.values == {("instance", subject, "remotes_distinct"): 2}


@in_the_kernel
@pytest.mark.ebpf
def test_while_the_probes_are_switched_off_nothing_is_known_not_even_that_nobody_came(both: Both) -> None:
    (requests, *_) = both.host.probes.all()
    for _ in range(2):
        both.interval()
    requests.switch(on=False)
    assert not both.interval().values
    send(both.serving.port, "127.0.0.2", 200)
    requests.switch(on=True)
    assert not both.interval().values
    both.interval()
    assert both.interval().values == {("instance", both.serving.id, "remotes_distinct"): 0}


counts = st.dictionaries(st.integers(0, 30), st.integers(0, 100), max_size=20)


def look(of: dict[int, int]) -> Look:
    keys = np.array(sorted(struct.pack("<I16s", n, bytes([n])) for n in of), f"S{KEY.itemsize}")
    values = np.zeros(len(of), VALUE)
    values["answered"] = [of[n] for n in sorted(of)]
    values["errors"] = [of[n] // 2 for n in sorted(of)]
    return Look(0, {}, keys, values)


@given(counts, counts)
def test_growth_is_what_was_added_or_all_of_a_new_beginning(before: dict[int, int], now: dict[int, int]) -> None:
    rise = growth(look(before), look(now))
    wanted = [now[n] - before[n] if before.get(n, 0) <= now[n] and n in before else now[n] for n in sorted(now)]
    assert rise["answered"].tolist() == wanted
    assert (rise["errors"] <= look(now).values["errors"]).all()


# The laws of the sketches.


@given(weights)
def test_few_remotes_are_exact_and_come_through_the_wire(of: dict[str, int]) -> None:
    packed = tally(of).pack(10.0)
    back = pb.Talkers.FromString(message(packed).SerializeToString())
    check_talkers(back)
    whole = merged(Talkers(back.frequent_items, back.hll, back.seconds))
    assert {remote: bounds.value for remote, bounds in whole.top(REMOTES_MAX)} == of
    assert all(bounds.low == bounds.value == bounds.high for _, bounds in whole.top(REMOTES_MAX))
    assert whole.total == sum(of.values())
    assert whole.distinct().value == pytest.approx(len(of), rel=1e-4)
    assert len(back.frequent_items) <= FREQUENT_ITEMS_BYTES_MAX
    assert len(back.hll) <= HLL_BYTES_MAX


# Zipf's law over up to 3,000 remotes: more than an interval's map holds.
streams = st.lists(st.tuples(st.integers(0, 1 << 31), st.integers(1, 3000)), min_size=1, max_size=5)


def stream(seed: int, remotes: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    names = rng.permutation(many(remotes)).tolist()
    return {name: int(1 + 50_000 / (rank + 1) ** 1.2) for rank, name in enumerate(names)}


@settings(max_examples=25, deadline=None)
@given(streams, st.randoms(use_true_random=False))
def test_merging_is_concatenation_within_the_bounds_in_any_order(parts: list[tuple[int, int]], random: object) -> None:
    intervals = [stream(*part) for part in parts]
    exact = sum((Counter(interval) for interval in intervals), Counter())
    packed = [tally(interval).pack(10.0) for interval in intervals]
    shuffled = packed[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for whole in (merged(*packed), merged(*shuffled)):
        assert whole.total == exact.total()
        widest = 3.5 / (1 << 8) * exact.total() + 1
        found = dict(whole.top(10_000))
        for remote, weight in exact.items():
            bounds = whole.of(remote)
            assert bounds.low <= weight <= bounds.high
            assert bounds.high - bounds.low <= widest
            # No heavy hitter is left out.
            assert remote in found or weight <= widest
        assert whole.distinct().value == merged(*packed).distinct().value


@pytest.mark.parametrize("remotes", [100, 500, 2000, 8000])
def test_the_distinct_count_is_within_three_standard_errors(remotes: int) -> None:
    misses = 0
    for start in range(0, 40 * 8192, 8192):
        halves = many(remotes, start), many(remotes, start + remotes // 2)
        packed = [tally(dict.fromkeys(half, 1)).pack(10.0) for half in halves]
        for found, exact in ((merged(packed[0]).distinct(), remotes), (merged(*packed).distinct(), remotes * 3 // 2)):
            assert found.value == pytest.approx(exact, rel=5 * 1.04 / math.sqrt(2048))
            misses += not found.low <= exact <= found.high
    # One in 370 would be expected, were they all independent.
    assert misses <= 2


def test_merging_nothing_is_nothing() -> None:
    empty = merged()
    assert (empty.total, empty.top(10), empty.distinct().value) == (0, [], 0)


# Bytes of strangers.


def broken(change: Callable[[bytearray], object], field: str, remotes: int = 3) -> pb.Talkers:
    result = message(tally(dict.fromkeys(many(remotes), 5)).pack(10.0))
    data = bytearray(getattr(result, field))
    change(data)
    setattr(result, field, bytes(data))
    return result


def put(form: str, at: int, value: float) -> Callable[[bytearray], object]:
    return lambda data: struct.pack_into(form, data, at, value)


FEW, SOME, MANY = 3, 50, 500


def changed(**fields: bytes) -> pb.Talkers:
    return message(tally({"10.0.0.1": 1}).pack(10.0), **fields)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (message(tally({"10.0.0.1": 1}).pack(10.0), name="Bad"), "name"),
        (message(tally({"10.0.0.1": 1}).pack(0.0)), "seconds"),
        (message(tally({"10.0.0.1": 1}).pack(math.nan)), "seconds"),
        (message(tally({"10.0.0.1": 1}).pack(1e9)), "seconds"),
        (message(tally({"10.0.0.1": 1 << 41}).pack(1)), "total"),
        (message(tally({"example.org": 1}).pack(1)), "IP address"),
        (message(tally({"\x1b[2J": 1}).pack(1)), "IP address"),
        (message(tally({"010.0.0.1": 1}).pack(1)), "IP address"),
        (message(tally({"2001:DB8::1": 1}).pack(1)), "IP address"),
        (message(tally({"1" * 46: 1}).pack(1)), "46 bytes"),
        (message(Tally().pack(1)), "frequent_items"),
        (changed(frequent_items=bytes(FREQUENT_ITEMS_BYTES_MAX + 1)), "at most"),
        (changed(hll=bytes(HLL_BYTES_MAX + 1)), "at most"),
        (changed(hll=b""), "hll"),
        (changed(frequent_items=b""), "frequent_items"),
        (broken(put("<B", 0, 1), "frequent_items"), "map"),
        (broken(put("<B", 2, 7), "frequent_items"), "map"),
        (broken(put("<B", 3, 31), "frequent_items"), "map"),
        (broken(put("<B", 4, 31), "frequent_items"), "map"),
        (broken(put("<B", 5, 4), "frequent_items"), "map"),
        (broken(put("<I", 8, (1 << 32) - 1), "frequent_items"), "items"),
        (broken(put("<I", 8, 0), "frequent_items"), "items"),
        (broken(put("<I", 8, 2), "frequent_items"), "frequent_items"),
        (broken(put("<I", 8, 4), "frequent_items"), "frequent_items"),
        (broken(put("<Q", 16, 14), "frequent_items"), "total"),
        (broken(put("<Q", 16, WEIGHT_MAX + 1), "frequent_items"), "total"),
        (broken(put("<Q", 24, 16), "frequent_items"), "total"),
        (broken(put("<Q", 32, 0), "frequent_items"), "total"),
        (broken(put("<Q", 32, (1 << 64) - 5), "frequent_items"), "total"),
        (broken(put("<I", 56, (1 << 32) - 1), "frequent_items"), "bytes"),
        (broken(lambda data: data.extend(b"\0"), "frequent_items"), "more than the items"),
        (broken(lambda data: data.pop(), "frequent_items"), "frequent_items"),
        (broken(put("<B", 3, 21), "hll"), "2\\^11"),
        (broken(put("<B", 4, 30), "hll"), "coupons"),
        (broken(put("<B", 4, 30), "hll", SOME), "coupons"),
        (broken(put("<B", 4, 30), "hll", MANY), "bytes"),
        (broken(put("<B", 5, 0), "hll"), "compact"),
        (broken(put("<B", 6, 200), "hll"), "coupons"),
        (broken(put("<B", 7, 0), "hll"), "8 bits"),
        (broken(put("<B", 7, 11), "hll"), "8 bits"),
        (broken(put("<I", 8, 0), "hll"), "coupon is empty"),
        (broken(put("<I", 8, (1 << 32) - 1), "hll", SOME), "coupons"),
        (broken(put("<d", 8, math.nan), "hll", MANY), "estimate"),
        (broken(put("<d", 8, math.inf), "hll", MANY), "estimate"),
        (broken(put("<d", 8, -1.0), "hll", MANY), "estimate"),
        (broken(put("<d", 8, 100.0), "hll", MANY), "estimate"),
        (broken(put("<d", 16, math.nan), "hll", MANY), "estimate"),
        (broken(put("<d", 24, 1e300), "hll", MANY), "estimate"),
        (broken(put("<I", 32, 0), "hll", MANY), "registers"),
        (broken(put("<I", 36, 9), "hll", MANY), "registers"),
        (broken(put("<B", 47, 200), "hll", MANY), "registers"),
        (broken(lambda data: data.pop(), "hll", MANY), "registers"),
    ],
)
def test_what_the_agent_cannot_have_made_is_refused_by_name(bad: pb.Talkers, field: str) -> None:
    with pytest.raises(Malformed, match=rf"window\.talkers\[.*{field}"):
        check_talkers(bad)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whatever_is_let_through_can_be_merged_and_shown(data: st.DataObject) -> None:
    result = message(tally(dict.fromkeys(many(data.draw(st.sampled_from([1, 7, 8, SOME, MANY]))), 5)).pack(10.0))
    for field in ("frequent_items", "hll"):
        mutated = bytearray(getattr(result, field))
        # Most of what there is to break is in the heads.
        places = st.one_of(st.integers(0, min(70, len(mutated) - 1)), st.integers(0, len(mutated) - 1))
        for place in data.draw(st.lists(places, max_size=3)):
            mutated[place] = data.draw(st.integers(0, 255))
        if data.draw(st.integers(0, 9)) == 0:
            mutated = bytearray(data.draw(st.binary(max_size=200)))
        setattr(result, field, bytes(mutated))
    try:
        check_talkers(result)
    except Malformed:
        return
    whole = merged(Talkers(result.frequent_items, result.hll, result.seconds), tally({"10.0.0.1": 3}).pack(10.0))
    assert whole.total <= WEIGHT_MAX + 3
    assert all(text_of(remote) == remote for remote, _ in whole.top(1000))
    found = whole.distinct()
    assert 0 <= found.low <= found.high < math.inf
    assert math.isfinite(found.value)


def test_what_the_library_refuses_is_an_error_of_ours() -> None:
    whole, good = merged(), tally({"10.0.0.1": 3}).pack(10.0)
    for frequent_items, hll in ((b"", good.hll), (good.frequent_items, b""), (good.frequent_items[:-1], good.hll)):
        with pytest.raises(ValueError, match="broken"):
            whole.merge(frequent_items, hll)
    assert whole.total == 0


# In the agent.


def test_talkers_travel_in_the_window_in_which_their_interval_closed() -> None:
    vitals = Vitals()
    signals = (Signal("remotes_distinct", "1", "help", "instance"),)
    builder = Builder(NODE, {}, [Fake("talkers", signals=signals)], vitals)
    reading, packed = Reading((INSTANCE,), 1.0), tally({"10.0.0.1": 3}).pack(10.0)
    reading.talk("instance", INSTANCE.id, "requests", packed)
    reading.talk("instance", f"{NODE}/1", "requests", packed)
    _, window = builder.build({"talkers": reading}, (INSTANCE,), 10, 20, 30)
    assert list(window.talkers) == [message(packed)]
    assert vitals.values_dropped == 1
    for number in range(TALKERS_MAX + 5):
        reading.talk("instance", INSTANCE.id, f"name_{number}", packed)
    _, window = builder.build({"talkers": reading}, (INSTANCE,), 10, 20, 30)
    assert len(window.talkers) == TALKERS_MAX


@pytest.mark.parametrize(
    ("subject", "packed"), [("elsewhere/1", tally({"10.0.0.1": 1}).pack(1)), (f"{CHECKED}/1", Talkers(b"", b"", 1.0))]
)
def test_the_contract_of_collectors_finds_talkers_that_break_it(subject: str, packed: Talkers) -> None:
    reading = Reading((), 1.0)
    reading.talk("instance", f"{CHECKED}/1", "requests", tally({"10.0.0.1": 1}).pack(1))
    check_reading(Collector(), reading)
    reading.talk("instance", subject, "requests", packed)
    with pytest.raises((AssertionError, Malformed), match="talkers"):
        check_reading(Collector(), reading)


def test_talkers_of_a_late_reading_travel_with_the_next_one() -> None:
    go, packed = Event(), tally({"10.0.0.1": 3}).pack(10.0)

    def read(reading: Reading) -> None:
        if len(slow.seconds) == 1:
            go.wait(20)
            reading.talk("instance", INSTANCE.id, "requests", packed)

    slow = Fake("slow", on_read=read)
    worker = Worker(slow, Host(NODE, ManualClock(0)), Vitals())

    def ask() -> Future[Reading | None]:
        answer = worker.ask((INSTANCE,))
        assert answer is not None
        return answer

    ask().result(20)  # opened
    worker.take()
    late = ask()
    assert worker.take() is None
    go.set()
    late.result(20)
    found = []
    for _ in range(2):
        ask().result(20)
        reading = worker.take()
        assert reading is not None
        found.append(reading.talkers)
    assert found == [{("instance", INSTANCE.id, "requests"): packed}, {}]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_setting_decides_whether_addresses_leave_the_host(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    seen: list[str] = []

    def spool(*_: object) -> None:
        raise Stop

    enabled = service._enabled
    monkeypatch.setattr(service, "_enabled", lambda *args: seen.extend(c.name for c in enabled(*args)) or [])
    monkeypatch.setattr(service, "Spool", spool)
    with pytest.raises(Stop):
        service.run(AgentSettings(node=NODE, talkers=wanted), Tls(), Path(), ManualClock(0), Event(), lambda: None)
    assert ("talkers" in seen) is wanted
    assert "network" in seen
