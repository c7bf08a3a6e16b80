"""One fault is one incident: who stands at another end of a link that has one, with the same cause, is told by that one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.history import GPU, History
from trimtab.detector.incident import Open


class Mates:
    """Remembers whose fault is told by the incident of another instance of the node."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        """By instance, the subject of that incident."""

    @property
    def held(self) -> set[str]:
        """Instances that are ill, and have no incident of their own for that."""
        return set(self._told)

    def holds(
        self, history: History, instance: str, incidents: Mapping[str, Open], explain: Callable[[], Sequence[pb.Cause]]
    ) -> bool:
        """Whether this ill instance has its fault in common with one that has an incident. `explain` is asked where that may be."""
        if self._told.get(instance) in incidents:
            return True
        near = [subject for subject in incidents if subject.startswith(f"{instance.partition('/')[0]}/")]
        cause = explain()[0] if near else pb.Cause()
        struck = _cards(cause)
        if len(struck) < 2:  # nothing that GPUs share
            return False
        for subject in near:
            told = incidents[subject].incident.causes[:1]
            known = _stands_on(history, subject).union(*map(_cards, told))
            if known & struck and all(one.mechanism in (cause.mechanism, "unknown") for one in told):
                self._told[instance] = subject
                return True
        return False

    def forget(self, incidents: Mapping[str, Open], is_ill: Callable[[str], bool]) -> None:
        """Those that are well again, or whose incident is over."""
        self._told = {i: subject for i, subject in self._told.items() if subject in incidents and is_ill(i)}

    def told(self, incidents: Mapping[str, Open]) -> dict[str, Open]:
        """The incidents by subject, and by the instances that are told by them."""
        return {i: incidents[s] for i, s in self._told.items() if s in incidents} | dict(incidents)


def _cards(cause: pb.Cause) -> set[str]:
    return {one.subject for one in cause.evidence if "/gpu/" in one.subject}


def _stands_on(history: History, instance: str) -> set[str]:
    gpus = history.all(GPU, instance.partition("/")[0])
    return {gpu for gpu, labels in gpus if instance in labels.get("instances", "").split(",")}
