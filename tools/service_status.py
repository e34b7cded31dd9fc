"""What there is to say of a service that records, for ``kcap service status``."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kcap.errors import KcapError
from kcap.tools import common
from kcap.tools.play import opened_source
from kcap.tools.systemd import Systemd, utc

PROPERTIES: Final = (
    "ActiveEnterTimestamp",
    "ActiveState",
    "ExecMainCode",
    "ExecMainExitTimestamp",
    "ExecMainStatus",
    "LoadState",
    "MainPID",
    "MemoryCurrent",
    "NRestarts",
    "Result",
    "StatusText",
    "SubState",
    "UnitFileState",
)

_EXITED: Final = 1
_KILLED: Final = 2
_DUMPED: Final = 3
"""Of siginfo_t, CLD_EXITED and so on: what ExecMainCode is."""

_CODES: Final = {
    0: "done",
    1: "failed",
    2: "wrong usage: its options are not understood",
    3: "done, but something was lost, skipped or damaged",
}
_SYSTEMD_CODES: Final = 200
"""Codes from here on are systemd's own: it could not start the program as the unit wants."""

_RESULTS: Final = {
    "exit-code": "",
    "oom-kill": "the kernel took its memory",
    "protocol": "it ended before it said that it records",
    "resources": "systemd had no resources for it",
    "signal": "",
    "start-limit-hit": "it failed too often, and is not started again by itself",
    "success": "",
    "timeout": "it took too long to start or to stop",
    "watchdog": "it gave no sign of life, and was ended",
}


@dataclass(frozen=True, slots=True)
class Newest:
    """The capture that was written last."""

    file: str
    state: str | None
    """As `CaptureReader.state`; None of one that cannot be read."""
    bytes: int
    written_ns: int
    """When; a recording writes a sign of life each second."""
    events: int | None
    heartbeats: int | None
    losses: int | None
    """How often something was lost, damaged or not seen."""
    error: str | None

    def line(self) -> str:
        """It in a line."""
        size = common.size_text(self.bytes)
        if self.error is not None:
            return f"{self.file}: {size}, {self.error}"
        told = [self.state or "unknown", size, common.counted(self.events or 0, "event")]
        if self.losses:
            told.append(f"{common.counted(self.losses, 'loss')} (see kcap info)")
        return f"{self.file}: {', '.join(told)}"


@dataclass(frozen=True, slots=True)
class Status:
    """How a service is."""

    name: str
    unit: str
    folder: str
    systemd: dict[str, str]
    """Its properties."""
    files: int | None
    """Captures in its folder; None where that cannot be read."""
    bytes: int | None
    newest: Newest | None
    now_ns: int

    @property
    def active(self) -> bool:
        """Whether it records."""
        return self.systemd.get("ActiveState") == "active"

    @property
    def pid(self) -> int | None:
        """Its main process."""
        return int(self.systemd.get("MainPID", "0")) or None

    @property
    def restarts(self) -> int:
        """How often systemd started it anew by itself."""
        return int(self.systemd.get("NRestarts", "0"))

    @property
    def since_text(self) -> str | None:
        """Since when it records; of one that does not, since when not."""
        began = "ActiveEnterTimestamp" if self.active else "ExecMainExitTimestamp"
        when = utc(self.systemd.get(began))
        return None if when is None else f"{when:%Y-%m-%dT%H:%M:%SZ}"

    @property
    def exit_code(self) -> int | None:
        """The code with which it ended last; as shells have it, 128 and more for a signal."""
        how, code = (int(self.systemd.get(f"ExecMain{x}", "0")) for x in ("Code", "Status"))
        if how in (_KILLED, _DUMPED):
            return 128 + code
        return code if how == _EXITED else None

    @property
    def ending(self) -> str | None:
        """What its exit code means."""
        code = self.exit_code
        if code is None:
            return None
        why = _RESULTS.get(self.systemd.get("Result", ""), self.systemd.get("Result"))
        return f"exit code {code}, {_meaning(code)}" + (f"; {why}" if why else "")

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        memory = self.systemd.get("MemoryCurrent", "")
        return {
            "active": self.active,
            "bytes": self.bytes,
            "enabled": self.systemd.get("UnitFileState") == "enabled",
            "ending": self.ending,
            "exit_code": self.exit_code,
            "files": self.files,
            "folder": self.folder,
            "memory_bytes": int(memory) if memory.isdecimal() else None,
            "name": self.name,
            "newest": None if self.newest is None else _public(self.newest),
            "pid": self.pid,
            "restarts": self.restarts,
            "result": self.systemd.get("Result"),
            "since": self.since_text,
            "state": self.systemd.get("ActiveState"),
            "status_text": self.systemd.get("StatusText"),
            "substate": self.systemd.get("SubState"),
            "unit": self.unit,
        }

    def text(self) -> str:
        """For people."""
        from kcap.model.text import printable

        state = f"{self.systemd.get('ActiveState')} ({self.systemd.get('SubState')})"
        boot = self.systemd.get("UnitFileState") == "enabled"
        newest = self.newest
        rows = [
            ("service", f"{self.name}, {self.unit}"),
            ("state", f"{state}, {'starts' if boot else 'does not start'} at boot"),
            ("since", self.since_text),
            ("process", f"{self.pid}" if self.pid else None),
            ("says", self.systemd.get("StatusText") if self.active else None),
            ("restarts", f"{self.restarts:,}" if self.restarts else None),
            ("ended with", None if self.active else self.ending),
            ("captures", self._held()),
            ("newest", newest and newest.line()),
            ("written", newest and _ago(self.now_ns - newest.written_ns)),
        ]
        return "\n".join(f"{name:<12} {printable(str(value))}" for name, value in rows if value)

    def _held(self) -> str:
        if self.files is None or self.bytes is None:
            return f"{self.folder}, which cannot be read"
        return (
            f"{self.folder}: {common.counted(self.files, 'file')}, {common.size_text(self.bytes)}"
        )


def look(systemd: Systemd, name: str) -> Status:
    """Find out how a service is.

    Args:
        systemd: The service manager.
        name: The service, without ``.service``.

    Returns:
        What there is to say.

    Raises:
        KcapError: There is no such service of kcap's, or systemd cannot be asked.
    """
    folder = systemd.captures(name)
    properties = systemd.properties(name, *PROPERTIES)
    files = _captures(Path(folder))
    return Status(
        name=name,
        unit=str(systemd.path(name)),
        folder=folder,
        systemd=properties,
        files=None if files is None else len(files),
        bytes=None if files is None else sum(size for _, size, _ in files),
        newest=_newest(*max(files)) if files else None,
        now_ns=time.time_ns(),
    )


def _captures(folder: Path) -> list[tuple[int, int, str]] | None:
    """Time, size and path of each capture in a folder; None where that cannot be read."""
    found = []
    try:
        for path in folder.iterdir():
            if path.suffix == ".kcap" and path.is_file() and not path.is_symlink():
                about = path.stat()
                found.append((about.st_mtime_ns, about.st_size, str(path)))
    except OSError:
        return None
    return found


def _newest(written_ns: int, size: int, file: str) -> Newest:
    from kcap.format.reader import CaptureReader

    try:
        with opened_source(file, lenient=False) as reader:
            assert isinstance(reader, CaptureReader), reader
            index = reader.index()
            totals: Any = {} if index is None else index.totals
            state = reader.state
    except KcapError as e:
        return Newest(file, None, size, written_ns, None, None, None, e.what)
    lost = [one for one in totals.get("loss", []) if one["kind"] != "filtered"]
    beats = totals.get("records", {}).get("HEARTBEAT", 0)
    return Newest(file, state, size, written_ns, totals.get("events"), beats, len(lost), None)


def _public(newest: Newest) -> dict[str, Any]:
    return {**asdict(newest), "written": common.utc(newest.written_ns)}


def _ago(ns: int) -> str:
    return f"{common.duration_text(ns)} ago" if ns > 0 else "just now"


def _meaning(code: int) -> str:
    if code in _CODES:
        return _CODES[code]
    if code >= _SYSTEMD_CODES:
        return "systemd could not start it as its unit says"
    try:
        return f"ended by {signal.Signals(code - 128).name}"
    except ValueError:
        return "unknown to kcap"
