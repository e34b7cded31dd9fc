"""The program: as ``kcap``, and as ``python -m kcap.tools`` in a checkout that is not installed.

What this loads is Python's own or kcap's own until it is known where everything else is found.
"""

from __future__ import annotations

import sys

from kcap import trust
from kcap.errors import KcapError


class _WithoutPandas:
    """Finds no pandas: no verb needs it, and pyarrow imports it where it is installed.

    It does so to see whether a list that it is given is one of pandas' own: 0.3 s and 30 MiB.
    """

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        """Look for a module, as `sys.meta_path` has it."""
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def start() -> None:
    """Run the command line, unless root would load what others left there."""
    try:
        trust.isolate()
    except KcapError as error:
        # No further import: that is what was just refused.
        hint = f"hint: {error.hint}\n" if error.hint else ""
        sys.stderr.write(f"kcap: {error}\n{hint}".encode("ascii", "backslashreplace").decode())
        sys.exit(error.exit_code)
    sys.meta_path.insert(0, _WithoutPandas())
    from kcap.tools.cli import main

    main(prog_name="kcap")


if __name__ == "__main__":
    start()
