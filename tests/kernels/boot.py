"""Runs tests under another kernel: this machine's own files, read-only, below a Debian kernel in a virtual machine.

    python -m tests.kernels.boot linux-image-6.1.0-53-amd64 tests/agent/test_latency.py …
    make test-kernels

The kernel comes from Debian's package, which is downloaded and unpacked, not installed. Its first program is a few lines of shell that
mount this machine's root by 9p with a layer of memory above it, and run pytest there. Needs qemu-system-x86, busybox-static and
cpio. Without --kvm it is some twenty times slower than the machine itself.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab-kernels"
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "veth", "loop", "dummy")
RUN_SECONDS_MAX = 3600
_DONE = re.compile(r"^trimtab-tests: (\d+)\r?$", re.MULTILINE)

INIT = """#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules.order); do insmod $module || echo "no module $module"; done
mkdir -p /host /layer /root
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=1048576,ro host /host
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root
for at in proc sys dev; do mount --move /$at /root/$at; done
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t devpts pts /root/dev/pts
mount -t tmpfs run /root/run
mount -t tmpfs tmp /root/tmp
mount -t cgroup2 cgroup /root/sys/fs/cgroup
mount -t bpf bpf /root/sys/fs/bpf
ip link set lo up
exec chroot /root /bin/bash -c "$(cat /command)"
"""


def main() -> int:
    """Boot, run, and give back what pytest said; the machine's console goes to stdout."""
    parser = argparse.ArgumentParser(description="Run tests under a Debian kernel in a virtual machine.")
    parser.add_argument(
        "--kvm", action="store_true", help="use /dev/kvm, which a machine that is virtual itself may only seem to have"
    )
    parser.add_argument("package", help="such as linux-image-6.1.0-53-amd64")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of pytest")
    options = parser.parse_args()
    for tool in ("qemu-system-x86_64", "cpio", "busybox"):
        if not shutil.which(tool):
            print(f"{tool} is not installed: apt-get install qemu-system-x86 cpio busybox-static", file=sys.stderr)
            return 2
    kernel = unpack(options.package)
    with tempfile.TemporaryDirectory() as scratch:
        return run(kernel, initramfs(kernel, options.arguments, Path(scratch)), options.kvm)


def unpack(package: str) -> Path:
    """The package's files; downloaded once."""
    directory = CACHE / package
    if not directory.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            subprocess.run(["apt-get", "download", "-qq", package], cwd=scratch, check=True)
            (archive,) = Path(scratch).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, f"{scratch}/files"], check=True)
            Path(scratch, "files").rename(directory)
    return directory


def initramfs(kernel: Path, arguments: list[str], scratch: Path) -> Path:
    """The first files of the machine: busybox, the modules that reach this machine's root, and what to run there."""
    tree = scratch / "tree"
    for name in ("bin", "proc", "sys", "dev"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin/busybox")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    (tree / "modules.order").write_text("".join(f"/{path.name}\n" for path in modules(kernel)))
    for path in modules(kernel):
        shutil.copy(path, tree / path.name)
    pytest = shlex.join(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.kernels.patient", *arguments]
    )
    (tree / "command").write_text(
        f"export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/h\n"
        f"cd {shlex.quote(str(ROOT))} && uname -r && {pytest}\necho trimtab-tests: $?\nsync; echo o > /proc/sysrq-trigger; sleep 60\n"
    )
    image = scratch / "initramfs"
    with image.open("wb") as file:
        names = subprocess.run(["find", "."], cwd=tree, check=True, capture_output=True).stdout
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=names, stdout=file, check=True)
    return image


def modules(kernel: Path) -> list[Path]:
    """Those of MODULES and what they need, in the order in which they can be loaded."""
    (directory,) = (kernel / "lib/modules").glob("*")
    found = {path.name.partition(".ko")[0].replace("-", "_"): path for path in directory.rglob("*.ko*")}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        path = found.get(name.replace("-", "_"))
        if path is None or name in order:  # built into the kernel
            return
        needs = subprocess.run(["modinfo", "-F", "depends", path], capture_output=True, text=True, check=True).stdout
        for need in filter(None, needs.strip().split(",")):
            add(need.replace("-", "_"))
        order.setdefault(name, path)

    for name in MODULES:
        add(name)
    return list(order.values())


def run(kernel: Path, image: Path, kvm: bool) -> int:
    """The exit code of pytest; 1 where the machine did not get so far."""
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    command = [
        *("qemu-system-x86_64", "-nographic", "-no-reboot", "-m", "3G", "-smp", "2"),
        *(("-enable-kvm", "-cpu", "host") if kvm else ("-cpu", "max")),
        *("-kernel", str(vmlinuz), "-initrd", str(image)),
        *("-append", "console=ttyS0 quiet panic=-1 loglevel=3"),
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-net", "none"),
    ]
    console = ""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as machine:
        assert machine.stdout is not None
        hangs = threading.Timer(RUN_SECONDS_MAX, machine.kill)
        hangs.start()
        try:
            for line in machine.stdout:
                print(line, end="", flush=True)
                console = (console + line)[-4096:]
        finally:
            hangs.cancel()
            machine.kill()
    done = _DONE.search(console)
    return int(done[1]) if done else 1


if __name__ == "__main__":
    sys.exit(main())
