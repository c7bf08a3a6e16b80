"""The short-lived child of the loader: compiles and loads a program, hands over its descriptors, and is gone.

    python -I -m trimtab.agent.bpf.load_child SOCKET SOURCE

SOURCE is a `Source` as JSON. This is the one file that imports bcc, which brings 110 MB of LLVM that the agent must not keep. The
descriptors go over the Unix socket with their names as JSON: "map NAME", "program NAME" of what runs at a raw tracepoint,
"typed NAME" of a program that knows by itself where it hangs. The agent attaches them. On failure the reason is on stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from trimtab.agent.bpf import syscall
from trimtab.agent.bpf.btf import KernelTypes
from trimtab.agent.bpf.capability import BCC
from trimtab.agent.bpf.source import Source

HERE = Path(__file__).resolve().parent
_NO_ENUMERATOR = 255


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


def layout(source: Source, kernel: KernelTypes) -> dict[str, int]:
    """What the program must know of the running kernel, by macro; offsets are in bytes. Raises LookupError."""
    offsets = {}
    for macro, members in (source.offsets | source.offsets_if_any).items():
        try:
            offsets[macro] = sum(kernel.offset(*member.split(".", 1)) for member in members)
        except LookupError:
            if macro in source.offsets:
                raise
    values = {macro: kernel.enumerator(*name.split(".")) for macro, name in source.enumerators.items()}
    return offsets | {macro: _NO_ENUMERATOR if value is None else value for macro, value in values.items()}


def text_of(file: str) -> str:
    """The text of a program with its parts in the place of their `#include "PART.c"`: bcc sees maps only in the text itself."""
    return re.sub(
        r'^#include "(\w+\.c)"$', lambda part: text_of(part[1]), (HERE / file).read_text(), flags=re.MULTILINE
    )


def main(channel: str, request: str) -> None:
    """Hand over what the source makes. Raises whatever goes wrong."""
    source = msgspec.json.decode(request, type=Source)
    kernel = KernelTypes()
    macros = {**{macro: str(value) for macro, value in layout(source, kernel).items()}, **source.flags}
    bcc = import_bcc()
    program = bcc.BPF(text=text_of(source.file), cflags=[f"-I{HERE}", *(f"-D{k}={v}" for k, v in macros.items())])
    descriptors = {f"map {name}": program[name].map_fd for name in source.maps}
    for name in source.raw_tracepoints:
        descriptors[f"program {name}"] = program.load_func(f"hook__{name}", bcc.BPF.RAW_TRACEPOINT).fd
    typed = [(name, syscall.AT_TRACEPOINT, kernel.tracepoint(name)) for name in source.typed_tracepoints]
    typed += [(name, syscall.AT_FUNCTION, kernel.function(name)) for name in source.functions]
    for name, place, type_id in typed:
        # bcc compiles such a program, but cannot load it.
        code = program.dump_func(f"hook__{name}".encode())
        descriptors[f"typed {name}"] = syscall.load_typed_program(name, code, place, type_id)
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
