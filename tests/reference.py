"""Writes the reference pages of docs/ from the code: `make docs`. A test fails when a page is not what this would write."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from trimtab import Exit
from trimtab.__main__ import cli
from trimtab.agent.registry import Signal, discover
from trimtab.agent.settings import Section
from trimtab.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
MADE = "<!-- Made by `make docs` from the code. -->\n"
EXIT_MEANINGS = {
    Exit.OK: "done",
    Exit.NO: "the question was answered, and the answer is no: nothing found, a check failed",
    Exit.USAGE: "the command line is wrong",
    Exit.SETTINGS: "the settings file is wrong, or something it names is missing",
    Exit.UNREACHABLE: "the collector does not answer",
    Exit.LISTEN: "a port is taken, or an address is not of this host",
    Exit.STATE: "the state directory, a file in it, or a file to be written cannot be used",
    Exit.INTERNAL: "an error of trimtab's own; TRIMTAB_TRACEBACK=1 shows where",
    Exit.INTERRUPTED: "stopped by Ctrl-C",
}


def commands() -> str:
    """docs/commands.md"""
    out = [MADE, "# Commands\n"]
    for path, command in _walk(cli, "trimtab"):
        context = click.Context(command, info_name=path, terminal_width=100, max_content_width=100)
        out.append(f"## `{path}`\n\n```\n{command.get_help(context)}\n```\n")
    out.append("## Exit codes\n\n| code | meaning |\n| --- | --- |")
    out += [f"| {int(code)} | {EXIT_MEANINGS[code]} |" for code in Exit]
    return "\n".join(out) + "\n"


def _walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _walk(child, f"{path} {name}")


def settings() -> str:
    """docs/settings.md"""
    out = [MADE, "# Settings\n"]
    out.append(
        "One TOML file, `/etc/trimtab/trimtab.toml` or `--config FILE`. Every key has a default; an unknown key is an error.\n"
    )
    for name, section in _sections(Settings, ""):
        out.append(f"## `[{name}]`\n\n{inspect.getdoc(section)}\n\n| key | default | meaning |\n| --- | --- | --- |")
        meanings = _meanings(section)
        fields = [f for f in msgspec.structs.fields(section) if not isinstance(f.default, Section)]
        out += [f"| `{f.name}` | `{_toml(f)}` | {meanings[f.name]} |" for f in fields]
        out.append("")
    return "\n".join(out)


def _sections(section: type[Any], prefix: str) -> Iterator[tuple[str, type[Any]]]:
    for field in msgspec.structs.fields(section):
        if isinstance(field.default, Section):
            yield f"{prefix}{field.name}", type(field.default)
            yield from _sections(type(field.default), f"{prefix}{field.name}.")


def _meanings(section: type[Any]) -> dict[str, str]:
    """The string below each field. A field without one is an error."""
    module = ast.parse(inspect.getsource(importlib.import_module(section.__module__)))
    body = next(n for n in module.body if isinstance(n, ast.ClassDef) and n.name == section.__name__).body
    out = {}
    for field, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            out[field.target.id] = " ".join(str(below.value.value).split())
    return out


def _toml(field: msgspec.structs.FieldInfo) -> str:
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()  # type: ignore[operator, misc]
    return msgspec.json.encode(default).decode()


def signals() -> str:
    """docs/signals.md"""
    out = [MADE, "# Signals\n"]
    out.append(
        "Every signal of every collector. What cannot be known on a host is unknown there (NULL in the store), never 0."
    )
    out.append('A collector is switched off by its name: `agent.disable = ["gpu"]`.\n')
    for collector in discover():
        module = inspect.getdoc(inspect.getmodule(collector)) or ""
        out.append(f"## {collector.name}\n\n{module}\n\n| of | signal | unit | meaning |\n| --- | --- | --- | --- |")
        out += [_row(signal) for signal in collector.signals]
        out.append("")
    return "\n".join(out)


def _row(signal: Signal) -> str:
    form = " (distribution)" if signal.sketch else ""
    return f"| {signal.kind} | `{signal.name}` | {signal.unit} | {signal.help}{form} |"


PAGES = {"commands.md": commands, "settings.md": settings, "signals.md": signals}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page())
