"""`make test-deb`: the packages in a machine with nothing else in it, where systemd is process 1.

    python -m tests.packaging.boot DIRECTORY_OF_PACKAGES [--machine container|vm]

`container` boots Debian's systemd with systemd-nspawn on this kernel. `vm` boots Debian's kernel too, in qemu: slow without KVM, but
nothing is shared, and cgroup v2 has its controllers. Both need root and have no network. The root directory comes from mmdebstrap and is
kept below build/boot. What happens inside is in guest.py; its report is printed as it comes, and the exit code is 1 when a check failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "boot"
SUITE = "bookworm"
INSTALLED = "systemd-sysv,dbus,udev,kmod,procps,iproute2,init-system-helpers"
KERNEL = "linux-image-cloud-amd64,initramfs-tools,zstd"
# What the packages depend on, and HAProxy: fetched when the root is made, installed by apt in the machine, which has no network.
FETCHED = ("python3", "python3-bpfcc", "haproxy", "ca-certificates")
TOOLS = {"container": ("mmdebstrap", "systemd-nspawn"), "vm": ("mmdebstrap", "qemu-system-x86_64", "mke2fs")}
MARK = "@@ "
DONE = "done"
SECONDS_MAX = {"container": 400, "vm": 1500}

UNIT = """\
[Unit]
After=multi-user.target dbus.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'cd /run && tar -xf "$(ls /dev/vdb /given.tar 2>/dev/null | head -n 1)" && sh given/guest.sh'
ExecStopPost=-/bin/systemctl poweroff --force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
TimeoutStartSec=infinity
[Install]
WantedBy=graphical.target
"""


def main() -> int:
    """Exit code 0 when every check held, 1 when one did not, 2 when the machine could not be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--machine", choices=TOOLS, default="container")
    given = parser.parse_args()
    missing = [tool for tool in TOOLS[given.machine] if not shutil.which(tool)]
    if missing or os.geteuid() != 0:
        why = (
            f"lacks {', '.join(missing)}: apt-get install mmdebstrap systemd-container qemu-system-x86"
            if missing
            else "needs root"
        )
        print(f"test-deb: {why}")
        return 2
    root = _root(given.machine)
    with tempfile.TemporaryDirectory() as scratch:
        handed = _hand_over(given.packages, Path(scratch))
        start = _container if given.machine == "container" else _vm
        with start(root, handed, Path(scratch)) as machine:
            return _report(machine, time.monotonic() + SECONDS_MAX[given.machine])


def _root(machine: str) -> Path:
    """The root directory of the machine; made once."""
    packages = INSTALLED + (f",{KERNEL}" if machine == "vm" else "")
    fetch = f'chroot "$1" apt-get --yes --download-only install {" ".join(FETCHED)}'
    key = hashlib.sha256("\n".join([SUITE, packages, fetch, UNIT]).encode()).hexdigest()[:12]
    root = CACHE / f"{machine}-{key}"
    if root.exists():
        return root
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh, unit = CACHE / f"{machine}.fresh", CACHE / "given.service"
    for old in (fresh, *CACHE.glob(f"{machine}-*")):
        shutil.rmtree(old, ignore_errors=True)
    unit.write_text(UNIT)
    subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase", "--skip=cleanup/apt", f"--include={packages}"),
            f"--customize-hook={fetch} >/dev/null",
            f"--customize-hook=copy-in {unit} /etc/systemd/system",
            '--customize-hook=chroot "$1" systemctl enable given.service',
            # A login prompt would hang up on whoever writes to its terminal.
            '--customize-hook=chroot "$1" systemctl mask console-getty.service serial-getty@ttyS0.service getty@tty1.service',
            '--customize-hook=echo trimtab-test > "$1/etc/hostname"',
            *(SUITE, str(fresh)),
        ],
        check=True,
    )
    fresh.rename(root)
    return root


def _hand_over(packages: Path, scratch: Path) -> Path:
    """The packages and what is run inside, as the one archive that the machine unpacks."""
    handed = scratch / "given.tar"
    with tarfile.open(handed, "w") as archive:
        for path in (*sorted(packages.glob("trimtab-*.deb")), HERE / "guest.sh", HERE / "guest.py"):
            archive.add(path, f"given/{path.name}")
    # A disk has whole sectors.
    os.truncate(handed, -(-handed.stat().st_size // 1048576) * 1048576)
    return handed


@contextmanager
def _container(root: Path, handed: Path, scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """systemd-nspawn on this kernel: changes go to memory, and are gone afterwards."""
    subprocess.run(["mount", "-t", "tracefs", "nodev", "/sys/kernel/tracing"], check=False, stderr=subprocess.DEVNULL)
    command = [
        *(
            "systemd-nspawn",
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--console=read-only",
            "--boot",
        ),
        *(f"--directory={root}", "--volatile=overlay", f"--bind-ro={handed}:/given.tar"),
        # What a host would let its own systemd give away.
        *("--capability=CAP_BPF,CAP_PERFMON,CAP_SYSLOG,CAP_SYS_RESOURCE", "--system-call-filter=bpf perf_event_open"),
        *("--bind=/dev/kmsg", "--machine=trimtab-test", "quiet", "systemd.show_status=0"),
    ]
    environment = {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    with _machine(command, environment) as machine:
        yield machine


@contextmanager
def _vm(root: Path, handed: Path, scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    """qemu with Debian's own kernel, on a disk made from the root directory."""
    disk = scratch / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), "4G"], check=True)
    kernel, initrd = (str(next((root / "boot").glob(f"{name}-*"))) for name in ("vmlinuz", "initrd.img"))
    command = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048", "-no-reboot"),
        *(
            "-display",
            "none",
            "-monitor",
            "none",
            "-serial",
            "stdio",
            "-nic",
            "none",
            "-kernel",
            kernel,
            "-initrd",
            initrd,
        ),
        *("-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.show_status=0"),
        *("-drive", f"file={disk},format=raw,if=virtio", "-drive", f"file={handed},format=raw,if=virtio,readonly=on"),
    ]
    with _machine(command, dict(os.environ)) as machine:
        yield machine


@contextmanager
def _machine(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    machine = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield machine
    finally:
        try:
            machine.wait(20)  # it switches itself off
        except subprocess.TimeoutExpired:
            _kill(machine)


def _kill(machine: subprocess.Popen[bytes]) -> None:
    """The machine, and the processes that it would leave behind: a container's first one is its child."""
    children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()
    machine.kill()
    machine.wait()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


def _report(machine: subprocess.Popen[bytes], deadline: float) -> int:
    """Print what the machine says, and judge it."""
    assert machine.stdout
    os.set_blocking(machine.stdout.fileno(), False)
    rest, console, failed = b"", [], 0
    while time.monotonic() < deadline:
        time.sleep(0.1)
        part = machine.stdout.read()
        *lines, rest = (rest + (part or b"")).split(b"\n")
        for line in (raw.decode(errors="replace").strip() for raw in lines):
            if MARK not in line:
                console.append(line)
                continue
            said = line.partition(MARK)[2]
            if said.startswith(DONE):
                return 1 if failed else 0
            print(said, flush=True)
            failed += said.startswith("FAIL")
        if part == b"" and machine.poll() is not None:
            break
    print("\n".join(["the machine said no more; the end of its console:", *console[-40:]]))
    return 2


if __name__ == "__main__":
    sys.exit(main())
