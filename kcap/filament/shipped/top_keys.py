"""Registry keys that are used most; on Linux the files of /etc, where its settings are.

Arguments: names of processes to look at, all where none is given: ``-f "top_keys,explorer.exe"``.
A key is named as the event names it: reading or setting a value, with the value's name.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

NAMES = ("pathname", "filename", "name", "path", "linkpath", "oldpath", "old_path")

used: Counter[str] = Counter()
shown: Counter[str] = Counter()


def on_init() -> None:
    """Ask for events of the registry, and of files below /etc."""
    condition = "(evt.category = 'registry' or file.path startswith '/etc/')"
    if sys.argv[1:]:
        condition += f" and ps.name iin ({', '.join(map(quoted, sys.argv[1:]))})"
    set_filter(condition)
    columns(["Key", "Operations"])
    sort_by("Operations")
    max_rows(25)
    interval(1)


def quoted(text: str) -> str:
    """Write a text as filters have it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def on_next_event(event: dict[str, Any]) -> None:
    """Count an operation."""
    params = event["params"]
    key = params.get("key_path") or params.get("key_name") or path_of(event)
    if key is not None:
        used[key] += 1


def path_of(event: dict[str, Any]) -> str | None:
    """Find the path of the file that an event is about, whatever its source calls it."""
    params = event["params"]
    opened = event.get("fd_name") if event.get("fd_type") in {"file", "directory"} else None
    named = (opened, *(params.get(name) for name in NAMES))
    paths = (params.get("file_path"), params.get("file_name"), *named)
    return next((path for path in paths if isinstance(path, str) and path), None)


def on_interval() -> None:
    """Draw the table where something was used since."""
    total = used.total()
    if shown["events"] == total:
        return
    shown["events"] = total
    for key, operations in used.items():
        add_row([key, operations])
    render_table()


def on_stop() -> None:
    """Draw what came after the last interval."""
    on_interval()
