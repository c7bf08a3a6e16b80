"""Runs a benchmark as a command: an error is one line and an exit code."""

from __future__ import annotations

import sys

import click

from trimtab import Exit, TrimtabError


def run(command: click.Command, name: str) -> None:
    """Ends the process where it fails."""
    try:
        command(standalone_mode=False)
    except TrimtabError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.USAGE)
