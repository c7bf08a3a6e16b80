"""Which nodes a person on call should look at, worst first, and how the fleet is as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.timeline import ERROR_SECONDS_MAX

SILENT_SECONDS = 10.0
ORDER = ("incident", "silent", "gone", "clock", "refused", "lost")
"""Kinds of trouble, the worst first."""


def state(node: pb.Node, now_unix_ns: int) -> str:
    """ "connected", "silent" (connected, and no window for ten seconds) or "gone"."""
    if not node.connected:
        return "gone"
    fresh = now_unix_ns - node.last_window_unix_ns < SILENT_SECONDS * 1e9
    return "connected" if node.last_window_unix_ns and fresh else "silent"


def incidents(node: pb.Node) -> list[str]:
    """The open incidents that name its instances, without repeats."""
    return list(dict.fromkeys(instance.incident for instance in node.instances if instance.incident))


def troubles(node: pb.Node, now_unix_ns: int) -> list[str]:
    """What is wrong with it, in the order of `ORDER`."""
    found = {
        "incident": bool(incidents(node)),
        state(node, now_unix_ns): True,
        "clock": abs(node.clock_error_seconds) > ERROR_SECONDS_MAX,
        "refused": node.refused > 0,
        "lost": node.lost > 0,
    }
    return [name for name in ORDER if found.get(name)]


def worst_first(reply: pb.NodesReply) -> list[pb.Node]:
    """Those in trouble, by the worst of it; of equal trouble the one that changed last, or has more of it. Then the others by name."""

    def rank(node: pb.Node) -> tuple[int, int, str]:
        found = troubles(node, reply.now_unix_ns)
        if not found:
            return len(ORDER), 0, node.name
        more = {"refused": node.refused, "lost": node.lost}.get(found[0], node.last_window_unix_ns)
        return ORDER.index(found[0]), -more, node.name

    return sorted(reply.nodes, key=rank)


def summary(reply: pb.NodesReply) -> str:
    """One line: how many nodes are how, and what they run."""
    states = Counter(state(node, reply.now_unix_ns) for node in reply.nodes)
    found = Counter(name for node in reply.nodes for name in troubles(node, reply.now_unix_ns))
    instances = sum(len(node.instances) for node in reply.nodes)
    named = len({incident for node in reply.nodes for incident in incidents(node)})
    parts = [counted(len(reply.nodes), "node") + ": " + ", ".join(f"{n:,} {name}" for name, n in _in_order(states))]
    parts.append(counted(instances, "instance") + (f", {counted(named, 'open incident')}" if named else ""))
    if found["clock"]:
        parts.append(counted(found["clock"], "wrong clock"))
    for name in ("refused", "lost"):
        if found[name]:
            windows = sum(getattr(node, name) for node in reply.nodes)
            parts.append(f"{counted(windows, 'window')} {name} by {counted(found[name], 'node')}")
    return "; ".join(parts)


def _in_order(states: Counter[str]) -> Sequence[tuple[str, int]]:
    return [(name, states[name]) for name in ("connected", "silent", "gone") if states[name]]


def counted(number: int, of: str) -> str:
    """ "1 node", "2 nodes"."""
    return f"{number:,} {of}" + ("" if number == 1 else "s")
