"""The program: as ``kcap``, and as ``python -m kcap.tools`` in a checkout that is not installed.

What this loads is Python's own or kcap's own until it is known where everything else is found.
"""

from __future__ import annotations

import sys

from kcap import trust
from kcap.errors import KcapError


def start() -> None:
    """Run the command line, unless root would load what others left there."""
    try:
        trust.isolate()
    except KcapError as error:
        # No further import: that is what was just refused.
        hint = f"hint: {error.hint}\n" if error.hint else ""
        sys.stderr.write(f"kcap: {error}\n{hint}".encode("ascii", "backslashreplace").decode())
        sys.exit(error.exit_code)
    from kcap.tools.cli import main

    main(prog_name="kcap")


if __name__ == "__main__":
    start()
