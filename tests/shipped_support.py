"""Captures for the filaments that come with kcap, and what a filament makes of one."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import fibratus_support as fs
from derived_support import RECORDER
from support import capture

from kcap.filament import source, table, tap
from kcap.model import catalogue, naming, shape
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.stream import Source
from kcap.opening import open_source
from kcap.replay.pipeline import Pipeline

SECOND_NS = 10**9
START_NS = 1_760_000_000 * SECOND_NS


class Seen(NamedTuple):
    """What a filament did."""

    tables: list[table.Table]
    """The tables that it drew, in order."""
    alerts: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The last table, as a pipe gets it."""
        return "".join(f"{line}\n" for line in self.tables[-1].lines()) if self.tables else ""


class _Tables(table.Plain):
    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.drawn: dict[int, list[table.Table]] = {}

    def draw(self, filament: int, drawn: table.Table) -> None:
        self.drawn.setdefault(filament, []).append(drawn)


class _Alerts:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, batch: Batch) -> None:
        if batch.get("arg_alert_id") is not None:  # alerts come by themselves
            self.rows += batch.to_pylist()

    def close(self) -> None:
        pass


class Without:
    """A source that lacks one event.

    Args:
        of: The whole source.
        row: The event, by its number.
    """

    def __init__(self, of: Source, row: int) -> None:
        self._of = of
        self._row = row
        self.info = of.info

    def batches(self) -> Iterable[Batch]:
        import numpy as np

        first = 0
        for batch in self._of.batches():
            rows = np.arange(batch.rows, dtype=np.int32)
            kept = rows[rows + first != self._row]
            first += batch.rows
            yield batch if len(kept) == batch.rows else batch.take(kept)

    def close(self) -> None:
        self._of.close()


def seen(path: Path, *specs: str, without: int | None = None) -> dict[str, Seen]:
    """Run filaments that come with kcap over a capture, without one event where asked."""
    display, alerts = _Tables(), _Alerts()
    opened: Any = open_source(path)
    opened = opened if without is None else Without(opened, without)
    try:
        filaments = tap.Filaments([source.find(spec) for spec in specs], display)
        Pipeline(opened, [alerts], taps=[filaments]).run()
    finally:
        opened.close()
    found = {}
    for number, spec in enumerate(specs):
        rule = f"filament:{spec.partition(',')[0]}"
        raised = [row for row in alerts.rows if row["arg_rule"] == rule]
        found[spec] = Seen(display.drawn.get(number, []), raised)
    return found


Call = tuple[float, str, str, int, dict[str, Any]]
"""Seconds, process, event, process id, columns (with a ``$``) and arguments."""

INET = {"sa_family": "AF_INET", "sin_addr": "203.0.113.9", "sin_port": "443"}
INET6 = {"sa_family": "AF_INET6", "sin6_addr": "2001:db8::5", "sin6_port": "53"}
UNIX = {"sa_family": "AF_UNIX", "sun_path": "/run/nscd/socket"}
O_WRONLY, O_RDWR, O_CREAT = 0o1, 0o2, 0o100

LINUX: list[Call] = [
    (0.0, "bash", "openat", 10, {"pathname": "/etc/passwd", "flags": 0o2000000, "$retval": 3}),
    (0.1, "bash", "openat", 10, {"pathname": "/etc/nsswitch.conf", "flags": 0, "$retval": 3}),
    (0.1, "cat", "openat", 11, {"pathname": "/etc/passwd", "flags": 0, "$retval": 3}),
    (0.2, "bash", "openat", 10, {"pathname": "/etc/nothing", "flags": 0, "$retval": -2}),
    (0.3, "vi", "openat", 12, {"pathname": "/etc/crontab", "flags": O_RDWR, "$retval": 3}),
    (1.2, "bash", "openat", 10, {"pathname": "/tmp/x", "flags": O_WRONLY | O_CREAT, "$retval": 4}),
    (1.3, "bash", "openat", 10, {"pathname": "/tmp/x", "flags": O_WRONLY | O_CREAT, "$retval": 4}),
    (1.4, "bash", "openat", 10, {"pathname": "/tmp/no", "flags": O_CREAT, "$retval": -13}),
    (1.5, "mkdir", "mkdirat", 13, {"pathname": "/tmp/folder", "mode": 0o755, "$retval": 0}),
    (1.6, "mkdir", "mkdirat", 13, {"pathname": "/tmp/folder", "mode": 0o755, "$retval": -17}),
    (2.0, "curl", "connect", 14, {"sockfd": 3, "remote_addr": INET, "$retval": -115}),
    (2.0, "curl", "sendto", 14, {"sockfd": 3, "remote_addr": INET, "$retval": 120}),
    (2.1, "curl", "recvfrom", 14, {"sockfd": 3, "remote_addr": INET, "$retval": 4096}),
    (2.2, "curl", "recvfrom", 14, {"sockfd": 3, "remote_addr": INET, "$retval": 512}),
    (2.3, "curl", "recvfrom", 14, {"sockfd": 3, "remote_addr": INET, "$retval": 0}),
    (2.4, "curl", "sendto", 14, {"sockfd": 4, "dest_addr": INET6, "$retval": 40}),
    (2.5, "curl", "recvfrom", 14, {"sockfd": 4, "src_addr": INET6, "$retval": 60}),
    (2.6, "curl", "recvfrom", 14, {"sockfd": 5, "src_addr": UNIX, "$retval": 60}),
    (2.7, "curl", "recvfrom", 14, {"sockfd": 3, "remote_addr": INET, "$retval": -11}),
    (3.0, "cat", "connect", 15, {"sockfd": 3, "remote_addr": INET, "$retval": 0}),
    (3.1, "cat", "sendto", 15, {"sockfd": 3, "remote_addr": INET, "$retval": 9000}),
    (3.2, "cat", "sendto", 15, {"sockfd": 3, "remote_addr": INET, "$retval": 9000}),
    (3.3, "awk", "connect", 16, {"sockfd": 3, "remote_addr": INET6, "$retval": -111}),
    (3.4, "ls", "connect", 17, {"sockfd": 3, "remote_addr": UNIX, "$retval": -2}),
    (4.0, "sh", "openat", 18,
     {"pathname": "/etc/cron.d/job", "flags": O_WRONLY | O_CREAT, "$retval": 3}),
    (4.1, "sh", "renameat2", 18,
     {"oldpath": "/tmp/u", "newpath": "/etc/systemd/system/u.service", "$retval": 0}),
    (4.2, "sh", "openat", 18,
     {"pathname": "/root/.ssh/authorized_keys", "flags": O_WRONLY, "$retval": 3}),
    (4.3, "sh", "openat", 18,
     {"pathname": "/root/.ssh/authorized_keys", "flags": O_WRONLY, "$retval": 3}),
    (4.4, "sh", "openat", 18, {"pathname": "/root/.bashrc", "flags": O_RDWR, "$retval": -13}),
    (4.5, "sh", "symlinkat", 18,
     {"target": "/opt/x", "linkpath": "/etc/rc3.d/S01x", "$retval": 0}),
    (4.6, "cat", "openat", 19, {"pathname": "/etc/ld.so.preload", "flags": 0, "$retval": 3}),
    (5.0, "scp", "openat", 20,
     {"pathname": "/srv/a.txt", "flags": O_WRONLY | O_CREAT, "$retval": 3}),
    (5.1, "sftp-server", "openat", 21,
     {"pathname": "/srv/run.sh", "flags": O_RDWR | O_CREAT, "$retval": 3}),
    (5.1, "sftp-server", "openat", 21,
     {"pathname": "/srv/run.sh", "flags": O_RDWR | O_CREAT, "$retval": 3}),
    (5.2, "teamviewerd", "openat", 22,
     {"pathname": "/home/u/a.log", "flags": O_WRONLY | O_CREAT, "$retval": 3}),
    (5.3, "teamviewerd", "openat", 22,
     {"pathname": "/home/u/Setup.EXE", "flags": O_WRONLY | O_CREAT, "$retval": 3}),
    (5.4, "scp", "openat", 20, {"pathname": "/srv/denied", "flags": O_CREAT, "$retval": -13}),
]  # fmt: skip
"""What happens on a host of ours."""


def linux(folder: Path) -> Path:
    """A Linux recording of `LINUX`."""
    known = catalogue.events("kcap-bpf")
    builder = RecordBuilder()
    for number, (second, process, event, pid, values) in enumerate(LINUX):
        info = known[event]
        fixed = {
            "ts": START_NS + int(second * SECOND_NS),
            "origin": RECORDER.origin,
            "ord": number,
            "source": RECORDER.id,
            "host": "box",
            "event": event,
            "action": info.action,
            "category": info.category,
            "kind": "event",
            "pid": pid,
            "tid": pid,
            "ppid": 1,
            "process_name": process,
            "cmdline": f"{process} -x",
            "user": "root",
            "process_key": f"{pid:016x}",
            "status": "SUCCESS" if values["$retval"] >= 0 else errno.errorcode[-values["$retval"]],
        }
        names = [n[1:] if n[0] == "$" else naming.argument(n) for n in values]
        fields = [Field(base, catalogue.home(base)) for base in (*fixed, *names)]
        items = [shape.Item(n, "any") for n in values if n[0] != "$"]
        layout = builder.layout(fields, shape.encode(items))
        builder.add(layout, [*fixed.values(), *values.values()])
    path = folder / "linux.kcap"
    path.write_bytes(capture([builder.finish({}, [RECORDER])], chunk_rows=16))
    return path


RUN = "HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Run\\Updater"
STARTUP = (
    "C:\\Users\\ann\\AppData\\Roaming\\Microsoft\\Windows\\Start Menu\\Programs\\Startup\\a.lnk"
)
SERVICE = "HKEY_LOCAL_MACHINE\\SYSTEM\\ControlSet001\\Services\\Evil\\ImagePath"
HARMLESS = "HKEY_CURRENT_USER\\SOFTWARE\\Vendor\\Run\\Size"

Happening = tuple[int, str, dict[str, tuple[str, Any]]]
"""Process id, event, parameters with their types."""


def _key(name: str, status: str = "success", **more: tuple[str, Any]) -> dict[str, Any]:
    return {"key_name": ("unicode", name), "status": ("unicode", status), **more}


def _file(name: str, operation: int, status: str = "success") -> dict[str, Any]:
    return {
        "file_name": ("unicode", name),
        "file_object": ("hex64", 0xFFFFA88C7EA077D0),
        "operation": ("enum", operation),
        "share_mask": ("enum", 3),
        "status": ("unicode", status),
        "type": ("ansi", "file"),
    }


def _net(there: str, port: int, size: int, proto: int = 1, *, came: bool = False) -> dict[str, Any]:
    here = bytes([10, 0, 0, 5])
    far = bytes(int(part) for part in there.split("."))
    ends = [("sip", "sport", far, port), ("dip", "dport", here, 50000)]
    if not came:
        ends = [("sip", "sport", here, 50000), ("dip", "dport", far, port)]
    found: dict[str, Any] = {"l4_proto": ("enum", proto), "size": ("u32", size)}
    for ip, name, address, number in ends:
        found |= {ip: ("ipv4", address), name: ("port", number)}
    return found


WINDOWS: list[Happening] = [
    (200, "RegOpenKey", _key("HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft")),
    (200, "RegOpenKey", _key("HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft", "key not found")),
    (200, "RegQueryValue", _key("HKEY_LOCAL_MACHINE\\SOFTWARE\\Vendor\\Size")),
    (300, "RegSetValue", _key(RUN, value=("unicode", "C:\\x.exe"))),
    (300, "RegSetValue", _key(RUN, value=("unicode", "C:\\y.exe"))),
    (300, "RegSetValue", _key(SERVICE, "access denied", value=("unicode", "C:\\z.sys"))),
    (200, "RegSetValue", _key(SERVICE, value=("unicode", "C:\\z.sys"))),
    (200, "RegSetValue", _key(HARMLESS, value=("u64", 5))),
    (300, "CreateFile", _file("C:\\Users\\ann\\a.txt", 2)),
    (300, "CreateFile", _file("C:\\Users\\ann\\a.txt", 2)),
    (300, "CreateFile", _file("C:\\Users\\ann\\b.txt", 1)),
    (400, "CreateFile", _file("C:\\Users\\ann\\Downloads\\tool.exe", 2)),
    (400, "CreateFile", _file("C:\\Users\\ann\\Downloads\\note.txt", 2)),
    (300, "CreateFile", _file(STARTUP, 2)),
    (200, "Send", _net("198.51.100.7", 443, 100)),
    (200, "Recv", _net("198.51.100.7", 443, 1400)),
    (200, "Recv", _net("198.51.100.7", 443, 1400)),
    (200, "Send", _net("192.0.2.53", 53, 40, 2)),
    (200, "Recv", _net("192.0.2.53", 53, 90, 2, came=True)),
    (500, "Connect", _net("203.0.113.66", 8080, 0)),
    (500, "Send", _net("203.0.113.66", 8080, 900)),
    (500, "Recv", _net("203.0.113.66", 8080, 10)),
]  # fmt: skip
"""What happens on a Windows host."""

PROGRAMS = {200: "svchost.exe", 300: "powershell.exe", 400: "TeamViewer.exe", 500: "Notepad.exe"}


def windows(folder: Path) -> Path:
    """A Fibratus capture of `WINDOWS`, after records of the processes that were there."""
    records = [
        fs.record(
            [
                ("pid", "pid", pid),
                ("ppid", "pid", 4),
                ("name", "ansi", name),
                ("exe", "unicode", f"C:\\bin\\{name}"),
                ("comm", "unicode", f'"{name}" -x'),
                ("sid", "wbemsid", "WIN\\ann"),
                ("session_id", "u32", 1),
            ],
            name="N/A",
            category="unknown",
            provider=fs.PROCESS,
            number=3,
            time="2022-08-15T21:56:28Z",
            process=fs.state(pid=pid),
        )
        for pid, name in PROGRAMS.items()
    ]
    families = catalogue.events("fibratus")
    for number, (pid, event, parameters) in enumerate(WINDOWS):
        category = families[event].category or ""
        records.append(
            fs.record(
                [(name, kind, value) for name, (kind, value) in parameters.items()],
                name=event,
                category={"network": "net"}.get(category, category),
                seq=number,
                pid=pid,
                time=f"2022-08-15T21:56:{29 + number // 4}.{number % 4}5Z",
            )
        )
    path = folder / "windows.kcap"
    path.write_bytes(fs.packed([fs.plain(records)]))
    return path
