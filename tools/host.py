"""What a capture says of the hosts that were recorded, for ``kcap info --host``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kcap.errors import KcapError
from kcap.tools import common

if TYPE_CHECKING:
    from kcap.format.index import Index
    from kcap.format.reader import CaptureReader
    from kcap.model.batch import Batch
    from kcap.model.side import Loss, Snapshot, SourceInfo
    from kcap.model.stream import Source

ROWS_SHOWN: Final = 20
"""Rows of a table that the text shows."""

_NAMES_BYTES: Final = 1 << 16
"""What is read of a STATE record to see which tables it has."""

_Rows = list[dict[str, Any]]


class Hosts:
    """What is known of each machine: a sink, or filled from a capture's index."""

    def __init__(self) -> None:
        self._sources: dict[str, SourceInfo] = {}
        self._tables: dict[str, dict[str, _Rows]] = {}
        self.losses: list[Loss] = []

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        from kcap.model.side import Snapshot, SourceInfo

        for side in batch.before:
            if isinstance(side, SourceInfo):
                self.add_source(side)
            elif isinstance(side, Snapshot):
                self.add(side)

    def close(self) -> None:
        """See `Sink.close`."""

    def add_source(self, source: SourceInfo) -> None:
        """Take note of a source; of one id the last counts.

        Args:
            source: The source.
        """
        self._sources[source.id] = source

    def add(self, snapshot: Snapshot) -> None:
        """Take the tables of a snapshot; of each machine the first of a name counts.

        Args:
            snapshot: The tables.
        """
        for name, table in sorted(snapshot.tables.items()):
            of_machine: dict[str, _Rows] = {}
            for row in table.to_pylist():
                machine = str(row.pop("machine", None) or "")
                of_machine.setdefault(machine, []).append(_known(row))
            for machine, rows in of_machine.items():
                self._tables.setdefault(machine, {}).setdefault(name, rows)

    def to_json(self) -> list[dict[str, Any]]:
        """The hosts: what each source says, and the tables of its machine."""
        from kcap.state import State

        found = []
        for _, source in sorted(self._sources.items()):
            machine = State.machine(source)
            entry = {**source.to_json(), "id": source.id, "machine": machine}
            found.append(entry | {"tables": self._tables.get(machine, {})})
        return found


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value not in (None, [])}


def read(source: Source) -> Hosts:
    """Look for what a capture, or another input, says of its hosts.

    Of a capture in a file this reads the first STATE record, and those that later sources of a
    merged one begin with; of any other input everything.

    Args:
        source: The input.

    Returns:
        The hosts; what was damaged of them is in ``losses``.
    """
    from kcap.format.reader import CaptureReader
    from kcap.model.side import Loss, SourceInfo
    from kcap.replay.pipeline import Pipeline

    hosts = Hosts()
    index = source.index() if isinstance(source, CaptureReader) else None
    if index is None or not isinstance(source, CaptureReader):
        summary = Pipeline(source, [hosts]).run()
        hosts.losses = list(summary.losses)
        return hosts
    for entry in index.totals["sources"]:
        hosts.add_source(SourceInfo.from_json(entry))
    hosts.losses += index.losses
    for found in states(source, index):
        if isinstance(found, Loss):
            hosts.losses.append(found)
        else:
            hosts.add(found)
    return hosts


def states(reader: CaptureReader, index: Index) -> Iterator[Snapshot | Loss]:
    """The snapshots of a capture that tell what its hosts were like.

    Args:
        reader: The capture, in a file.
        index: Its index.

    Yields:
        The first snapshot, and later ones with tables of a host; a loss for one that is damaged.
    """
    from kcap.format.record import Kind
    from kcap.format.state_tables import read_state
    from kcap.model.side import Loss
    from kcap.state.state import FOLLOWED

    for number, (offset, length) in enumerate(index.totals["states"]):
        try:
            if number and set(_names(reader, offset, length)) <= FOLLOWED:
                continue
            yield read_state(reader.payload_at(offset, Kind.STATE), reader.schema)
        except KcapError as error:
            yield Loss("damaged", 0, f"{error} (STATE at byte {offset})")


def _names(reader: CaptureReader, offset: int, length: int) -> Iterable[str]:
    """The tables of a STATE record, by its first bytes."""
    from kcap.format import payloads
    from kcap.format.record import HEADER_BYTES

    head = reader.window.read_at(offset + HEADER_BYTES, min(length, _NAMES_BYTES))
    return payloads.state_names(head)


def as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """The hosts for people.

    Args:
        found: What `Hosts.to_json` gave.

    Returns:
        The text, without a line feed at its end.
    """
    return "\n\n".join(_host(one) for one in found) or "no source: nothing is known of a host"


def _host(one: Mapping[str, Any]) -> str:
    from kcap.model.text import printable

    tables: Mapping[str, _Rows] = one["tables"]
    lines = [
        f"{name:<14} {printable(str(value))}"
        for name, value in [*_facts(one), *_counts(tables)]
        if value
    ]
    for title, columns, rows in _sections(tables):
        if rows:
            lines += ["", f"{title} ({len(rows):,})", *_aligned(columns, rows[:ROWS_SHOWN])]
        if len(rows) > ROWS_SHOWN:
            lines.append(f"  and {len(rows) - ROWS_SHOWN:,} more: --json shows all")
    if not tables:
        lines += ["", "no tables of the host: they come with recordings that kcap made of it"]
    return "\n".join(lines)


def _facts(one: Mapping[str, Any]) -> list[tuple[str, object]]:
    of = one["details"].get
    kernel = " ".join(
        str(of(k)) for k in ("system", "kernel", "kernel_version", "machine") if of(k)
    )
    memory = of("memory_bytes")
    hardware = [common.counted(of("cpus"), "CPU") if isinstance(of("cpus"), int) else ""]
    hardware += [common.size_text(memory) if isinstance(memory, int) else ""]
    security = [", ".join(of("security_modules") or ())]
    security += [f"lockdown {of('lockdown')}" if of("lockdown") else ""]
    security += [f"kernel tainted {of('tainted')}" if of("tainted") else ""]
    recorder = f"{one['collector']}, kcap {of('kcap')}" if of("kcap") else one["collector"]
    unavailable = of("baseline_unavailable")
    return [
        ("host", one["host"]),
        ("kernel", kernel),
        ("distribution", of("distribution")),
        ("hardware", ", ".join(filter(None, hardware))),
        ("machine id", of("machine_id")),
        ("boot id", one["boot_id"]),
        ("boot", common.utc(_booted(one["clocks"])) if one["clocks"] else None),
        ("boot options", of("kernel_command_line")),
        ("time zone", _zone(of("time_zone"), of("utc_offset_s"))),
        ("security", "; ".join(filter(None, security))),
        ("ld.so.preload", _preload(one)),
        ("recorder", f"{recorder} ({one['id']})"),
        ("command", of("command_line")),
        *((name, of(name)) for name in ("selection", "filter", "case", "operator", "note")),
        *(
            ("not readable", f"{table.replace('_', ' ')}: {why}")
            for table, why in sorted((unavailable if isinstance(unavailable, dict) else {}).items())
        ),
    ]


def _booted(clocks: Sequence[Sequence[int]]) -> int:
    realtime_ns, boottime_ns = clocks[0]
    return realtime_ns - boottime_ns


def _zone(name: object, offset_s: object) -> str | None:
    if not isinstance(offset_s, int):
        return None if name is None else str(name)
    sign, minutes = "-" if offset_s < 0 else "+", abs(offset_s) // 60
    return f"{name or 'unnamed'} (UTC{sign}{minutes // 60:02}:{minutes % 60:02})"


def _preload(one: Mapping[str, Any]) -> str | None:
    """What the dynamic linker loads into every program."""
    details = one["details"]
    if "ld_so_preload" in details:
        return " ".join(str(details["ld_so_preload"]).split()) or "an empty file"
    return "none" if "machine_id" in details or "distribution" in details else None


def _counts(tables: Mapping[str, _Rows]) -> list[tuple[str, str | None]]:
    """How many there were of what is not listed."""
    running = [row for row in tables.get("processes", ()) if not row.get("exited")]
    parts = [common.counted(len(running), "process")] if running else []
    for name, one in (("threads", "thread"), ("fds", "descriptor"), ("sockets", "socket")):
        if tables.get(name):
            parts.append(common.counted(len(tables[name]), one))
    inside = {row["container_id"] for row in running if row.get("container_id")}
    parts += [common.counted(len(inside), "container")] if inside else []
    spaces = tables.get("namespaces", ())
    kinds = sorted({row["type"] for row in spaces})
    several = [(kind, sum(row["type"] == kind for row in spaces)) for kind in kinds]
    listed = ", ".join(f"{count} {kind}" for kind, count in several)
    return [("at the start", ", ".join(parts)), ("namespaces", listed)]


_Section = tuple[str, Sequence[str], list[list[Any]]]


def _sections(tables: Mapping[str, _Rows]) -> list[_Section]:
    """Titles, headings and rows of what is listed."""

    def rows(name: str, *columns: str) -> list[list[Any]]:
        return [[row.get(column) for column in columns] for row in tables.get(name, ())]

    names = {row.get("uid"): row.get("name") for row in reversed(tables.get("users", []))}
    listening = [
        [
            row.get("protocol") if row["family"] != "unix" else f"unix {row.get('protocol')}",
            _address(row),
            names.get(row.get("uid"), row.get("uid")),
            row.get("pid"),
            row.get("process_name"),
        ]
        for row in tables.get("sockets", ())
        if _listens(row)
    ]
    return [
        ("listening sockets", ("protocol", "address", "user", "pid", "process"), listening),
        (
            "interfaces",
            ("index", "name", "type", "mac", "flags", "addresses"),
            rows("interfaces", "ifindex", "name", "type", "mac", "flags", "addresses"),
        ),
        (
            "users",
            ("uid", "gid", "name", "home", "shell"),
            rows("users", "uid", "gid", "name", "home", "shell"),
        ),
        (
            "mounts",
            ("namespace", "path", "type", "source", "options"),
            rows("mounts", "mount_ns", "path", "fs_type", "source", "options"),
        ),
        (
            "kernel modules",
            ("name", "size", "used by", "taints"),
            rows("modules", "name", "size", "used_by", "taints"),
        ),
        (
            "BPF programs",
            ("id", "type", "name", "tag", "uid"),
            rows("bpf_programs", "id", "type", "name", "tag", "uid"),
        ),
    ]


def _listens(row: Mapping[str, Any]) -> bool:
    """Whether a socket waits for others; of UDP one that is bound and has no other end."""
    if row.get("state") == "listen":
        return True
    datagrams = row.get("protocol") in {"udp", "udplite", "raw", "icmp"}
    return datagrams and not row.get("remote_port") and "local_addr" in row


def _address(row: Mapping[str, Any]) -> str | None:
    if "local_addr" not in row:
        return row.get("path")
    host = f"[{row['local_addr']}]" if row["family"] == "ipv6" else row["local_addr"]
    return f"{host}:{row.get('local_port')}"


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table: numbers to the right, all else to the left; no column without a value."""
    kept = [at for at in range(len(columns)) if any(row[at] is not None for row in rows)]
    columns = [columns[at] for at in kept]
    rows = [[row[at] for at in kept] for row in rows]
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    numeric = [all(isinstance(row[at], int | None) for row in rows) for at in range(len(columns))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]


def _cell(value: object) -> str:
    from kcap.model.text import printable

    if value is None:
        return "-"
    return printable(" ".join(map(str, value)) if isinstance(value, list) else str(value))
