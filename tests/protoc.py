"""Generates the Python code of agent/wire/*.proto: `make proto`, or into another folder for the test that it is current."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "packaging" / "src"
PROTOS = ("telemetry", "query", "routing", "analysis", "xds")


def generate(out: Path) -> None:
    """Write the generated modules below `out`, as trimtab/agent/wire/…"""
    files = [f"trimtab/agent/wire/{name}.proto" for name in PROTOS]
    plugin = Path(sys.executable).with_name("protoc-gen-mypy")
    arguments = ["protoc", f"-I{SOURCE}", f"--plugin=protoc-gen-mypy={plugin}"]
    arguments += [f"--python_out={out}", f"--grpc_python_out={out}", f"--mypy_out=quiet:{out}"]
    if protoc.main([*arguments, *files]) != 0:
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(SOURCE)
