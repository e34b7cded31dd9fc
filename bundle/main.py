"""What the bundle's Python runs: the command line, under the name that the user called."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

# Else the process would be called after the loader that starts Python.
with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:  # noqa: PTH123
    name.write("kcap")
sys.argv[0] = str(Path(__file__).parents[2] / "kcap")

from kcap.tools.__main__ import start  # noqa: E402

start()
