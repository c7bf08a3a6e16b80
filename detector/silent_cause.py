"""What is told of a silence: of one node, of those of a rack or a switch, or of all of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

from trimtab.agent.wire import query_pb2 as pb

NODE_SILENT, PLACE_SILENT, NO_INPUT = "node silent", "rack silent", "no input"
INPUT = "the collector's input"
"""The subject when all are silent. No node can have such a name."""
SYMPTOM = "nothing is heard of the node; how its instances do is unknown"
SYMPTOM_OF_PLACE = "nothing is heard of the nodes that stand there; how their instances do is unknown"
SYMPTOM_OF_ALL = "nothing is heard of any node; how the fleet does is unknown"
_CONFIDENCE = 0.95
_MECHANISMS = {NODE_SILENT, PLACE_SILENT, NO_INPUT}
_NODES_SHOWN_MAX = 6
_REMEDY = "See whether the host is up and reaches the collector; then on it: systemctl status trimtab-agent, journalctl -u trimtab-agent."
_REMEDY_OF_PLACE = (
    "See whether it has power, and whether its switch and uplink work; then, on one of its nodes, its agent's log."
)
_REMEDY_OF_ALL = (
    "See whether the agents reach the collector (address, firewall, certificates: their logs say why), and whether it can write: its log, "
    "and /-/ready on collector.metrics_listen."
)


def is_silence(incident: pb.Incident) -> bool:
    """Whether its first cause is that nothing is heard."""
    return bool(kind(incident))


def kind(incident: pb.Incident) -> str:
    """The mechanism of a silence; empty for every other incident."""
    mechanism = incident.causes[0].mechanism if incident.causes else ""
    return mechanism if mechanism in _MECHANISMS else ""


def of_node(node: str, last_unix_ns: int, others: int) -> pb.Cause:
    """`others`: how many nodes go on."""
    summary = f"the agent of {node} sends nothing any more, while {_who(others)}"
    return _cause(node, NODE_SILENT, summary, _REMEDY, {node: last_unix_ns})


def of_place(place: str, last_unix_ns: Mapping[str, int], nodes: int, others: int) -> pb.Cause:
    """`last_unix_ns`: of the nodes there that fell silent, of `nodes` in all; `others`: how many go on, anywhere."""
    summary = f"{len(last_unix_ns)} of {nodes} nodes of {place} fell silent together, while {_who(others)}: it is rather what they share"
    return _cause(place, PLACE_SILENT, summary, _REMEDY_OF_PLACE, last_unix_ns)


def of_all(nodes: int, last_unix_ns: int) -> pb.Cause:
    """`nodes`: how many there were."""
    whose = "the only node" if nodes == 1 else f"any of {nodes} nodes"
    summary = f"no window of {whose} was stored since: it is rather what they share than each of them"
    return _cause(INPUT, NO_INPUT, summary, _REMEDY_OF_ALL, {INPUT: last_unix_ns})


def _who(others: int) -> str:
    return "one other node goes on" if others == 1 else f"{others} other nodes go on"


def _cause(subject: str, mechanism: str, summary: str, remedy: str, last_unix_ns: Mapping[str, int]) -> pb.Cause:
    first = sorted(last_unix_ns.items(), key=lambda last: last[1])
    return pb.Cause(
        subject=subject,
        mechanism=mechanism,
        confidence=_CONFIDENCE,
        summary=summary,
        remedy=remedy,
        evidence=[_ended(*last) for last in first[:_NODES_SHOWN_MAX]],
    )


def _ended(subject: str, last_unix_ns: int) -> pb.Evidence:
    return pb.Evidence(
        subject=subject,
        event="the last window ended",
        before=math.nan,
        after=math.nan,
        peers=math.nan,
        deviation=math.nan,
        changed_unix_ns=last_unix_ns,
    )
