"""The units as systemd reads them: no unknown line, and no more exposed than promised."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = {"agent": 3.0, "collector": 2.0, "actuator": 2.0}
"""The most that `systemd-analyze security` may say."""
CAPABILITIES = {"CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SYSLOG"}

pytestmark = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="no systemd-analyze: apt-get install systemd"
)


def unit(service: str) -> Path:
    return ROOT / "packaging" / "systemd" / f"trimtab-{service}.service"


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def as_installed(service: str, directory: Path) -> Path:
    """The unit with a program and a user that are here: `verify` looks for both."""
    text = re.sub(r"/opt/trimtab/\w+/bin/\w+", "/bin/true", unit(service).read_text())
    text = re.sub(r"^(User|Group|SupplementaryGroups)=.*$", r"\1=root", text, flags=re.MULTILINE)
    text = re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE)
    copy = directory / unit(service).name
    copy.write_text(text)
    return copy


@pytest.mark.parametrize("service", UNITS)
def test_systemd_knows_every_line(service: str, tmp_path: Path) -> None:
    said = [
        line
        for line in analyze("verify", "--man=no", str(as_installed(service, tmp_path))).splitlines()
        if "trimtab" in line
    ]
    assert said == []


def test_the_verification_can_fail(tmp_path: Path) -> None:
    copy = as_installed("agent", tmp_path)
    copy.write_text(copy.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in analyze("verify", "--man=no", str(copy))


@pytest.mark.parametrize("service", UNITS)
def test_exposure_is_bounded(service: str) -> None:
    said = analyze("security", "--offline=true", "--no-pager", str(unit(service)))
    exposure = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", said)
    assert exposure, said
    assert float(exposure[1]) <= UNITS[service]


def test_the_agent_has_the_capabilities_that_the_page_accounts_for() -> None:
    lines = re.findall(r"^(?:AmbientCapabilities|CapabilityBoundingSet)=(.*)$", unit("agent").read_text(), re.MULTILINE)
    assert [set(line.split()) for line in lines] == [CAPABILITIES, CAPABILITIES]
    page = (ROOT / "docs" / "install.md").read_text()
    assert {name for name in CAPABILITIES if f"| `{name}` |" not in page} == set()


@pytest.mark.parametrize("service", ["collector", "actuator"])
def test_the_others_have_none(service: str) -> None:
    assert "\nCapabilityBoundingSet=\n" in unit(service).read_text()
    assert "AmbientCapabilities" not in unit(service).read_text()
