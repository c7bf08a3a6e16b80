"""Links of network cards, on real ones with a cable between them, and on made ones for what virtual cards cannot do."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agent import interfaces, procfs
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.network import COLLECTOR, SPEED_SECONDS
from trimtab.agent.registry import Host, Reading

# In a network namespace of its own, with the /sys that belongs to it.
LINKS = """
import json, math, socket, subprocess, sys
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.network import COLLECTOR
from trimtab.agent.registry import Host, Reading

def ip(*words): subprocess.run(["ip", *words], check=True)
subprocess.run(["mount", "-t", "sysfs", "none", "/sys"], check=True)
ip("link", "add", "left", "type", "veth", "peer", "name", "right")
for card in ("left", "right"):
    open(f"/proc/sys/net/ipv6/conf/{card}/disable_ipv6", "w").write("1")
    ip("link", "set", card, "up")
ip("addr", "add", "10.1.1.1/24", "dev", "left")
ip("neigh", "add", "10.1.1.2", "lladdr", "02:00:00:00:00:02", "dev", "left")

def read(seconds=1.0):
    reading = Reading((), seconds)
    collector.read(reading)
    values = {f"{subject} {name}": value for (_, subject, name), value in reading.values.items()}
    return values, [(subject, name, value) for _, subject, name, value, _ in reading.events]

collector = COLLECTOR()
collector.open(Host("n", ManualClock()))
read(math.nan)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(23):
    sender.sendto(bytes(1000), ("10.1.1.2", 9))
out = [read()]
ip("link", "set", "right", "down")
out.append(read())
ip("link", "set", "right", "up")
out.append(read())
for _ in range(3):
    ip("link", "set", "right", "down")
    ip("link", "set", "right", "up")
out.append(read())
print(json.dumps(out))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_packets_and_every_loss_of_a_link_are_counted() -> None:
    done = subprocess.run(
        ["unshare", "-n", "-m", sys.executable, "-c", LINKS], capture_output=True, text=True, timeout=60, check=False
    )
    if "Unknown device type" in done.stderr:
        pytest.skip("this kernel has no veth")
    assert done.returncode == 0, done.stderr
    (sent, nothing), (_, down), (_, up), (_, flaps) = json.loads(done.stdout)
    assert sent["n/interface/left transmit_packets_per_second"] == 23
    assert sent["n/interface/right receive_packets_per_second"] == 23
    assert sent["n/interface/right receive_bytes_per_second"] == 23 * (14 + 20 + 8 + 1000)
    assert sent["n/interface/left transmit_bytes_per_second"] == 23 * (14 + 20 + 8 + 1000)
    assert sent["n/interface/left errors_per_second"] == sent["n/interface/left drops_per_second"] == 0
    assert sent["n/interface/left carrier"] == 1
    assert nothing == []
    assert ["n/interface/left", "link_down", 1] in down
    assert ["n/interface/left", "link_up", 1] in up
    # Shorter than a window, and seen all the same.
    assert ["n/interface/left", "link_down", 3] in flaps
    assert ["n/interface/left", "link_up", 3] in flaps


class Cards:
    """Made ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.collector = COLLECTOR()
        self.collector.open(Host("n", self.clock))

    def write(self, card: str, **files: str) -> None:
        (self.folder / card / "device").mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / card / name).write_text(f"{text}\n")

    def read(self) -> Reading:
        reading = Reading((), 1.0)
        self.collector.read(reading)
        return reading


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    monkeypatch.setattr(interfaces, "INTERFACES", tmp_path)
    read = procfs.read
    table = "head\nhead\n" + "".join(f"{name}: {'1 ' * 16}\n" for name in ("eth0", "eth1", "veth1", "lo"))
    monkeypatch.setattr(procfs, "read", lambda path: table if path == "/proc/net/dev" else read(path))
    return Cards(tmp_path)


def test_a_speed_that_changed_is_an_event(cards: Cards) -> None:
    cards.write("eth0", carrier="1", carrier_up_count="1", carrier_down_count="0", speed="25000")
    cards.write("eth1", carrier="1", carrier_up_count="1", carrier_down_count="0", speed="-1")
    reading = cards.read()
    assert reading.values["interface", "n/interface/eth0", "speed_bits_per_second"] == 25e9
    assert ("interface", "n/interface/eth1", "speed_bits_per_second") not in reading.values
    assert "n/interface/veth1" not in {subject for _, subject, _ in reading.values}
    cards.write("eth0", speed="10000")
    cards.clock.advance(SPEED_SECONDS)
    assert cards.read().events == [
        ("interface", "n/interface/eth0", "link_speed_change", 10e9, "25 → 10 Gbit/s"),
    ]
    assert cards.read().events == []


def test_a_link_that_comes_back_slower_is_compared_with_what_it_was(cards: Cards) -> None:
    cards.write("eth0", carrier="1", carrier_up_count="1", carrier_down_count="0", speed="25000")
    cards.read()
    cards.write("eth0", carrier="0", carrier_down_count="1", speed="-1")
    down = cards.read()
    assert [event[2] for event in down.events] == ["link_down"]
    assert down.values["interface", "n/interface/eth0", "carrier"] == 0
    assert ("interface", "n/interface/eth0", "speed_bits_per_second") not in down.values
    cards.write("eth0", carrier="1", carrier_up_count="2", speed="1000")
    assert [event[2:4] for event in cards.read().events] == [("link_up", 1), ("link_speed_change", 1e9)]


def test_what_a_driver_does_not_say_is_unknown(cards: Cards) -> None:
    cards.write("eth0")
    reading = cards.read()
    assert {name for _, subject, name in reading.values if subject == "n/interface/eth0"}.isdisjoint(
        {"carrier", "speed_bits_per_second"}
    )
    assert not any(math.isnan(value) for value in reading.values.values())


@given(st.text())
def test_garbage_for_net_dev(text: str) -> None:
    try:
        interfaces.traffic("a\nb\n" + text)
    except ValueError:
        return


@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9.-]{1,15}", fullmatch=True),
        st.lists(st.integers(0, 2**64 - 1), min_size=16, max_size=16),
    )
)
def test_net_dev_of_any_host(rows: dict[str, list[int]]) -> None:
    found = interfaces.traffic("a\nb\n" + "".join(f"{n}:{' '.join(map(str, row))}\n" for n, row in rows.items()))
    assert {name: (t.receive_bytes, t.transmit_bytes, t.errors, t.drops) for name, t in found.items()} == {
        name: (row[0], row[8], row[2] + row[10], row[3] + row[11]) for name, row in rows.items()
    }
