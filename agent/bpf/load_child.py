"""The short-lived child of the loader: compiles, loads and attaches a program, hands over its descriptors, and is gone.

    python -I -m trimtab.agent.bpf.load_child SOCKET SOURCE MAP,… FLAG…

It is the one file that imports bcc, which brings 110 MB of LLVM that the agent must not keep. The descriptors go over the Unix
socket with their names as JSON; while the agent holds them the kernel keeps the program attached. On failure the reason is on stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from trimtab.agent.bpf.btf import KernelTypes
from trimtab.agent.bpf.capability import BCC

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


def layout() -> dict[str, int]:
    """The offsets that latency.c is compiled with. Raises OSError, LookupError."""
    kernel = KernelTypes()
    control = kernel.offset("sk_buff", "cb")
    return {
        "SOCK_PORT": kernel.offset("sock", "__sk_common.skc_num"),
        "SOCK_NET": kernel.offset("sock", "__sk_common.skc_net.net"),
        "NET_INODE": kernel.offset("net", "ns.inum"),
        "TCP_WRITE_SEQ": kernel.offset("tcp_sock", "write_seq"),
        "TCP_RCV_NXT": kernel.offset("tcp_sock", "rcv_nxt"),
        "TCP_COPIED_SEQ": kernel.offset("tcp_sock", "copied_seq"),
        "SKB_END_SEQ": control + kernel.offset("tcp_skb_cb", "end_seq"),
        "SKB_FLAGS": control + kernel.offset("tcp_skb_cb", "tcp_flags"),
    }


def main(channel: str, source: str, maps: str, *flags: str) -> None:
    """Hand over what `source` makes when compiled with `flags`. Raises whatever goes wrong."""
    offsets = [f"-D{name}={offset}" for name, offset in layout().items()]
    program = import_bcc().BPF(src_file=source, cflags=[f"-I{HERE}", *offsets, *flags])
    descriptors = {name: program[name].map_fd for name in maps.split(",")}
    for events in (program.raw_tracepoint_fds, program.kprobe_fds):
        for name, event in events.items():
            # bcc keeps the descriptor of a kprobe by event and function.
            for function, fd in event.items() if isinstance(event, dict) else ((name, event),):
                descriptors[function.decode()] = fd
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
