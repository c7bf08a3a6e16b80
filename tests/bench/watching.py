"""The `trimtab` command, which knows one runtime more: `python -m tests.bench.watching agent …`.

All else is the real thing. The runtime is found as every other is, by being a file in a folder of runtimes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trimtab.__main__ import main
from trimtab.agent import runtimes

if __name__ == "__main__":
    runtimes.__path__.append(str(Path(__file__).with_name("runtimes")))
    sys.exit(main())
