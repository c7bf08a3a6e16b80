"""The model archive (.mar) of the fleet: built once, kept in .cache/ under the hash of all that it is made from."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from trimtab import TrimtabError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache"
HANDLER, CONFIG = HERE / "bert_handler.py", HERE / "model-config.yaml"
SIM_HANDLER = HERE / "sim_handler.py"
MODEL = "bert"
SIM, SIM_BATCHED = "sim", "sim-batched"
_SIM_CONFIG = """\
minWorkers: 1
maxWorkers: 1
batchSize: {batch}
maxBatchDelay: {delay_ms}
responseTimeout: 60
handler: {{mean_seconds: {mean_seconds}}}
"""
SIM_MEAN_SECONDS = 0.02
SIM_BATCHED_MEAN_SECONDS = 0.05
SIM_BATCH = 8
SLOW = "bert-slow"
SLOW_VERSION = "2.0"
SLOW_SECONDS = 0.06


def model_store() -> Path:
    """The directory that holds `bert.mar`, its next, slower version `bert-slow.mar`, and `sim.mar` and `sim-batched.mar`, which only wait.

    Raises TrimtabError when it cannot be built.
    """
    made_from = [p.read_bytes() for p in (Path(__file__), HANDLER, SIM_HANDLER, CONFIG)]
    made_from += [metadata.version(name).encode() for name in ("torch", "transformers", "torch-model-archiver")]
    store = CACHE / f"model-{hashlib.sha256(b'|'.join(made_from)).hexdigest()[:16]}"
    if not (store / f"{MODEL}.mar").exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            _run([sys.executable, __file__, scratch])
            slow = Path(scratch, "model-config.yaml")
            slow.write_text(f"{CONFIG.read_text()}  delay_seconds: {SLOW_SECONDS}\n")
            weights = ("--serialized-file", f"{scratch}/bert.pt")
            _pack(scratch, SLOW, SLOW_VERSION, slow, HANDLER, *weights)
            _pack(scratch, MODEL, "1.0", CONFIG, HANDLER, *weights)
            for name, batch, delay_ms, mean_seconds in (
                (SIM, 1, 1, SIM_MEAN_SECONDS),
                (SIM_BATCHED, SIM_BATCH, 10, SIM_BATCHED_MEAN_SECONDS),
            ):
                waits = Path(scratch, f"{name}.yaml")
                waits.write_text(_SIM_CONFIG.format(batch=batch, delay_ms=delay_ms, mean_seconds=mean_seconds))
                _pack(scratch, name, "1.0", waits, SIM_HANDLER)
            store.mkdir(exist_ok=True)
            # Each at once, and the one that is looked for last: whoever sees the archive sees all of it.
            for name in (SLOW, SIM, SIM_BATCHED, MODEL):
                Path(scratch, f"{name}.mar").rename(store / f"{name}.mar")
    return store


def _pack(scratch: str, name: str, version: str, config: Path, handler: Path, *weights: str) -> None:
    what = ["--model-name", name, "--version", version, "--handler", str(handler), "--config-file", str(config)]
    _run([sys.executable, "-m", "model_archiver.model_packaging", *what, *weights, "--export-path", scratch])


def _run(command: list[str]) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise TrimtabError(f"cannot build the model archive: {' '.join(last)}; remedy: pip install -e '.[fleet]'")


def _write_weights(directory: Path) -> None:
    """Random weights, always the same: the fleet must agree on every answer, not be right."""
    import torch
    import yaml
    from transformers import BertConfig, BertForSequenceClassification

    settings = yaml.safe_load(CONFIG.read_text())["handler"]
    torch.manual_seed(settings["seed"])
    model = BertForSequenceClassification(BertConfig(**settings["bert"]))
    torch.save(model.state_dict(), directory / "bert.pt")


if __name__ == "__main__":
    _write_weights(Path(sys.argv[1]))
