"""latency.c as the loader must know it: its maps, its hooks, and what it reads of the running kernel."""

from __future__ import annotations

from trimtab.agent.bpf.capability import SENT, TRACEPOINTS, SentHook, sent_hook
from trimtab.agent.bpf.remotes import ENTRIES_MAX
from trimtab.agent.bpf.source import Source

INSTANCES_MAX = 128
"""How many instances are watched at once on one host."""

_OFFSETS = {
    "SOCK_PORT": ("sock.__sk_common.skc_num",),
    "SOCK_NET": ("sock.__sk_common.skc_net.net",),
    "SOCK_FAMILY": ("sock.__sk_common.skc_family",),
    "SOCK_ADDRESS4": ("sock.__sk_common.skc_daddr",),
    "SOCK_ADDRESS6": ("sock.__sk_common.skc_v6_daddr",),
    "NET_INODE": ("net.ns.inum",),
    "TCP_WRITE_SEQ": ("tcp_sock.write_seq",),
    "TCP_RCV_NXT": ("tcp_sock.rcv_nxt",),
    "TCP_COPIED_SEQ": ("tcp_sock.copied_seq",),
    "SKB_END_SEQ": ("sk_buff.cb", "tcp_skb_cb.end_seq"),
    "SKB_FLAGS": ("sk_buff.cb", "tcp_skb_cb.tcp_flags"),
    "MSG_ITER_TYPE": ("msghdr.msg_iter.iter_type",),
    "MSG_ITER_OFFSET": ("msghdr.msg_iter.iov_offset",),
    "MSG_ITER_COUNT": ("msghdr.msg_iter.count",),
    # One place for what it is made of, whatever that is; this name of it is in every kernel.
    "MSG_ITER_START": ("msghdr.msg_iter.kvec",),
    "MSG_ITER_PIECES": ("msghdr.msg_iter.nr_segs",),
}
_ENUMERATORS = {"ITER_IOVEC": "iter_type.ITER_IOVEC", "ITER_UBUF": "iter_type.ITER_UBUF"}


def source() -> Source:
    """latency.c, with the hook that this host has for the answer. Raises OSError without the rights to look."""
    is_tracepoint = sent_hook() == SentHook.TRACEPOINT
    return Source(
        file="latency.c",
        maps=("watched", "remotes", "instances", "controls", "ports"),
        typed_tracepoints=(*TRACEPOINTS, SENT) if is_tracepoint else TRACEPOINTS,
        functions=() if is_tracepoint else (SENT,),
        offsets=_OFFSETS,
        offsets_if_any={"TCP_IS_MULTIPATH": ("tcp_sock.is_mptcp",)},
        enumerators=_ENUMERATORS,
        flags={"INSTANCES_MAX": str(INSTANCES_MAX), "REMOTES_MAX": str(ENTRIES_MAX)}
        # Whose kernels keep a pointer there, where the newer ones have an address in a struct.
        | ({} if is_tracepoint else {"ITER_START_IS_TYPED": "1"}),
    )
