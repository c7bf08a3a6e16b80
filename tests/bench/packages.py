"""The programs that a measurement needs, installed when they are missing, and never left running or starting at boot."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from trimtab import Exit, TrimtabError

PACKAGES = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "prometheus-node-exporter": "prometheus-node-exporter",
    "netdata": "netdata",
}
"""Package of each program."""
_SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
_POLICY = Path("/usr/sbin/policy-rc.d")


def program(name: str) -> str:
    """Its path. Raises TrimtabError that says how to get it."""
    found = shutil.which(name, path=_SEARCHED)
    if found is None:
        raise TrimtabError(f"{name} is not installed: apt-get install {PACKAGES.get(name, name)}", Exit.SETTINGS)
    return found


def install(console: Console) -> None:
    """What is missing. Raises TrimtabError when that fails."""
    missing = [package for name, package in PACKAGES.items() if not shutil.which(name, path=_SEARCHED)]
    if not missing:
        return
    console.print(f"installing {' '.join(missing)}")
    with _no_service_starts():
        _apt("update", "-qq")
        _apt("install", "-y", "-qq", "--no-install-recommends", *missing)
    if shutil.which("systemctl"):
        units = [package.removesuffix("-light") for package in missing if package != "wrk"]
        subprocess.run(["systemctl", "disable", "--quiet", *units], check=False)


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian's packages start what they install, unless this file says no."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _apt(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise TrimtabError(f"apt-get {arguments[0]} failed: {last[0]}", Exit.SETTINGS)
