"""What the bundle's Python runs: the command line, under the name that the user called."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

# Else the process would be called after the loader that starts Python.
with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:  # noqa: PTH123
    name.write("kcap")
_HOME = Path(__file__).parents[2]
sys.argv[0] = str(_HOME / "kcap")

from kcap.guard import child  # noqa: E402
from kcap.tools.__main__ import start  # noqa: E402

child.interpreter[:] = [
    str(_HOME / "lib/ld-linux-x86-64.so.2"), "--inhibit-cache", "--library-path",
    str(_HOME / "lib"), str(_HOME / "bin/python3.11"),
]  # fmt: skip

start()
