"""What runs in the machine of another kernel: a recording of everything that the workloads do.

``python3 guest.py OUT PROGRAMS`` writes the capture and, as JSON, what was done.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from live_support import record_calls
from workload_support import Workloads


def main() -> None:
    """Record, and write down what was done."""
    out, programs = Path(sys.argv[1]), Path(sys.argv[2])
    del os.environ["PYTHONPATH"]  # these tests' own: as root, kcap wants none
    folder = programs / "done"
    folder.mkdir()
    # Emulated, a start may take so long that the recording rightly calls the time blind.
    said = record_calls(out / "r.kcap", folder, Workloads(programs), codes=(0, 3))
    (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
