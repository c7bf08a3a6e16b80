"""What the loader must know of one C file of this folder. It is how the agent tells its short-lived child what to make."""

from __future__ import annotations

import msgspec


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A program: its text, the maps that the agent reads, and the hooks that it hangs on."""

    file: str
    """Its name beside this file."""
    maps: tuple[str, ...]
    """Names of the maps whose descriptors the agent wants."""
    raw_tracepoints: tuple[str, ...]
    """Each is attached to the function `HOOK(name)` of the text."""
    kprobes: tuple[str, ...] = ()
    """Kernel functions; each is attached to `kprobe__NAME` of the text."""
    offsets: dict[str, tuple[str, ...]] = {}
    """By macro, the sum of where the running kernel keeps these members: ("sk_buff.cb", "tcp_skb_cb.end_seq")."""
    flags: dict[str, str] = {}
    """By macro, what else it is compiled with."""
