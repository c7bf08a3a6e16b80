"""The TorchServe handler of a model that computes on a device of its own: it waits as long as a GPU would take, and needs no CPU.

All chance comes with the request, so that it is the same for whoever answers it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler


class SimHandler(BaseHandler):
    """Body: JSON {"work": times the mean, "luck": in [0, 1)}. The rows of a batch are computed at once: it takes as long as its largest."""

    def initialize(self, context: Any) -> None:
        torch.set_num_threads(1)
        self.mean_seconds = float(context.model_yaml_config["handler"]["mean_seconds"])
        self.behaviour, self.read_ns = Path(os.environ["FLEET_BEHAVIOUR"]), -1
        self.slowdown, self.error_ratio = 1.0, 0.0
        self.context, self.manifest, self.device = context, context.manifest, torch.device("cpu")
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        self._look()
        bodies = [row.get("body") or row.get("data") for row in data]
        failing = [body["luck"] < self.error_ratio for body in bodies]
        works = [body["work"] for body, fails in zip(bodies, failing, strict=True) if not fails]
        if works:
            time.sleep(self.mean_seconds * self.slowdown * max(works))
        for index, fails in enumerate(failing):
            if fails:
                context.set_response_status(code=500, idx=index, phrase="told to fail")
        return [{"failed": fails} for fails in failing]

    def _look(self) -> None:
        """What it was told last; by default it is well."""
        written_ns = self.behaviour.stat().st_mtime_ns if self.behaviour.exists() else 0
        if written_ns != self.read_ns:
            told = json.loads(self.behaviour.read_text()) if written_ns else {}
            self.slowdown, self.error_ratio = told.get("slowdown", 1.0), told.get("error_ratio", 0.0)
            self.read_ns = written_ns
