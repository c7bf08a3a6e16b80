"""The TorchServe handler of the fleet's model: a small BERT classifier. Its archive carries this file alone."""

from __future__ import annotations

import mmap
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification
from ts.metrics.dimension import Dimension
from ts.torch_handler.base_handler import BaseHandler

_ROWS = 4
"""Of the features, that a request needs."""
_EMBEDDINGS = 512
"""Of the table, that a request needs, most on a page of its own."""


class BertHandler(BaseHandler):
    """Body: JSON {"ids": [int, ...]}. Answer: {"logits": [float, float]}; 400 for another body."""

    def initialize(self, context: Any) -> None:
        torch.set_num_threads(1)
        settings = context.model_yaml_config["handler"]
        self.tokens = int(settings["tokens"])
        self.version = str(context.manifest["model"]["modelVersion"])
        self.version_delay_seconds = float(settings.get("delay_seconds", 0))
        self.fail, self.delay, self.features, self.embeddings = (
            Path(os.environ[f"FLEET_{name}"]) for name in ("FAIL", "DELAY", "FEATURES", "EMBEDDINGS")
        )
        self.table: mmap.mmap | None = None
        self.context, self.manifest, self.device = context, context.manifest, torch.device("cpu")
        self.model = BertForSequenceClassification(BertConfig(**settings["bert"])).eval()
        state = torch.load(Path(context.system_properties["model_dir"]) / "bert.pt", weights_only=True)
        self.model.load_state_dict(state)
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        if self.fail.exists():
            return self._refuse(context, len(data), 500, "told to fail")
        if seconds := self.version_delay_seconds + (float(self.delay.read_text()) if self.delay.exists() else 0):
            time.sleep(seconds)
        if self.features.exists():
            _look_up(self.features)
        if self.embeddings.exists():
            self.table = self.table or _table(int(self.embeddings.read_text()))
            _touch(self.table)
        else:
            self.table = None
        body = data[0].get("body") or data[0].get("data")
        ids = body.get("ids") if isinstance(body, dict) else None
        if not (isinstance(ids, list) and ids and all(isinstance(i, int) for i in ids)):
            return self._refuse(context, len(data), 400, 'body must be {"ids": [int, ...]}')
        row = torch.zeros(1, self.tokens, dtype=torch.long)
        given = torch.tensor(ids[: self.tokens])
        row[0, : len(given)] = given
        with torch.inference_mode():
            logits = self.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
        score = float(torch.softmax(logits[0], dim=0)[1])
        dimensions = [Dimension("ModelVersion", self.version), Dimension("Bin", str(min(int(8 * score), 7)))]
        context.metrics.add_counter("trimtab_predictions_total", 1, dimensions=dimensions)
        return [{"logits": logits[0].tolist()}]

    @staticmethod
    def _refuse(context: Any, count: int, status: int, reason: str) -> list[dict[str, Any]]:
        for index in range(count):
            context.set_response_status(code=status, idx=index, phrase=reason)
        return [{"error": reason}] * count


def _look_up(features: Path) -> None:
    """Read some rows from the disk itself, as a feature store that is larger than memory would."""
    row = mmap.mmap(-1, mmap.PAGESIZE)
    file = os.open(features, os.O_RDONLY | os.O_DIRECT)
    try:
        rows = os.fstat(file).st_size // mmap.PAGESIZE
        for _ in range(_ROWS):
            os.preadv(file, [row], random.randrange(rows) * mmap.PAGESIZE)
    finally:
        os.close(file)


def _table(size: int) -> mmap.mmap:
    """Memory that is really there, as a table of embeddings would be."""
    table = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        table[page] = 1
    return table


def _touch(table: mmap.mmap) -> None:
    """Read as many embeddings as a request needs."""
    for _ in range(_EMBEDDINGS):
        table[random.randrange(len(table))]
