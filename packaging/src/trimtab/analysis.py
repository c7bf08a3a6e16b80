"""`python -m trimtab.analysis SETTINGS LEVEL`: detector and root-cause analyzer, in the process that the collector starts for them."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import msgspec

from trimtab.settings import Settings

NICENESS = 10


def command(settings: Settings) -> list[str]:
    """How the collector starts it: with the settings that it was started with itself, whatever the file says by now."""
    own = msgspec.json.encode({"detector": settings.detector, "rootcause": settings.rootcause}).decode()
    return [sys.executable, "-m", __name__, own, str(logging.getLogger().getEffectiveLevel())]


def main(arguments: list[str]) -> None:
    """Serve the collector that is at standard input."""
    from trimtab.collector.analysis_process import collectors_line, serve  # noqa: PLC0415 - `command` needs none of it
    from trimtab.detector.watch import Watch  # noqa: PLC0415
    from trimtab.logs import set_up  # noqa: PLC0415
    from trimtab.rootcause.rank import Ranking  # noqa: PLC0415

    # Windows that wait to be stored come first; what the analysis cannot look at in time is left out, and counted.
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    line = collectors_line()
    settings = msgspec.json.decode(arguments[0], type=Settings)
    set_up(int(arguments[1]), "analysis", os.environ)
    serve(line, Watch(settings.detector, Ranking(), settings.rootcause.history_seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
