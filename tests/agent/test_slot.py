"""Where a GPU is plugged in, as sysfs shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.agent.nvml.slot import DEVICES, slot


@pytest.mark.parametrize(
    ("path", "numa", "labels"),
    [
        ("0000:40:01.1/0000:41:00.0", "1", {"pcie_root": "0000:40:01.1", "numa_node": "1"}),
        ("0000:40:01.1/0000:42:00.0/0000:43:08.0/0000:41:00.0", "-1", {"pcie_root": "0000:40:01.1"}),
        ("0000:41:00.0", "0", {"numa_node": "0"}),
        ("0000:40:01.1/0000:41:00.0", None, {"pcie_root": "0000:40:01.1"}),
    ],
    ids=["root port", "switch", "root bus", "no memory"],
)
def test_the_root_port_is_the_first_above(tmp_path: Path, path: str, numa: str | None, labels: dict[str, str]) -> None:
    device = tmp_path / "sys" / "devices" / "pci0000:40" / path
    device.mkdir(parents=True)
    if numa is not None:
        (device / "numa_node").write_text(f"{numa}\n")
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "0000:41:00.0").symlink_to(device)
    assert slot("0000:41:00", str(tmp_path / "devices")) == labels


def test_what_is_not_there_is_not_known(tmp_path: Path) -> None:
    assert slot("0000:41:00", str(tmp_path)) == {}
    assert slot("", str(tmp_path)) == {}


@pytest.mark.skipif(not Path(DEVICES).is_dir(), reason="no PCI here")
def test_of_this_host() -> None:
    for device in Path(DEVICES).iterdir():
        if device.name.endswith(".0"):
            root = slot(device.name.removesuffix(".0")).get("pcie_root")
            assert root is None or (Path(DEVICES) / root).exists()
