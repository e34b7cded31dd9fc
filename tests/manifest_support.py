"""Runs of a recording with a manifest, and a filament for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli_support import run

COUNTER = '''"""Counts events by name."""

counts = {}


def on_init():
    columns(["Event", "Count"])
    sort_by("Count")


def on_next_event(event):
    counts[event["name"]] = counts.get(event["name"], 0) + 1


def on_stop():
    for name, count in counts.items():
        add_row([name, count])
    render_table()
'''


def made(*words: str) -> dict[str, Any]:
    """The manifest of a run of host.kcap, in run.json."""
    result = run("replay", "host.kcap", *words, "--manifest", "run.json", "--force")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(Path("run.json").read_bytes())
    return found
