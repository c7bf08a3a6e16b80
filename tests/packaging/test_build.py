"""The parts of the packages that need no build; the packages themselves are tried by `make test-deb`."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from trimtab.agent.settings import read
from trimtab.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "packaging" / "settings" / "trimtab.toml"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", ROOT / "packaging" / "deb" / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dpkg_orders_versions_as_python_does(build: ModuleType) -> None:
    for earlier, later in pairwise(["0.1.0", "0.2.0a1", "0.2.0b2", "0.2.0rc1", "0.2.0", "0.2.1", "0.10.0"]):
        command = ["dpkg", "--compare-versions", build.version(earlier), "lt", build.version(later)]
        assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
@pytest.mark.parametrize("service", ["agent", "collector", "actuator"])
def test_maintainer_scripts_are_shell(script: str, service: str) -> None:
    text = (ROOT / "packaging" / "deb" / script).read_text().replace("@SERVICE@", service).replace("@PRIORITY@", "1")
    assert "@" not in text
    done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_shipped_settings_are_valid_and_steer_nothing() -> None:
    assert read(EXAMPLE, Settings).actuator.mode == "shadow"


def test_every_key_that_the_shipped_settings_offer_is_one(tmp_path: Path) -> None:
    offered = tmp_path / "trimtab.toml"
    offered.write_text(re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    settings = read(offered, Settings)
    assert settings.agent.collector == settings.actuator.collector == "collector.example:7470"
    assert settings.tls.key


def test_what_a_package_needs_is_what_its_extra_names(build: ModuleType) -> None:
    assert not [r for r in build._requirements("agent") if r.startswith(("duckdb", "torch"))]
    assert [r for r in build._requirements("collector,actuator") if r.startswith("duckdb")]
