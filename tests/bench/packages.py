"""The programs that a measurement needs, installed when they are missing, and never left running or starting at boot."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
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


def taken_out(package: str) -> Path:
    """The program of a Debian package of the same name, without installing it: that would start a service. Raises TrimtabError."""
    folder = Path(tempfile.gettempdir()) / f"trimtab-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise TrimtabError(f"{folder} is somebody else's: move it away", Exit.STATE)
    program_ = folder / package
    if not program_.exists():
        _fetch(package, folder)
    return program_


def _fetch(package: str, folder: Path) -> None:
    download = ["apt-get", "download", "-qq", package]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
        _apt("update", "-qq")
        _apt_in(folder, "download", "-qq", package)
    [archive] = folder.glob(f"{package}_*.deb")
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True, check=True).stdout
    found = subprocess.run(["tar", "-x", "-O", f"./usr/bin/{package}"], input=unpacked, capture_output=True, check=True)
    fresh = folder / f"{package}.new"
    fresh.write_bytes(found.stdout)
    fresh.chmod(0o755)
    fresh.rename(folder / package)
    archive.unlink()


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
    _apt_in(Path.cwd(), *arguments)


def _apt_in(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise TrimtabError(f"apt-get {arguments[0]} failed: {last[0]}", Exit.SETTINGS)
