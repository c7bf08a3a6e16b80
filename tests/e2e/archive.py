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
MODEL = "bert"
SLOW = "bert-slow"
SLOW_VERSION = "2.0"
SLOW_SECONDS = 0.06


def model_store() -> Path:
    """The directory that holds `bert.mar` and its next, slower version, `bert-slow.mar`.

    Raises TrimtabError when it cannot be built.
    """
    made_from = [p.read_bytes() for p in (Path(__file__), HANDLER, CONFIG)]
    made_from += [metadata.version(name).encode() for name in ("torch", "transformers", "torch-model-archiver")]
    store = CACHE / f"model-{hashlib.sha256(b'|'.join(made_from)).hexdigest()[:16]}"
    if not (store / f"{MODEL}.mar").exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            _run([sys.executable, __file__, scratch])
            slow = Path(scratch, "model-config.yaml")
            slow.write_text(f"{CONFIG.read_text()}  delay_seconds: {SLOW_SECONDS}\n")
            _pack(scratch, SLOW, SLOW_VERSION, slow)
            _pack(scratch, MODEL, "1.0", CONFIG)
            store.mkdir(exist_ok=True)
            # Each at once, and the one that is looked for last: whoever sees the archive sees all of it.
            for name in (SLOW, MODEL):
                Path(scratch, f"{name}.mar").rename(store / f"{name}.mar")
    return store


def _pack(scratch: str, name: str, version: str, config: Path) -> None:
    what = ["--model-name", name, "--version", version, "--handler", str(HANDLER), "--config-file", str(config)]
    weights = ["--serialized-file", f"{scratch}/bert.pt", "--export-path", scratch]
    _run([sys.executable, "-m", "model_archiver.model_packaging", *what, *weights])


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
