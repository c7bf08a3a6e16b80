"""Builds trimtab-agent, trimtab-collector and trimtab-actuator as Debian packages: `make deb`.

    python packaging/deb/build.py OUTPUT_DIRECTORY [SERVICE…]

Each package holds a virtual environment of its own under /opt/trimtab with everything installed and byte-compiled, so that
installing it runs neither pip nor a compiler and needs no network. It is built for the Python that runs this file, and depends on it.
What pip installs from elsewhere is kept below build/deb and used again while the requirements stay the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from trimtab import __version__

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "deb"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NEXT_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor + 1}"
FLOORS = ("agent", "collector", "detector", "rootcause", "actuator")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "packaging/src", *FLOORS)

WHAT = {
    "agent": "samples a GPU host and its serving instances",
    "collector": "stores windows, finds incidents, answers questions",
    "actuator": "moves load-balancer weights within a guard",
}
EXTRAS = {"agent": "agent", "collector": "collector,actuator", "actuator": "actuator"}
# What eBPF needs is recommended: without it the agent runs, says what is missing, and request latency is unknown.
RECOMMENDS = {"agent": "python3-bpfcc", "collector": "", "actuator": ""}
SUGGESTS = {"agent": "", "collector": "", "actuator": "haproxy"}
# The command of the package with the most in it answers to `trimtab`.
COMMAND_PRIORITY = {"agent": 10, "actuator": 20, "collector": 30}
# Never imported: tests, C headers, static libraries and compilers of what was installed.
NOT_NEEDED = (
    "**/tests",
    "numpy/_core/include",
    "numpy/f2py",
    "numpy/**/*.a",
    "**/*.pyx",
    "**/*.pxd",
)


def main(output: Path, services: Iterable[str]) -> None:
    """Build the packages, and say where they are."""
    output.mkdir(parents=True, exist_ok=True)
    wheel = _wheel()
    for service in services:
        stage = CACHE / f"stage-{service}"
        shutil.rmtree(stage, ignore_errors=True)
        _environment(stage, service, wheel)
        _try(stage, service)
        _files(stage, service)
        _control(stage, service)
        package = output / f"trimtab-{service}_{version()}_{architecture()}.deb"
        for old in output.glob(f"trimtab-{service}_*.deb"):
            old.unlink()
        # zstd: dpkg of Debian 12 and Ubuntu 22.04 reads it, and it takes seconds where xz takes minutes.
        _run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z12", "--build", str(stage), str(package))
        shutil.rmtree(stage)
        print(f"{package}: {package.stat().st_size / 1e6:.1f} MB")


def version(python_version: str = __version__) -> str:
    """The version as Debian orders it: 0.2.0rc1, which is 0.2.0~rc1 there, comes before 0.2.0."""
    return re.sub(r"\.?(dev|a|b|rc)(?=\d)", r"~\1", python_version)


def architecture() -> str:
    """Debian's name of this machine's."""
    return _run("dpkg", "--print-architecture").strip()


def _wheel() -> Path:
    """trimtab itself, from a copy: setuptools leaves a build directory behind, and takes up old files that it finds in one."""
    copy, out = CACHE / "source", CACHE / "wheel"
    for folder in (copy, out):
        shutil.rmtree(folder, ignore_errors=True)
    for name in SOURCES:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, target, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, target)
    # setuptools comes once, like all that pip installs here.
    tools = _installed("tools", tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
    _run(
        *_pip(), "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy), PYTHONPATH=str(tools)
    )
    return next(out.glob("*.whl"))


def _environment(stage: Path, service: str, wheel: Path) -> None:
    """The virtual environment as it will be under /opt/trimtab, whatever directory it is built in."""
    final = f"/opt/trimtab/{service}"
    home = stage / final.lstrip("/")
    packages = home / "lib" / f"python{PYTHON}" / "site-packages"
    shutil.copytree(_installed(service, _requirements(EXTRAS[service])), packages, symlinks=True)
    _run(*_pip(), "install", "--no-deps", "--no-compile", "--target", str(packages), str(wheel))
    shutil.rmtree(packages / "bin")
    (home / "bin").mkdir()
    for name in ("python3", f"python{PYTHON}"):
        (home / "bin" / name).symlink_to(f"/usr/bin/python{PYTHON}")
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n")
    command = home / "bin" / "trimtab"
    command.write_text(f"#!{final}/bin/python3 -I\nfrom trimtab.__main__ import main\n\nmain()\n")
    command.chmod(0o755)
    # By hash and unchecked: the package manager alone changes these files, whatever times they then have.
    options = ("-q", "--invalidation-mode", "unchecked-hash", "-s", str(stage), "-p", "/", "-j", "0")
    _run(sys.executable, "-m", "compileall", *options, str(packages))


def _try(stage: Path, service: str) -> None:
    """A library that the extra of `service` lacks is better found here than where the package is installed."""
    python = stage / "opt/trimtab" / service / "bin/python3"
    if python.exists():  # else this machine has another Python than the distribution's
        server = "service" if service == "agent" else "server"
        _run(str(python), "-I", "-B", "-c", f"import trimtab.services, trimtab.{service}.{server}")


def _requirements(extras: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return sorted(
        [*project["dependencies"], *(r for e in extras.split(",") for r in project["optional-dependencies"][e])]
    )


def _installed(name: str, requirements: list[str]) -> Path:
    """A directory with the wheels of `requirements`, at the tested versions, without what nothing imports."""
    constraints = ROOT / "constraints.txt"
    key = "\n".join([*requirements, constraints.read_text(), sys.version, *NOT_NEEDED])
    folder = CACHE / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.exists():
        fresh = folder.with_suffix(".fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        options = ["--no-compile", "--only-binary", ":all:", "--constraint", str(constraints), "--target", str(fresh)]
        _run(*_pip(), "install", *options, *requirements)
        shutil.rmtree(fresh / "bin", ignore_errors=True)
        for pattern in NOT_NEEDED:
            for found in sorted(fresh.glob(pattern)):
                shutil.rmtree(found) if found.is_dir() else found.unlink(missing_ok=True)
        fresh.rename(folder)
    return folder


def _files(stage: Path, service: str) -> None:
    """All that is not the virtual environment."""
    systemd, share = ROOT / "packaging" / "systemd", stage / "usr/share"
    wanted = {
        systemd / f"trimtab-{service}.service": "lib/systemd/system",
        systemd / f"trimtab-{service}.sysusers": "usr/lib/sysusers.d",
        ROOT / "packaging/settings/trimtab.toml": f"opt/trimtab/{service}/share",
        **{
            ROOT / "docs" / f"{page}.md": f"usr/share/doc/trimtab-{service}"
            for page in ("install", "operations", "settings")
        },
    }
    for source, folder in wanted.items():
        (stage / folder).mkdir(parents=True, exist_ok=True)
        name = source.name.replace(".sysusers", ".conf")
        shutil.copyfile(source, stage / folder / name)
    shutil.copyfile(ROOT / "LICENSE", share / "doc" / f"trimtab-{service}" / "copyright")
    for path in stage.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)


def _control(stage: Path, service: str) -> None:
    debian = stage / "DEBIAN"
    debian.mkdir()
    sizes = sum(path.lstat().st_size for path in stage.rglob("*") if not path.is_dir())
    fields = {
        "Package": f"trimtab-{service}",
        "Version": version(),
        "Architecture": architecture(),
        "Maintainer": "trimtab <trimtab@localhost>",
        "Installed-Size": str(sizes // 1024),
        "Depends": f"python3 (>= {PYTHON}), python3 (<< {NEXT_PYTHON}), libc6 (>= 2.28), libstdc++6, systemd (>= 247)",
        "Recommends": RECOMMENDS[service],
        "Suggests": SUGGESTS[service],
        "Section": "admin",
        "Priority": "optional",
        "Description": f"finds degraded model-serving instances: {service}\n trimtab {service}: {WHAT[service]}.",
    }
    (debian / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items() if value))
    for script in ("postinst", "prerm", "postrm"):
        text = (HERE / script).read_text().replace("@SERVICE@", service)
        (debian / script).write_text(text.replace("@PRIORITY@", str(COMMAND_PRIORITY[service])))
        (debian / script).chmod(0o755)


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def _run(*command: str, **environment: str) -> str:
    """What it prints. What it complains of is seen; when it fails, so does the build."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})  # noqa: S603
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(WHAT))
