"""Programs and scripts that remote access tools copy to this host: TeamViewer, AnyDesk, scp ...

Arguments: names of tools in place of the known ones:
``-f "teamviewer_remote_file_copy,TeamViewer.exe,sftp-server"``. An alert for each file and a table
of all. Of tools that only copy (scp, sftp-server, rsync) every file counts, of others what can be
run or unpacked. The sftp that is part of sshd has no process of its own, so it is not seen.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

TOOLS = (
    "teamviewer.exe, teamviewer_service.exe, teamviewer_desktop.exe, tv_w32.exe, tv_x64.exe, "
    "anydesk.exe, rustdesk.exe, logmein.exe, screenconnect.clientservice.exe, "
    "screenconnect.windowsclient.exe, splashtop.exe, srserver.exe, ultraviewer_desktop.exe, "
    "winvnc.exe, tvnserver.exe, rdpclip.exe, teamviewer, teamviewerd, anydesk, rustdesk"
)
COPIERS = "scp, scp.exe, sftp-server, sftp-server.exe, rsync, rsync.exe"
ENDINGS = (
    ".exe .dll .sys .com .scr .cpl .msi .ocx .bat .cmd .ps1 .psm1 .vbs .vbe .js .jse .wsf .hta "
    ".lnk .jar .py .iso .img .zip .rar .7z .cab .sh .so .elf .run .deb .rpm .appimage .tar .gz "
    ".tgz .xz"
)
NAMES = ("pathname", "filename", "name", "path")

copied: Counter[tuple[str, int | None, str]] = Counter()
shown: Counter[str] = Counter()


def on_init() -> None:
    """Ask for the files that those tools make."""
    names = sys.argv[1:] or [*TOOLS.split(", "), *COPIERS.split(", ")]
    set_filter(
        "(action = 'file_create' or action = 'file_open' and evt.arg[flags] contains 'O_CREAT') "
        "and not (retval < 0) and not (status exists and not status iin ('success')) "
        f"and ps.name iin ({', '.join(map(quoted, names))})"
    )
    columns(["Tool", "Pid", "File", "Times"])
    sort_by("Times")
    interval(1)


def quoted(text: str) -> str:
    """Write a text as filters have it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def on_next_event(event: dict[str, Any]) -> None:
    """Count a file; the first time of a tool with it is worth an alert."""
    tool, pid, path = event["exe"], event["pid"], path_of(event)
    if path is None or not (tool.lower() in COPIERS.split(", ") or worth(path)):
        return
    if not copied[tool, pid, path]:
        emit_alert(
            "a file was copied to this host",
            f"{tool} ({pid}) made {path}, as {event['sid'] or 'a user that is not known'}",
            severity="medium",
            tags=["lateral-movement", "T1105"],
        )
    copied[tool, pid, path] += 1


def worth(path: str) -> bool:
    """Whether a file can be run or unpacked, by its name."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return "".join(name.rpartition(".")[1:]).lower() in ENDINGS.split()


def path_of(event: dict[str, Any]) -> str | None:
    """Find the path of the file that an event is about, whatever its source calls it."""
    params = event["params"]
    opened = event.get("fd_name") if event.get("fd_type") in {"file", "directory"} else None
    named = (opened, *(params.get(name) for name in NAMES))
    paths = (params.get("file_path"), params.get("file_name"), *named)
    return next((path for path in paths if isinstance(path, str) and path), None)


def on_interval() -> None:
    """Draw the table where something was copied since."""
    total = copied.total()
    if shown["events"] == total:
        return
    shown["events"] = total
    for (tool, pid, path), times in copied.items():
        add_row([tool, pid, path, times])
    render_table()


def on_stop() -> None:
    """Draw what came after the last interval."""
    on_interval()
