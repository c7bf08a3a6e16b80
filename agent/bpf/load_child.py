"""The short-lived child of the loader: compiles and loads a program, hands over its descriptors, and is gone.

    python -I -m trimtab.agent.bpf.load_child SOCKET SOURCE

SOURCE is a `Source` as JSON. This is the one file that imports bcc, which brings 110 MB of LLVM that the agent must not keep. The
descriptors go over the Unix socket with their names as JSON: "map NAME", "program NAME" of what runs at a hook, and
"event NAME" of a kprobe, which is attached; raw tracepoints the agent attaches. On failure the reason is on stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from trimtab.agent.bpf.btf import KernelTypes
from trimtab.agent.bpf.capability import BCC
from trimtab.agent.bpf.source import Source

HERE = Path(__file__).resolve().parent


def import_bcc() -> Any:
    """bcc from where the distribution has it, with this folder's headers in the place of the kernel's."""
    os.environ["BCC_KERNEL_SOURCE"] = str(HERE / "headers")
    spec = importlib.util.spec_from_file_location("bcc", BCC / "__init__.py", submodule_search_locations=[str(BCC)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{BCC} is no Python package")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    spec.loader.exec_module(module)
    return module


def layout(source: Source) -> dict[str, int]:
    """The offsets that the program is compiled with, in bytes. Raises OSError, LookupError."""
    kernel = KernelTypes()
    return {
        macro: sum(kernel.offset(*member.split(".", 1)) for member in members)
        for macro, members in source.offsets.items()
    }


def main(channel: str, request: str) -> None:
    """Hand over what the source makes. Raises whatever goes wrong."""
    source = msgspec.json.decode(request, type=Source)
    macros = {**{macro: str(offset) for macro, offset in layout(source).items()}, **source.flags}
    bcc = import_bcc()
    program = bcc.BPF(
        src_file=str(HERE / source.file), cflags=[f"-I{HERE}", *(f"-D{k}={v}" for k, v in macros.items())]
    )
    descriptors = {f"map {name}": program[name].map_fd for name in source.maps}
    for name in source.raw_tracepoints:
        descriptors[f"program {name}"] = program.load_func(f"hook__{name}", bcc.BPF.RAW_TRACEPOINT).fd
    for name in source.kprobes:
        # bcc has attached it already, because of the name of its function.
        descriptors[f"program {name}"] = program.load_func(f"kprobe__{name}", bcc.BPF.KPROBE).fd
        by_function = program.kprobe_fds[f"p_{name}".encode()]
        descriptors[f"event {name}"] = (
            next(iter(by_function.values())) if isinstance(by_function, dict) else by_function
        )
    with socket.socket(fileno=int(channel)) as parent:
        socket.send_fds(parent, [json.dumps(list(descriptors)).encode()], list(descriptors.values()))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001 - the parent reads the reason, whatever it is
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    # bcc would detach the program at a proper exit.
    os._exit(0)
