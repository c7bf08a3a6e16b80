"""GPUs that share a link: what hits several of them below one PCIe root port is rather the port, the riser or the switch."""

from __future__ import annotations

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.history import GPU
from trimtab.rootcause.case import Case
from trimtab.rootcause.signatures import Sign

_TOLD_MAX = 2


def with_siblings(case: Case, sign: Sign, cause: pb.Cause) -> None:
    """Let the cause tell on how many of the GPUs beside its subject the sign moved as well."""
    root = case.history.labels(cause.subject).get("pcie_root", "")
    gpus = case.history.all(GPU, case.node) if root else ()
    beside = [gpu for gpu, labels in gpus if gpu != cause.subject and labels.get("pcie_root") == root]
    known = [(movements, movements.of(sign.signal)) for gpu in beside if (movements := case.movements(gpu)) is not None]
    alike = [found for found in known if sign.moved(found[1])]
    if known:
        cause.summary += (
            f"; the same on {len(alike)} of {len(known)} other{'s' * (len(known) > 1)} below root port {root}"
        )
    cause.evidence.extend(case.evidence(sign, found, peers=()) for found in alike[:_TOLD_MAX])
