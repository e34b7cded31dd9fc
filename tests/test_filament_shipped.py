"""The filaments that come with kcap: their tables are committed, and what a database says, too."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb
import pyarrow as pa
import pytest
import shipped_support
from cli_support import run
from shipped_support import Seen, seen

import kcap
from kcap.filament.table import Table

EXPECTED: Final = Path(__file__).parent / "expected" / "filaments"

FACTS: Final = {
    **dict.fromkeys(("ord", "pid", "retval"), "BIGINT"),
    **dict.fromkeys(("arg_dport", "arg_flags", "arg_l4_proto", "arg_size", "arg_sport"), "BIGINT"),
    **dict.fromkeys(("action", "category", "event", "fd_name", "fd_type", "kind"), "VARCHAR"),
    **dict.fromkeys(("process_key", "process_name", "status"), "VARCHAR"),
    **dict.fromkeys(("arg_addr__json", "arg_dest_addr", "arg_dip"), "VARCHAR"),
    **dict.fromkeys(("arg_file_name", "arg_file_path", "arg_filename"), "VARCHAR"),
    **dict.fromkeys(("arg_key_name", "arg_key_path", "arg_linkpath", "arg_name"), "VARCHAR"),
    **dict.fromkeys(("arg_newpath", "arg_oldpath", "arg_path", "arg_pathname"), "VARCHAR"),
    **dict.fromkeys(("arg_remote_addr", "arg_sip", "arg_src_addr"), "VARCHAR"),
}
"""Columns that the queries may name, and their types."""

VIEWS: Final = """
CREATE MACRO spelled(ip, port) AS
    CASE WHEN ip LIKE '%:%' THEN '[' || ip || ']' ELSE ip END || coalesce(':' || port, '');
CREATE MACRO socket(address) AS spelled(
    coalesce(address ->> '$.sin_addr', address ->> '$.sin6_addr'),
    coalesce(address ->> '$.sin_port', address ->> '$.sin6_port'));
CREATE VIEW happened AS SELECT *,
    coalesce(process_name, '') AS process,
    CASE WHEN fd_type IN ('file', 'directory') THEN fd_name END AS opened,
    CASE WHEN fd_type IN ('ipv4', 'ipv6') THEN fd_name END AS connected,
    coalesce(arg_file_path, arg_file_name, opened, arg_pathname, arg_filename, arg_name, arg_path)
        AS path,
    coalesce(retval < 0, false) AS failed
FROM facts WHERE kind <> 'state';
"""
"""What events have in common; nothing of it knows what a filament is."""


class Case(NamedTuple):
    """A filament, and the query that gives its table."""

    spec: str
    select: str
    where: str
    """``CREAT`` stands for the number of O_CREAT in the capture."""
    limit: int = 1000
    alerts: str = ""
    """Of all that it counts, what there is one alert for."""

    @property
    def sql(self) -> str:
        """The table."""
        return (
            f"SELECT {self.select} FROM happened WHERE {self.where} "
            f"GROUP BY ALL ORDER BY times DESC, min(ord) LIMIT {self.limit}"
        )

    @property
    def raised(self) -> str:
        """How many alerts there are."""
        if not self.alerts:
            return "SELECT 0"
        return f"SELECT count(DISTINCT ({self.alerts})) FROM happened WHERE {self.where}"


MADE = """(action = 'file_create' OR action = 'file_open' AND arg_flags & CREAT <> 0)
    AND NOT failed AND path IS NOT NULL"""
KEY = "coalesce(arg_key_path, arg_key_name, path, arg_linkpath, arg_oldpath)"
PEER = """CASE WHEN arg_dip IS NOT NULL AND event = 'Recv' AND arg_l4_proto = 2
        THEN spelled(arg_sip, arg_sport)
    WHEN arg_dip IS NOT NULL THEN spelled(arg_dip, arg_dport)
    ELSE coalesce(socket(arg_dest_addr), socket(arg_src_addr), socket(arg_remote_addr),
        socket(arg_addr__json), connected) END"""
TALKS = f"action IN ('net_connect', 'net_accept', 'net_send', 'net_recv') AND {PEER} IS NOT NULL"
SUSPECTS = "lower(process) IN ('notepad.exe', 'calc.exe', 'cat', 'awk', 'ls', 'sed')"
CHANGES = """(action IN ('reg_set_value', 'file_create', 'file_write', 'file_rename', 'file_link')
    OR action = 'file_open' AND arg_flags & (3 | CREAT) <> 0) AND NOT failed
    AND lower(coalesce(status, 'success')) = 'success'"""
TARGET = "coalesce(arg_key_path, arg_key_name, arg_newpath, arg_linkpath, path)"
PLACE = f"""CASE
    WHEN contains({TARGET}, '\\CurrentVersion\\Run\\') THEN 'Run key'
    WHEN regexp_matches({TARGET}, '\\\\Services\\\\[^\\\\]+\\\\ImagePath$') THEN 'service'
    WHEN contains({TARGET}, '\\Start Menu\\Programs\\Startup\\') THEN 'startup folder'
    WHEN {TARGET} LIKE '/etc/cron%' THEN 'scheduled job'
    WHEN {TARGET} LIKE '/etc/systemd/system/%' THEN 'systemd unit'
    WHEN {TARGET} LIKE '%/.ssh/authorized_keys' THEN 'login key'
    WHEN {TARGET} LIKE '/etc/rc_.d/%' THEN 'boot script'
    WHEN {TARGET} LIKE '%/.bashrc' THEN 'login script' END"""
BAM = f"CASE WHEN contains({TARGET}, '\\Services\\bam\\') THEN 'named place' END"
WORTH = """(lower(process) IN ('scp', 'sftp-server')
    OR regexp_matches(lower(path), '\\.(exe|dll|lnk|sh|py|zip|so|gz)$'))"""
TOOLS = "lower(process) IN ('teamviewer.exe', 'teamviewerd', 'scp', 'sftp-server')"
WHO = "coalesce(process_key, pid::VARCHAR)"


def packets(name: str, action: str, call: str) -> Case:
    """Packets in one direction."""
    where = f"""(action = '{action}' OR action = '{call}' AND connected IS NOT NULL)
        AND coalesce(retval > 0, true) AND {PEER} IS NOT NULL"""
    select = f"{PEER} AS peer, count(*) AS times, sum(coalesce(retval, arg_size, 0))"
    return Case(name, select, where, 25)


def talking(spec: str, names: str) -> Case:
    """Programs that talk to the network."""
    select = f"process, pid, event, {PEER} AS peer, count(*) AS times"
    return Case(spec, select, f"{TALKS} AND {names}", alerts=f"{WHO}, process, {PEER}")


def changing(spec: str, place: str) -> Case:
    """Places that are changed."""
    select = f"{place} AS place, {TARGET} AS target, process, pid, event, count(*) AS times"
    return Case(spec, select, f"{CHANGES} AND {place} IS NOT NULL", alerts=f"{WHO}, {TARGET}")


CASES: Final = {
    case.spec: case
    for case in (
        Case("watch_files", "path, process, count(*) AS times", MADE, 50),
        Case(
            "top_keys",
            f"{KEY} AS key, count(*) AS times",
            f"(category = 'registry' OR {KEY} LIKE '/etc/%')",
            25,
        ),
        packets("top_in_packets", "net_recv", "file_read"),
        packets("top_out_packets", "net_send", "file_write"),
        talking("fishy_netio", SUSPECTS),
        changing("registry_persistence", PLACE),
        Case(
            "teamviewer_remote_file_copy",
            "process, pid, path, count(*) AS times",
            f"{MADE} AND {WORTH} AND {TOOLS}",
            alerts="pid, path",
        ),
    )
}

FOUR: Final = [CASES[n] for n in ("watch_files", "top_keys", "top_in_packets", "top_out_packets")]
REAL: Final = {
    "fibratus": ("fibratus/v1.6.0-test.kcap", 64, [
        *FOUR,
        talking("fishy_netio,svchost.exe", "lower(process) = 'svchost.exe'"),
        changing("registry_persistence,\\Services\\bam\\", BAM),
    ]),
    "nginx": (
        "scap/nginx.scap", 4, [*FOUR, talking("fishy_netio,nginx", "process = 'nginx'")]
    ),
    "alpine": ("scap/alpine.scap", 4, FOUR[:2]),
    "tracee": (
        "tracee/tracee_event_dump_2022-10.jsonl.gz", 64,
        [CASES["top_keys"], talking("fishy_netio,chronyd", "process = 'chronyd'")],
    ),
}  # fmt: skip
"""Real captures: the file, the number of O_CREAT, and the filaments that find something there."""


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What happened on a Windows host and on a Linux one."""
    folder = tmp_path_factory.mktemp("captures")
    return {
        "windows": shipped_support.windows(folder),
        "linux": shipped_support.linux(folder),
    }


@pytest.fixture(scope="module")
def ran(captures: dict[str, Path]) -> dict[str, dict[str, Seen]]:
    """What the filaments made of it, all of them in one run."""
    return {name: seen(path, *CASES) for name, path in captures.items()}


@cache
def facts(path: Path) -> pa.Table:
    """What a capture holds of `FACTS`."""
    with kcap.open(path) as capture:
        dataset = capture.dataset()
        there = set(dataset.schema.names)
        return dataset.scanner([name for name in FACTS if name in there]).to_table()


def rows(path: Path, sql: str, creat: int = 64) -> list[tuple[Any, ...]]:
    """Ask a database about a capture."""
    with duckdb.connect() as connection:
        events = facts(path)
        connection.register("events", events)
        there = set(events.column_names)
        columns = ", ".join(
            f"{name if name in there else 'NULL'}::{kind} AS {name}" for name, kind in FACTS.items()
        )
        connection.execute(f"CREATE VIEW facts AS SELECT {columns} FROM events")
        connection.execute(VIEWS)
        return connection.execute(sql.replace("CREAT", str(creat))).fetchall()


def cells(drawn: Table) -> list[list[str]]:
    """The rows of a table as text."""
    return [list(row) for row in drawn.rows]


def committed(name: str, found: str) -> str:
    """The committed table; written where the variable says so, and there is none to compare."""
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("KCAP_WRITE_EXPECTED"):
        path.write_text(found, "utf-8")
    return path.read_text("utf-8")


def check(name: str, path: Path, case: Case, did: Seen, creat: int = 64) -> None:
    """A table is the committed one and what the database says."""
    said = [[str(value) for value in row] for row in rows(path, case.sql, creat)]
    assert said, "an empty table shows nothing"
    assert cells(did.tables[-1]) == said
    assert did.text == committed(name, did.text)
    assert len(did.alerts) == rows(path, case.raised, creat)[0][0]


@pytest.mark.parametrize("host", ["windows", "linux"])
@pytest.mark.parametrize("name", CASES)
def test_tables_are_what_a_database_says(
    host: str, name: str, captures: dict[str, Path], ran: dict[str, dict[str, Seen]]
) -> None:
    """Of Windows and of Linux events, the last table is the committed one and a query's result."""
    check(f"{name}.{host}", captures[host], CASES[name], ran[host][name])


@pytest.mark.parametrize("host", ["windows", "linux"])
@pytest.mark.parametrize("name", CASES)
def test_a_table_without_one_event_is_another(
    host: str, name: str, captures: dict[str, Path], ran: dict[str, dict[str, Seen]]
) -> None:
    """Where a single event is dropped, the table is not the committed one any more."""
    path, case = captures[host], CASES[name]
    counted = rows(path, f"SELECT ord FROM happened WHERE {case.where} ORDER BY ord DESC")

    did = seen(path, name, without=counted[0][0])[name]

    assert did.text != committed(f"{name}.{host}", ran[host][name].text)


@pytest.mark.parametrize("host", ["windows", "linux"])
def test_the_command_ends_with_the_committed_table(host: str, captures: dict[str, Path]) -> None:
    """``kcap replay -f`` prints what the filament draws; the last table has all of the capture."""
    done = run("replay", "-f", "registry_persistence", captures[host])

    assert done.exit_code == 0, done.stderr
    last = done.stdout.split("\n\n")[-1]
    assert last == (EXPECTED / f"registry_persistence.{host}.txt").read_text("utf-8")


@pytest.mark.parametrize(
    "capture",
    [pytest.param(n, marks=pytest.mark.long) if n == "fibratus" else n for n in REAL],
)
def test_tables_of_real_captures_are_what_a_database_says(
    capture: str, data: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of what happened on hosts of others, too."""
    name, creat, cases = REAL[capture]
    path = tmp_path / "imported.kcap"
    assert run("import", data(name), "-o", path).exit_code == 0
    found = seen(path, *(case.spec for case in cases))

    for case in cases:
        check(f"{case.spec.partition(',')[0]}.{capture}", path, case, found[case.spec], creat)
