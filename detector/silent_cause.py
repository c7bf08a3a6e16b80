"""What is told of a silence: of one node, or of all of them at once."""

from __future__ import annotations

import math

from trimtab.agent.wire import query_pb2 as pb

NODE_SILENT, NO_INPUT = "node silent", "no input"
INPUT = "the collector's input"
"""The subject when all are silent. No node can have such a name."""
SYMPTOM = "nothing is heard of the node; how its instances do is unknown"
SYMPTOM_OF_ALL = "nothing is heard of any node; how the fleet does is unknown"
_CONFIDENCE = 0.95
_MECHANISMS = {NODE_SILENT, NO_INPUT}
_REMEDY = "See whether the host is up and reaches the collector; then on it: systemctl status trimtab-agent, journalctl -u trimtab-agent."
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
    who = "one other node goes on" if others == 1 else f"{others} other nodes go on"
    summary = f"the agent of {node} sends nothing any more, while {who}"
    return _cause(node, NODE_SILENT, summary, _REMEDY, last_unix_ns)


def of_all(nodes: int, last_unix_ns: int) -> pb.Cause:
    """`nodes`: how many there were."""
    whose = "the only node" if nodes == 1 else f"any of {nodes} nodes"
    summary = f"no window of {whose} was stored since: it is rather what they share than each of them"
    return _cause(INPUT, NO_INPUT, summary, _REMEDY_OF_ALL, last_unix_ns)


def _cause(subject: str, mechanism: str, summary: str, remedy: str, last_unix_ns: int) -> pb.Cause:
    evidence = pb.Evidence(
        subject=subject,
        event="the last window ended",
        before=math.nan,
        after=math.nan,
        peers=math.nan,
        deviation=math.nan,
        changed_unix_ns=last_unix_ns,
    )
    return pb.Cause(
        subject=subject,
        mechanism=mechanism,
        confidence=_CONFIDENCE,
        summary=summary,
        remedy=remedy,
        evidence=[evidence],
    )
