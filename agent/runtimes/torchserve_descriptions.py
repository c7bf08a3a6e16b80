"""Asks TorchServe's management API to describe its models and workers: beside the windows, where that takes long.

TorchServe runs nvidia-smi once for each GPU worker whenever it describes a model. So where there are such workers a description
is only asked for every 30 s, and when something changes: whether the workers live is seen in /proc.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from urllib.parse import quote

import msgspec

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes.base import NoAnswer
from trimtab.agent.runtimes.endpoint import Endpoint, Refused
from trimtab.agent.runtimes.process import host_pid
from trimtab.agent.runtimes.torchserve_models import Description, ModelPage, ModelVersion

MODELS_MAX = 64
TOKEN_REFUSED = {400, 401, 403}
"""TorchServe itself says 400; a proxy before it one of the others."""
WAIT_SECONDS_MAX = 0.3
"""How long a window waits for a description; one that takes longer is taken up by a later window."""
ANSWER_SECONDS_MAX = 10.0
"""For a whole description."""
COSTLY_SECONDS = 30.0
LIST_SECONDS = 5.0
"""How old the list of models may be; one that is gone is noticed at once."""
CHANGED_SECONDS = 2.0
"""How soon after the last a costly description is asked for when a worker is down."""


class Descriptions:
    """The newest description of one instance."""

    def __init__(self, instance: Instance, role: str, executor: Executor, tell: Callable[[str], None]) -> None:
        self._instance = instance
        self._endpoint = Endpoint(instance, role)
        self._executor = executor
        self._tell = tell
        self._asked: Future[Description | None] | None = None
        self._newest: Description | None = None
        self._listed: tuple[list[str], float] = ([], -math.inf)
        self._refused = False

    @property
    def pending(self) -> bool:
        """Whether the last question is still without an answer."""
        return self._asked is not None

    def newest(self) -> Description | None:
        """None where there is none yet, or it is refused. Raises NoAnswer."""
        before = self._newest
        if self._asked is None and self._due(time.monotonic()):
            if before is not None and not before.costly:
                self._newest = None  # unless this succeeds
                self._newest = self._describe(before, WAIT_SECONDS_MAX)
            else:
                self._asked = self._executor.submit(self._describe, before, ANSWER_SECONDS_MAX)
        if self._asked is not None and wait([self._asked], timeout=WAIT_SECONDS_MAX).done:
            asked, self._asked = self._asked, None
            self._newest = None
            self._newest = asked.result()
        return self._newest

    def close(self) -> None:
        """Its connection is closed when the last question has been answered."""
        if self._asked is None:
            self._endpoint.close()
        else:
            self._asked.add_done_callback(lambda _: self._endpoint.close())

    def _due(self, now: float) -> bool:
        if self._newest is None or not self._newest.costly:
            # Each refusal counts among the instance's own errors.
            return not self._refused
        age = now - self._newest.at
        return age >= COSTLY_SECONDS or (age >= CHANGED_SECONDS and not self._newest.well)

    def _describe(self, before: Description | None, seconds: float) -> Description | None:
        at = time.monotonic()

        def get(path: str) -> bytes:
            return self._endpoint.get(path, at + seconds - time.monotonic())

        try:
            names = self._names(get, at)
            if names is None:
                return None
            try:
                answers = [get(f"/models/{quote(name, safe='')}/all") for name in names]
            except Refused:  # one was unregistered meanwhile
                self._listed = ([], -math.inf)
                return None
            versions = tuple(v for answer in answers for v in msgspec.json.decode(answer, type=list[ModelVersion]))
        except (ValueError, RecursionError) as error:
            raise NoAnswer(f"not an answer of TorchServe: {error}") from error
        known = before.pids if before else {}
        named = {worker.pid for version in versions for worker in version.workers if worker.pid > 0}
        pids = {pid: known[pid] if pid in known else host_pid(self._instance.pid, pid) for pid in named}
        return Description(versions, at, pids)

    def _names(self, get: Callable[[str], bytes], now: float) -> list[str] | None:
        """Of all models; None where the API refuses our token, or there are too many."""
        names, listed_at = self._listed
        if now - listed_at < LIST_SECONDS:
            return names
        try:
            page = msgspec.json.decode(get(f"/models?limit={MODELS_MAX}"), type=ModelPage)
        except Refused as refused:
            if refused.status not in TOKEN_REFUSED:
                raise
            self._refused = True
            self._tell(f"{self._instance.id}: its API refuses: {refused}; let the agent read a valid key_file.json")
            return None
        if page.next_page_token:
            self._tell(f"{self._instance.id}: more than {MODELS_MAX} models; its workers and queue are unknown")
            return None
        self._listed = ([model.model_name for model in page.models], now)
        return self._listed[0]
