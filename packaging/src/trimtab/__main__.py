"""The `trimtab` command: the one place that knows every service, and puts them together."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import click

from trimtab import Exit, TrimtabError, __version__


class _Lazy(click.Group):
    """Imports a command when it is called: a GPU host has no DuckDB, and `--help` should not wait for numba."""

    modules: ClassVar[dict[str, str]] = {
        "up": "trimtab.up:up",
        "agent": "trimtab.services:agent",
        "collector": "trimtab.services:collector",
        "actuator": "trimtab.services:actuator",
        "incidents": "trimtab.detector.cli:incidents",
        "nodes": "trimtab.collector.nodes_cli:nodes",
        "instances": "trimtab.collector.instances_cli:instances",
        "series": "trimtab.collector.series_cli:series",
        "query": "trimtab.collector.query_cli:query",
        "latency": "trimtab.collector.latency_cli:latency",
        "talkers": "trimtab.collector.talkers_cli:talkers",
        "lookback": "trimtab.detector.lookback_cli:lookback",
        "replay": "trimtab.actuator.replay.cli:replay",
        "weights": "trimtab.actuator.cli:weights",
        "tune": "trimtab.actuator.tune.cli:tune",
        "backup": "trimtab.collector.backup_cli:backup",
        "doctor": "trimtab.doctor:doctor",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        module, _, name = self.modules[cmd_name].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("trimtab"):
                raise
            remedy = (
                "pip install 'trimtab[train]'"
                if cmd_name == "tune"
                else "install trimtab-collector, which has every other command, or pip install 'trimtab[agent,collector,actuator]'"
            )
            message = f"`trimtab {cmd_name}` needs {error.name}: {remedy}"
            raise TrimtabError(message, Exit.SETTINGS) from error
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), envvar="TRIMTAB_CONFIG", help="Settings file."
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.version_option(__version__, prog_name="trimtab")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, verbose: bool) -> None:
    """Find the degraded serving instance, say why, and move traffic away from it."""
    from trimtab.agent.settings import read  # noqa: PLC0415 - `--help` and `--version` need neither
    from trimtab.logs import set_up  # noqa: PLC0415
    from trimtab.settings import Settings  # noqa: PLC0415

    level = logging.DEBUG if verbose else logging.INFO
    set_up(level, ctx.invoked_subcommand or "", os.environ)
    default = Path("/etc/trimtab/trimtab.toml")
    ctx.obj = read(config or (default if default.exists() else None), Settings)


def main(arguments: list[str] | None = None) -> Any:
    """Run a command and leave with its exit code. No traceback reaches a user unless TRIMTAB_TRACEBACK is set."""
    code: int = Exit.OK
    try:
        result = cli.main(arguments, standalone_mode=False)
        code = result if isinstance(result, int) else Exit.OK
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = Exit.USAGE
    except TrimtabError as error:
        click.echo(f"trimtab: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has seen enough; nothing may be written to the closed pipe on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("TRIMTAB_TRACEBACK"):
            raise
        click.echo(
            f"trimtab: internal error: {type(error).__name__}: {error}; set TRIMTAB_TRACEBACK=1 to see where", err=True
        )
        code = Exit.INTERNAL
    sys.exit(code)


if __name__ == "__main__":
    main()
