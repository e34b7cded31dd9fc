"""What is put where it starts by itself: Run keys of Windows, cron, units and the like of Linux.

Arguments: further places, as parts of a path: ``-f "registry_persistence,/opt/app/autorun"``.
An alert for each process and place that it writes to, and a table of all. Reading is no matter,
nor is a call that failed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Any

WINDOWS = {
    "Run key": r"\\Microsoft\\Windows( NT)?\\CurrentVersion\\(Policies\\Explorer\\)?Run"
    r"(Once|OnceEx|Services|ServicesOnce)?(\\|$)",
    "logon program": r"\\CurrentVersion\\Winlogon\\(Shell|Userinit|Notify|Taskman)(\\|$)"
    r"|\\CurrentVersion\\Windows\\(Load|Run)$|\\Environment\\UserInitMprLogonScript$",
    "image hijack": r"\\Image File Execution Options\\.+\\(Debugger|GlobalFlag)$"
    r"|\\CurrentVersion\\SilentProcessExit\\",
    "injected library": r"\\CurrentVersion\\Windows\\(AppInit_DLLs|LoadAppInit_DLLs)$"
    r"|\\Session Manager\\(AppCertDlls|BootExecute)(\\|$)",
    "security package": r"\\Control\\Lsa\\(.*\\)?(Authentication|Notification|Security) Packages$",
    "service": r"\\(CurrentControlSet|ControlSet\d{3})\\Services\\[^\\]+\\"
    r"(ImagePath|FailureCommand|Parameters\\ServiceDll)$",
    "shell start": r"\\Command Processor\\AutoRun$|\\Active Setup\\Installed Components\\"
    r"|\\Explorer\\(User )?Shell Folders\\(Common )?Startup$",
    "object hijack": r"\\Classes\\(Wow6432Node\\)?CLSID\\.+\\(InprocServer32|LocalServer32)(\\|$)",
    "startup folder": r"\\Start Menu\\Programs\\Start-?up\\[^\\]+$",
    "scheduled task": r"\\System32\\Tasks\\",
}
LINUX = {
    "scheduled job": r"^(/etc/cron|/etc/anacrontab|/var/spool/(cron|anacron|at)/)",
    "systemd unit": r"^(/etc|/run|/lib|/usr/lib|/usr/local/lib)/systemd/(system|user)"
    r"(-generators|-environment-generators)?/|/\.config/systemd/user/",
    "boot script": r"^/etc/(rc\.local|init\.d/|rc[0-6S]\.d/|inittab|modules-load\.d/|modules$)"
    r"|^(/etc|/lib|/usr/lib)/udev/rules\.d/",
    "preloaded library": r"^/etc/ld\.so\.(preload|conf)",
    "login key": r"/\.ssh/(authorized_keys2?|rc|environment)$|^/etc/ssh/sshrc$",
    "login script": r"^/etc/(profile|profile\.d/.+|bash\.bashrc|bashrc|environment|zsh/.+)$"
    r"|/\.(bashrc|bash_profile|bash_login|bash_logout|profile|zshrc|zprofile|zshenv)$"
    r"|^/etc/update-motd\.d/",
    "desktop start": r"^/etc/xdg/autostart/|/\.config/(autostart|plasma-workspace/env)/",
    "login rules": r"^/etc/(pam\.d/|sudoers$|sudoers\.d/|passwd$|shadow$)"
    r"|/pam_[^/]+\.so$",
}

NAMES = ("pathname", "filename", "name", "path")

places: list[tuple[str, re.Pattern[str]]] = []
found: Counter[tuple[str, str, str, int | None, str]] = Counter()
shown: Counter[str] = Counter()


def on_init() -> None:
    """Ask for what changes the registry or makes, moves or writes files."""
    named = {"named place": "|".join(map(re.escape, sys.argv[1:]))} if sys.argv[1:] else {}
    places.extend((place, re.compile(part, re.IGNORECASE)) for place, part in named.items())
    places.extend((place, re.compile(part, re.IGNORECASE)) for place, part in WINDOWS.items())
    places.extend((place, re.compile(part)) for place, part in LINUX.items())
    set_filter(
        "(action in ('reg_set_value', 'file_create', 'file_write', "
        "'file_rename', 'file_link') or action = 'file_open' and "
        "evt.arg[flags] contains ('O_WRONLY', 'O_RDWR', 'O_CREAT', 'O_TRUNC')) "
        "and not (retval < 0) and not (status exists and not status iin ('success'))"
    )
    columns(["Place", "Path", "Process", "Pid", "Event", "Times"])
    sort_by("Times")
    interval(1)


def on_next_event(event: dict[str, Any]) -> None:
    """Count a change of such a place; the first by a process is worth an alert."""
    params = event["params"]
    path = path_of(event)
    place = next((place for place, pattern in places if pattern.search(path)), None)
    if place is None:
        return
    process, pid, name = event.get("exe", ""), event["pid"], event["name"]
    change = f"{event.get('process_key', pid)} {path}"
    if not shown[change]:
        shown[change] = 1
        value = params.get("value", params.get("data"))
        said = "" if value is None else f", value {value!r}"
        emit_alert(
            f"{process or '?'} changes a {place}",
            f"{process or '?'} ({pid}), {event.get('cmdline') or 'command line not known'}: "
            f"{name} of {path}{said}",
            severity="medium",
            tags=["persistence", "TA0003"],
        )
    found[place, path, process, pid, name] += 1


def path_of(event: dict[str, Any]) -> str:
    """Find what is changed: a key with its value, or a file, the new one of two."""
    params = event["params"]
    opened = event.get("fd_name") if event.get("fd_type") in {"file", "directory"} else None
    new = (params.get(name) for name in ("key_path", "key_name", "newpath", "linkpath"))
    named = (opened, *(params.get(name) for name in NAMES))
    paths = (*new, params.get("file_path"), params.get("file_name"), *named)
    return next((path for path in paths if isinstance(path, str) and path), "")


def on_interval() -> None:
    """Draw the table where something was changed since."""
    total = found.total()
    if shown[""] == total:
        return
    shown[""] = total
    for (place, path, process, pid, name), times in found.items():
        add_row([place, path, process, pid, name, times])
    render_table()


def on_stop() -> None:
    """Draw what came after the last interval."""
    on_interval()
