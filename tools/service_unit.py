"""The unit file of a recording that systemd runs: what it may do, and how it is started anew.

Everything is written out, so that an administrator can read what was installed and override parts
of it as with any other unit (``systemctl edit``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from kcap.errors import KcapError

MARK: Final = "# Written by 'kcap service install'; 'kcap service remove' takes it away."
"""The first line of every unit that kcap wrote: others are never changed or removed."""

SECTION: Final = "[X-kcap]"
"""Sections that begin with X- are for other programs; systemd ignores them."""

UNIT_BYTES: Final = 1 << 16
"""What is read of a unit file at most."""

STATE: Final = PurePosixPath("/var/lib")
"""Below it systemd makes a service's folder itself."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.-]{0,199}")
_BARE: Final = re.compile(r"[A-Za-z0-9_./:=,@+-]+")

# TimeoutStartSec and WatchdogSec: much longer than a busy host or a slow disk may take.
# RuntimeDirectory: control sockets, of all recorders, so that none of them takes it away.
# LogsDirectory: the folder for a log that the settings may ask for.
# Nice: a busy host must not hide what made it busy. OOMScoreAdjust: others go first, yet not the
# whole host. The limits are a multiple of what a recording at full load was measured to take.
_TEMPLATE: Final = """{mark}
[Unit]
Description=Recording of this host ({name})
RequiresMountsFor={mounts}
StartLimitIntervalSec=10min
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{reload}SyslogIdentifier=kcap
WatchdogSec=3min
TimeoutStartSec=5min
TimeoutStopSec=90s
KillMode=mixed
Restart=on-failure
RestartSec=5s
SuccessExitStatus=3
RestartPreventExitStatus=2
{folder}
RuntimeDirectory=kcap
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
LogsDirectory=kcap
LogsDirectoryMode=0700
UMask=0077
Nice=-5
OOMScoreAdjust=-500
MemoryMax=1G
TasksMax=1024
LimitNOFILE=65536
LimitMEMLOCK=infinity
LimitCORE=0
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectClock=yes
ProtectKernelModules=yes
PrivateTmp=yes
DevicePolicy=closed
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_NETLINK{families}
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap

[Install]
WantedBy=multi-user.target

{section}
Captures={captures}
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """A service that records."""

    name: str
    """Without ``.service``."""
    program: tuple[str, ...]
    """What runs kcap: an absolute path and its arguments."""
    words: tuple[str, ...]
    """What follows ``kcap record``, but for the output."""
    captures: str
    """The folder of the captures."""
    kill: str | None
    """The program ``kill``, for ``systemctl reload``; None without one."""
    asking: str = "HUP"
    """The signal that has a recording begin a file."""
    network: bool = False
    """It has sinks: what sends to them may make sockets of the Internet."""

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_folder(self.captures)
        if not self.program or not self.program[0].startswith("/"):
            raise KcapError("the program of a service needs an absolute path")

    def text(self) -> str:
        """The unit file."""
        from kcap.guard.rights import BITS

        before = (*self.program, "record", "-o")
        words = [quoted(word, exec_line=True) for word in before]
        # %H is the host's name: systemd puts it in at each start, so it must not be doubled.
        folder = quoted(f"{self.captures}/", exec_line=True)
        words.append(f'{folder[:-1]}%H.kcap"' if folder.endswith('"') else f"{folder}%H.kcap")
        words += [quoted(word, exec_line=True) for word in self.words]
        reload = ""
        if self.kill is not None:
            reload = f"ExecReload={quoted(self.kill, exec_line=True)} -{self.asking} $MAINPID\n"
        return _TEMPLATE.format(
            mark=MARK,
            section=SECTION,
            name=self.name,
            mounts=quoted(self.captures),
            command=" ".join(words),
            reload=reload,
            families=" AF_INET AF_INET6" if self.network else "",
            folder=self._folder(),
            capabilities=" ".join(sorted(BITS)),
            captures=self.captures,
        )

    def _folder(self) -> str:
        """How the service may write into its folder alone."""
        path = PurePosixPath(self.captures)
        if path != STATE and path.is_relative_to(STATE):
            return f"StateDirectory={quoted(str(path.relative_to(STATE)))}\nStateDirectoryMode=0700"
        # Without the minus, systemd would fail where the folder is missing, with no word of kcap's.
        return f"ReadWritePaths={quoted('-' + self.captures)}"


def check_name(name: str) -> None:
    """Refuse what cannot be a service's name.

    Args:
        name: The name, without ``.service``.

    Raises:
        KcapError: It has other characters than systemd allows, or is too long.
    """
    if not _NAME.fullmatch(name) or name.endswith(".service"):
        raise KcapError(
            f"{name[:100]!r} is no name for a service",
            expected="letters, digits, and any of : _ . -, without .service",
        )


def _check_folder(path: str) -> None:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or str(pure) != path or len(pure.parts) == 1:
        raise KcapError(f"{path!r} is no folder for captures", expected="an absolute path")
    if not path.isprintable():
        raise KcapError(
            f"{path!r} is no folder for captures", expected="a name without control characters"
        )


def quoted(word: str, *, exec_line: bool = False) -> str:
    r"""A word as systemd's unit files have it.

    Args:
        word: The word.
        exec_line: It is part of a command line, where ``$`` stands for a variable, too.

    Returns:
        The word; with other characters than usual ones in double quotes, with ``%`` doubled, and
        with control characters, quotes and backslashes written with a backslash.
    """
    if _BARE.fullmatch(word):
        return word
    kept = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if exec_line:
        kept = kept.replace("$", "$$")
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in kept) + '"'


def captures_of(text: str) -> str | None:
    """The folder of a unit that kcap wrote.

    Args:
        text: A unit file.

    Returns:
        The folder; None of a unit that somebody else wrote.
    """
    if text.split("\n", 1)[0] != MARK:
        return None
    found = re.search(rf"^{re.escape(SECTION)}\nCaptures=(/.*)$", text, re.MULTILINE)
    return found[1] if found else None
