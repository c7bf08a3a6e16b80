"""How the request probes are loaded, switched and refused, and that they leave nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.agent.requests_kit import Server, Watch, instance, needs_ebpf, serve, server
from trimtab.agent.bpf import capability, load_child, loader
from trimtab.agent.bpf.source import Source
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.latency import Latency
from trimtab.agent.registry import Host, Unavailable
from trimtab.agent.sketch.loglinear import bucket_of

__all__ = ["serve", "server"]
pytestmark = needs_ebpf

BUCKETS_IN_THE_KERNEL = """
import ctypes, json, struct, sys
from trimtab.agent.bpf import load_child, syscall
bcc = load_child.import_bcc()
text = '#include "loglinear.h"\\nint bucket(struct bpf_raw_tracepoint_args *ctx) { return bucket_of(ctx->args[0]); }'
program = bcc.BPF(text=text, cflags=[f"-I{load_child.HERE}"]).load_func("bucket", bcc.BPF.RAW_TRACEPOINT)
for value in json.load(sys.stdin):
    argument = ctypes.create_string_buffer(struct.pack("<Q", value), 8)
    attribute = struct.pack("<II32xIIQ", program.fd, 0, 8, 0, ctypes.addressof(argument))
    buffer = ctypes.create_string_buffer(attribute, 128)
    assert syscall._libc.syscall(syscall._NUMBER["x86_64"], 10, buffer, 128) == 0, ctypes.get_errno()
    print(struct.unpack_from("<I", buffer.raw, 4)[0])
"""


def test_the_kernel_has_the_same_buckets() -> None:
    powers = [2**k + d for k in range(64) for d in (-1, 0, 1)]
    edges = [int(b) << s for s in range(0, 31, 3) for b in (64, 65, 100, 127)]
    chosen = np.random.default_rng(7).integers(0, 2**37, 1500, dtype=np.uint64) >> np.random.default_rng(8).integers(
        0, 37, 1500, dtype=np.uint64
    )
    values = sorted({*powers, *edges, *(e - 1 for e in edges), *chosen.tolist()})
    done = subprocess.run(
        [sys.executable, "-I", "-c", BUCKETS_IN_THE_KERNEL],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [int(line) for line in done.stdout.split()]
    assert found == bucket_of(np.minimum(np.array(values, np.uint64), 2**62).astype(np.int64)).tolist()
    assert all(a <= b for a, b in pairwise(found))


def test_a_program_that_is_refused_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int f(void *ctx) { return nonsense; }\n" + "int unused;\n" * 1000)
    with pytest.raises(Unavailable, match=r"not loaded: .*nonsense") as caught:
        loader.load(Source(file=str(broken), maps=(), raw_tracepoints=()))
    assert "\n" not in str(caught.value)
    assert "trimtab doctor" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "reason"), [("BCC", "python3-bpfcc is not installed"), ("BTF", "type information .* cannot be read")]
)
def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    monkeypatch.setattr(capability, name, Path("/nowhere"))
    with pytest.raises(Unavailable, match=reason) as caught:
        Latency().open(Host("node", ManualClock()))
    assert caught.value.remedy


def test_hooks_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "SENT", "no_such_hook")
    monkeypatch.setattr(capability, "KPROBES", Path("/nowhere"))
    with pytest.raises(
        Unavailable, match="no hook sees an answer go: neither the tracepoint no_such_hook, nor functions"
    ):
        Latency().open(Host("node", ManualClock()))


def test_a_process_without_the_rights_is_told_which() -> None:
    code = "from trimtab.agent.bpf import capability as c; print([(x.name, x.remedy) for x in c.what_is_missing() if not x.ok])"
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run([*without, sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([("eBPF rights", capability._RIGHTS_REMEDY)])


def test_nothing_stays_behind(server: Server) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    seen = Watch(instance(server.port))
    seen.collector.close()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_the_agent_stays_free_of_llvm() -> None:
    Watch().collector.close()
    # numba has one of its own, where tests of the collector run in this process too.
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "llvmlite" not in line]
    assert not any("llvm" in line.lower() or "libbpf" in line for line in mapped)
    assert load_child.HERE.joinpath("headers").is_dir()
