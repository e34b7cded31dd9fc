"""Files and directories that processes make, and how often.

Arguments: names of processes to watch, all where none is given:
``-f "watch_files,powershell.exe,bash"``. Made is what a call made anew or may have made
(``O_CREAT``), and that did not fail.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

NAMES = ("pathname", "filename", "name", "path")

made: Counter[tuple[str, str]] = Counter()
shown: Counter[str] = Counter()


def on_init() -> None:
    """Ask for the events of making a file, of the processes that were named."""
    condition = "(action = 'file_create' or action = 'file_open' and "
    condition += "evt.arg[flags] contains 'O_CREAT') and not (retval < 0)"
    if sys.argv[1:]:
        condition += f" and ps.name iin ({', '.join(map(quoted, sys.argv[1:]))})"
    set_filter(condition)
    columns(["File", "Process", "Times"])
    sort_by("Times")
    max_rows(50)
    interval(1)


def quoted(text: str) -> str:
    """Write a text as filters have it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def on_next_event(event: dict[str, Any]) -> None:
    """Count a file."""
    path = path_of(event)
    if path is not None:
        made[path, event.get("exe", "")] += 1


def path_of(event: dict[str, Any]) -> str | None:
    """Find the path of the file that an event is about, whatever its source calls it."""
    params = event["params"]
    opened = event.get("fd_name") if event.get("fd_type") in {"file", "directory"} else None
    named = (opened, *(params.get(name) for name in NAMES))
    paths = (params.get("file_path"), params.get("file_name"), *named)
    return next((path for path in paths if isinstance(path, str) and path), None)


def on_interval() -> None:
    """Draw the table where something was made since."""
    total = made.total()
    if shown["events"] == total:
        return
    shown["events"] = total
    for (path, process), times in made.items():
        add_row([path, process, times])
    render_table()


def on_stop() -> None:
    """Draw what came after the last interval."""
    on_interval()
