"""What the loader must know of one C file of this folder. It is how the agent tells its short-lived child what to make."""

from __future__ import annotations

import msgspec


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A program: its text, the maps that the agent reads, and the hooks that it hangs on."""

    file: str
    """Its name beside this file."""
    maps: tuple[str, ...]
    """Names of the maps whose descriptors the agent wants."""
    raw_tracepoints: tuple[str, ...] = ()
    """Each is attached to the function `HOOK(name)` of the text."""
    typed_tracepoints: tuple[str, ...] = ()
    """The same, loaded so that the verifier knows the types of the arguments: their members are read without a call."""
    functions: tuple[str, ...] = ()
    """Kernel functions; `HOOK(name)` runs at the entry of each, typed. Needs a kernel that can be traced by function."""
    offsets: dict[str, tuple[str, ...]] = {}
    """By macro, the sum of where the running kernel keeps these members: ("sk_buff.cb", "tcp_skb_cb.end_seq")."""
    offsets_if_any: dict[str, tuple[str, ...]] = {}
    """The same; where the running kernel has no such member the macro is not defined."""
    enumerators: dict[str, str] = {}
    """By macro, "type.NAME" of an enumerator of the running kernel; 255 where it has none of this name."""
    flags: dict[str, str] = {}
    """By macro, what else it is compiled with."""
