"""Who is in a cluster: nobody's traffic ends because trimtab lost sight of an instance, and nobody's goes to who has moved."""

from __future__ import annotations

import ipaddress
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets.addresses import Addresses
from trimtab.actuator.targets.xds import members as module
from trimtab.actuator.targets.xds.members import KEEP_SECONDS, Member, Members, neutral


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def unix_ns(self) -> int:
        return 0

    def boottime_ns(self) -> int:
        return 0

    def monotonic(self) -> float:
        return self.now

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        return False


def one(name: str, model: str = "m", weight: float = 1.0, address: str = "") -> Assignment:
    return Assignment(f"{name}/80", model, (address or f"10.0.0.{ord(name[0])}:80",), weight)


def snapshot(*assignments: Assignment) -> Snapshot:
    return Snapshot("active", assignments, 1, 1)


def shares(members: Members, cluster: str = "m") -> dict[str, float]:
    return {i.partition("/")[0]: m.share for i, m in members.clusters.get(cluster, {}).items()}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def members(clock: Clock, tmp_path: Path) -> Members:
    return Members(tmp_path / "members.json", "here", (), clock)


def test_out_of_sight_it_stays_neutral_for_a_while(members: Members, clock: Clock) -> None:
    members.update(snapshot(one("a", weight=0.2), one("b", weight=0.5)))
    assert shares(members) == {"a": 0.2, "b": 0.5}
    only_a = snapshot(one("a", weight=0.2))
    for clock.now in (1.0, KEEP_SECONDS, KEEP_SECONDS + 1):
        members.update(only_a)
        assert shares(members) == {"a": 0.2, "b": 1.0}
    clock.now = KEEP_SECONDS + 1.1
    members.update(only_a)
    assert shares(members) == {"a": 0.2}


def test_the_last_ones_stay_for_good(members: Members, clock: Clock) -> None:
    members.update(snapshot(one("a", weight=0.2), one("b"), one("c", "other")))
    for clock.now in (1.0, 1e9):
        members.update(snapshot(one("c", "other")))
        assert shares(members) == {"a": 1.0, "b": 1.0}
    members.update(snapshot(one("b", weight=0.1)))
    assert shares(members) == {"a": 1.0, "b": 0.1}, "from now on it is missed"


def test_who_moved_is_gone_at_once(members: Members) -> None:
    members.update(snapshot(one("a"), one("b"), one("c"), one("d")))
    moved = one("b", "other"), one("x", address="10.0.0.99:80"), one("d", "")
    members.update(snapshot(one("a"), *moved))
    # c's address, which is 10.0.0.99:80, has a new owner; d's model is not known for the moment.
    assert shares(members) == {"a": 1.0, "x": 1.0, "d": 1.0}
    assert shares(members, "other") == {"b": 1.0}


def test_an_instance_is_in_the_cluster_of_each_of_its_models(members: Members) -> None:
    members.update(snapshot(one("a", "bert,resnet", 0.5), one("b", "resnet"), one("c", "")))
    assert {name: shares(members, name) for name in members.clusters} == {
        "bert": {"a": 0.5},
        "resnet": {"a": 0.5, "b": 1.0},
        "bert,resnet": {"a": 0.5},
    }


def test_the_next_start_knows_them(members: Members, clock: Clock, tmp_path: Path) -> None:
    members.update(snapshot(one("a", weight=0.2), one("b")))
    again = Members(tmp_path / "members.json", "here", (), clock)
    assert again.clusters == neutral(members.clusters)
    again.update(snapshot())
    assert shares(again) == {"a": 1.0, "b": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["members.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 99_999,
        "\udcff",
        '{"m": 3}',
        '{"m": {}}',
        '{"m": {"a/1": null}}',
        '{"m": {"a/1": "nowhere"}}',
        '{"m": {"a/1": "10.0.0.1:99999"}}',
    ],
    ids=range(8),
)
def test_a_damaged_file_is_none(text: str, clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert Members(path, "here", (), clock).clusters == {}


def test_a_file_that_cannot_be_written_is_told_and_ends_nothing(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "members.json"
    members = Members(path, "here", (), clock)
    for weight in (1.0, 0.5, 0.5):
        with pytest.raises(OSError, match="missing"):
            members.update(snapshot(one("a", weight=weight)))
        assert shares(members) == {"a": weight}
    path.parent.mkdir()
    members.update(snapshot(one("a", weight=0.5)))
    assert shares(Members(path, "here", (), clock)) == {"a": 1.0}


def test_limits(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLUSTERS_MAX", 3)
    monkeypatch.setattr(module, "MEMBERS_MAX", 2)
    members.update(snapshot(one("a", ",".join("wxyz"))))
    assert sorted(members.clusters) == ["w", "w,x,y,z", "x"]
    assert members.surplus == 2
    members.update(snapshot(one("b", "w"), one("c", "w"), one("d", "v")))
    assert shares(members, "w") == {"b": 1.0, "c": 1.0}
    assert len(members.clusters) == 3


_FLEETS = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.sampled_from(["m", "n", "m,n", ""]), st.floats(0, 1))),
    max_size=9,
)


@given(_FLEETS, st.floats(0, 1))
def test_no_cluster_is_ever_empty_and_who_is_known_has_its_share(
    fleets: list[dict[str, tuple[str, float]]], pace: float
) -> None:
    clock = Clock()
    members = Members(None, "here", (), clock)
    names: set[str] = set()
    for fleet in fleets:
        clock.now += pace * KEEP_SECONDS
        members.update(snapshot(*(one(n, model, w) for n, (model, w) in sorted(fleet.items()))))
        names |= {part for model, _ in fleet.values() for part in {model, *model.split(",")} if part}
        assert set(members.clusters) == names
        for cluster, group in members.clusters.items():
            assert group
            for name, (model, share) in fleet.items():
                if cluster in {model, *model.split(",")}:
                    assert group[f"{name}/80"] == Member(f"10.0.0.{ord(name)}:80", share)
                elif model and any(cluster in {m, *m.split(",")} for m, _ in fleet.values()):
                    assert f"{name}/80" not in group


@pytest.mark.parametrize(
    ("addresses", "networks", "reached"),
    [
        (("127.0.0.1:80", "10.0.0.1:80", "[fd00::1]:80"), (), "10.0.0.1:80"),
        (("127.0.0.1:80",), (), "127.0.0.1:80"),
        (("172.17.0.1:80", "10.0.0.1:80"), (), "10.0.0.1:80"),
        (("127.0.0.1:80", "10.0.0.1:80", "[fd00::1]:80"), ("fd00::/8",), "fd00::1:80"),
        (("127.0.0.1:80", "10.0.0.1:80"), ("192.168.0.0/16",), ""),
        (("host.example:80", "10.0.0.1:http"), (), ""),
        ((), (), ""),
    ],
)
def test_where_it_is_reached(addresses: tuple[str, ...], networks: tuple[str, ...], reached: str) -> None:
    here = Assignment("here/1", "m", addresses, 1.0)
    there = Assignment("there/1", "m", ("127.0.0.1:80", "172.17.0.1:80"), 1.0)
    known = Addresses((here, there), "here")
    assert known.reached(here, [ipaddress.ip_network(n) for n in networks]) == reached
    assert known.reached(there, []) == ("" if "172.17.0.1:80" in addresses else "172.17.0.1:80")
