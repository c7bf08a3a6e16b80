"""GPUs that share a link: what hits several of them is rather the link, or the switch behind it, than each of them."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.history import GPU
from trimtab.rootcause.case import Case
from trimtab.rootcause.signatures import Link, Sign

_TOLD_MAX = 7
"""The others of a board of eight."""
_SWITCHES_MAX = 2
Labels = Mapping[str, str]


def with_siblings(case: Case, sign: Sign, link: Link, cause: pb.Cause) -> None:
    """Let the cause tell on how many of the GPUs beside its subject the sign moved as well."""
    mine, shared = case.history.labels(cause.subject), _BY[link]
    gpus = case.history.all(GPU, case.node)
    beside = {gpu: where for gpu, labels in gpus if gpu != cause.subject and (where := shared(mine, labels))}
    known = [(movements, movements.of(sign.signal)) for gpu in beside if (movements := case.movements(gpu)) is not None]
    alike = [found for found in known if sign.moved(found[1])]
    if known:
        where = beside[(alike or known)[0][0].subject]
        cause.summary += f"; the same on {len(alike)} of {len(known)} other{'s' * (len(known) > 1)} {where}"
    cause.evidence.extend(case.evidence(sign, found, peers=()) for found in alike[:_TOLD_MAX])


def _below_root(mine: Labels, theirs: Labels) -> str:
    root = mine.get("pcie_root", "")
    return f"below root port {root}" if root and root == theirs.get("pcie_root") else ""


def _by_nvlink(mine: Labels, theirs: Labels) -> str:
    """Either end knows of the link between them: one of a link that was down all the time does not."""
    if theirs.get("pci", "") in _listed(mine, "nvlink_gpus") or mine.get("pci", "") in _listed(theirs, "nvlink_gpus"):
        return "joined to it by NVLink"
    switches = sorted(_listed(mine, "nvlink_switches") & _listed(theirs, "nvlink_switches"))
    more = f" and {len(switches) - _SWITCHES_MAX} more" if len(switches) > _SWITCHES_MAX else ""
    return f"on NVSwitch {', '.join(switches[:_SWITCHES_MAX])}{more}" if switches else ""


def _listed(labels: Labels, name: str) -> set[str]:
    return {one for one in labels.get(name, "").split(",") if one}


_BY = {"PCIe": _below_root, "NVLink": _by_nvlink}
"""Where another GPU shares a link with this one, by the labels of both; empty where it does not."""
