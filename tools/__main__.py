"""``python -m kcap.tools``: the command line of a checkout that is not installed."""

from __future__ import annotations

from kcap.tools.cli import main

main(prog_name="kcap")
