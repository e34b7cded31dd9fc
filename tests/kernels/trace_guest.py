"""What runs in the machine of another kernel: a burst of processes, recorded through tracepoints.

``python3 trace_guest.py OUT PROGRAMS`` writes a capture a source and, as JSON, what was done.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from trace_support import RECORDERS, recorded
from workload_support import Workloads

BURST = 5000
"""Short-lived processes."""


def main() -> None:
    """Record, and write down what was done."""
    del os.environ["PYTHONPATH"]  # these tests' own: as root, kcap wants none
    out, programs = Path(sys.argv[1]), Path(sys.argv[2])
    workloads = Workloads(programs)
    said = {}
    for source in RECORDERS:
        # Emulated, a burst may take so long that the recording rightly calls some time blind.
        with recorded(out / f"{source}.kcap", source, codes=(0, 3)):
            said[source] = workloads.run("burst", workloads.child, BURST, timeout_s=240)
            os.kill(os.getpid(), 0)
    (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
