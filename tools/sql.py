"""A DuckDB that sees captures and nothing else."""

from __future__ import annotations

import contextlib
import importlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.dataset import CaptureDataset
from kcap.errors import KcapError, MissingExtraError
from kcap.format.reader import CaptureReader
from kcap.model import naming
from kcap.model.batch import Batch, concat
from kcap.model.side import Loss
from kcap.replay.pipeline import Pipeline
from kcap.selection import Pass
from kcap.tools import host

if TYPE_CHECKING:
    from kcap.capture import Capture
    from kcap.filter import Filter
    from kcap.model.stream import Source

EVENTS: Final = "events"
ALL_ROWS: Final = "all_rows"
HOSTS: Final = "host"
"""The schema of the tables that say what the recorded hosts were like."""

_BATCH_ROWS: Final = 10_000
_OF_HOSTS: Final = re.compile(rf"\b{HOSTS}\"?\s*\.", re.IGNORECASE)
_PASSING: Final = "kcap_passing"
_INTERRUPTED: Final = "Query interrupted"
_LISTING: Final = re.compile(
    r"\b(show|describe|summarize|pragma|information_schema|duckdb_\w+|pg_\w+|sqlite_\w+)\b",
    re.IGNORECASE,
)
_QUERIES: Final = frozenset({"EXPLAIN", "MULTI", "SELECT"})
"""Statements that read: PIVOT is several in one."""

_CONFIG: Final = {
    "allow_community_extensions": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "preserve_insertion_order": True,
    "python_enable_replacements": False,
    "threads": 1,  # the same rows in the same order every time
}
_LOCK: Final = ("TimeZone = 'UTC'", "enable_external_access = false", "lock_configuration = true")

_HINTS: Final = {
    "BinderException": "kcap query 'DESCRIBE events' CAPTURE lists the columns",
    "CatalogException": "kcap query 'SHOW TABLES' CAPTURE lists the tables",
    "OutOfMemoryException": "give it more with --memory, or select fewer columns",
    "ParserException": "the SQL is DuckDB's; a name with odd characters stands in double quotes",
    "PermissionException": "a query reads the captures and nothing else",
}


class Session:
    """Tables over captures, for one query or more.

    Both the captures and the query may come from somebody else: DuckDB is locked before it sees
    the query, and reaches neither files nor network nor extensions.
    """

    def __init__(
        self,
        captures: Sequence[Capture],
        *,
        start: int | None,
        end: int | None,
        memory: int,
        where: Filter | None = None,
    ) -> None:
        """Set up DuckDB.

        Args:
            captures: What it sees.
            start: Only events at or after this time, ns.
            end: Only events before this time, ns.
            memory: Bytes that it may take; beyond that it uses a private temporary folder.
            where: Only events for which this is true.

        Raises:
            MissingExtraError: DuckDB is not installed.
        """
        self._duckdb = _duckdb()
        self._captures, self._start, self._end = tuple(captures), start, end
        self._dataset = CaptureDataset(captures, start=start, end=end, chosen=where)
        self._types = {t: None for c in captures for t in sorted(c.info.types or ())}
        self._stack = contextlib.ExitStack()
        spill = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kcap-"))
        config = {**_CONFIG, "memory_limit": f"{memory}B", "temp_directory": spill}
        with self._naming():
            self._connection: Any = self._duckdb.connect(":memory:", config=config)
            for setting in _LOCK:
                self._connection.execute(f"SET {setting}")
        self._stack.callback(self._connection.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, sql: str) -> pa.RecordBatchReader:
        """Run a query.

        Args:
            sql: DuckDB's SQL; of several statements the last one's rows are given.

        Returns:
            Its rows, as they are computed.

        Raises:
            KcapError: DuckDB refuses the query, or fails.
        """
        connection = self._connection
        with self._naming():
            self._check(sql)
            connection.register(ALL_ROWS, self._dataset)
            stateful = "kind" in self._dataset.schema.names
            condition = "kind IS DISTINCT FROM 'state'" if stateful else "true"
            connection.execute(f"CREATE VIEW {EVENTS} AS FROM {ALL_ROWS} WHERE {condition}")
            for name, view in self._type_views(sql):
                connection.execute(f"CREATE VIEW {_quoted(name)} AS {view}")
            if _OF_HOSTS.search(sql) or _LISTING.search(sql):
                self._add_hosts()
            # What execute() gives would be in memory as a whole.
            reader: pa.RecordBatchReader = connection.sql(sql).to_arrow_reader(_BATCH_ROWS)
        return reader

    def _add_hosts(self) -> None:
        """Add what the hosts were like: the tables of the captures' snapshots, under a schema."""
        found: dict[str, list[Batch]] = {}
        for capture in self._captures:
            reader = capture.source
            index = reader.index() if isinstance(reader, CaptureReader) else None
            if not isinstance(reader, CaptureReader) or index is None:
                continue
            for said in host.states(reader, index):
                if isinstance(said, Loss):
                    capture.losses.append(said)
                    continue
                for name, table in said.tables.items():
                    found.setdefault(name, []).append(table)
        self._connection.execute(f"CREATE SCHEMA {HOSTS}")
        for name, parts in sorted(found.items()):
            whole = concat(parts)
            columns = {column: whole.array(column) for column in whole.columns}
            self._connection.register(_PASSING, pa.table(columns))
            self._connection.execute(f"CREATE TABLE {HOSTS}.{_quoted(name)} AS FROM {_PASSING}")
            self._connection.unregister(_PASSING)

    def _check(self, sql: str) -> None:
        """Refuse what is no query. DuckDB's lock holds without it, but for an empty folder."""
        statements = self._connection.extract_statements(sql)
        if not statements:
            raise KcapError("the query is empty", hint="kcap query 'FROM events' CAPTURE")
        for statement in statements:
            if statement.type.name not in _QUERIES:
                raise KcapError(
                    f"a statement of type {statement.type.name} is no query",
                    expected="SELECT, FROM, WITH, DESCRIBE, SHOW, SUMMARIZE, PIVOT or EXPLAIN",
                    hint=_HINTS["PermissionException"],
                )

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Give DuckDB's errors the form of ours."""
        try:
            yield
        except self._duckdb.Error as e:
            raise failure(e) from e
        except RuntimeError as e:
            if _INTERRUPTED in str(e):  # how it says that Ctrl-C was pressed
                raise KeyboardInterrupt from None
            raise

    def _type_views(self, sql: str) -> Iterator[tuple[str, str]]:
        """The views of event types that a query may need: name and definition."""
        types: dict[str, list[str]] = {}
        for name in self._types:
            # To SQL, names that differ in the case of ASCII letters are one.
            if _lower(name) not in (EVENTS, ALL_ROWS) and name and "\0" not in name:
                types.setdefault(_lower(name), []).append(name)
        if not _LISTING.search(sql):
            named = self._named(sql)
            types = {key: names for key, names in types.items() if named is None or key in named}
        if not types:
            return
        columns = self._columns_of({name for names in types.values() for name in names})
        # DuckDB gives another name to a column whose name differs from another's in case only.
        described = self._connection.execute(f"DESCRIBE {EVENTS}").fetchall()
        in_sql = dict(zip(self._dataset.schema.names, (row[0] for row in described), strict=True))
        for names in types.values():
            own = {column for name in names for column in columns.get(name, ())}
            chosen = ", ".join(
                _quoted(in_sql[c]) for c in in_sql if c in own or not _is_argument(c)
            )
            literals = ", ".join(_literal(name) for name in names)
            # Names and values of a capture are quoted; the query itself is run by the user.
            yield names[0], f"SELECT {chosen} FROM {EVENTS} WHERE event IN ({literals})"  # noqa: S608

    def _named(self, sql: str) -> set[str] | None:
        """Tables that a query names and that are not there yet; None where that can't be told."""
        try:
            return {_lower(name) for name in self._connection.get_table_names(sql)}
        except self._duckdb.Error:
            return None  # several statements, or an error that running it will report

    def _columns_of(self, types: set[str]) -> Mapping[str, set[str]]:
        """Event type to those of its arguments that some event has."""
        found = _ArgumentsByType()
        for capture in self._captures:
            names = [name for name in capture.columns if _is_argument(name)]
            condition = pc.field("event").isin(sorted(types))
            wanted = capture.wanted(["event", *names], condition, self._start, self._end)
            Pipeline(cast("Source", Pass(capture, wanted)), [found]).run()
        return found.columns


class _ArgumentsByType:
    """A sink that notes which events have which arguments."""

    def __init__(self) -> None:
        self.columns: dict[str, set[str]] = {}

    def write(self, batch: Batch) -> None:
        event = batch.get("event")
        if event is None:
            return
        names = event.values.dictionary.to_pylist()
        codes = np.full(batch.rows, len(names), np.int32)
        codes[slice(None) if event.rows is None else event.rows] = event.codes()
        for name, column in batch.columns.items():
            having = codes if column.rows is None else codes[column.rows]
            for code in np.flatnonzero(np.bincount(having, minlength=len(names))[: len(names)]):
                self.columns.setdefault(names[code], set()).add(name)

    def close(self) -> None:
        """Nothing is open."""


def failure(error: Exception) -> KcapError:
    """An error of DuckDB's as one of ours.

    Args:
        error: The error.

    Returns:
        What it says, in a line, with a hint.
    """
    text = re.split(r"\n\s*\n?LINE \d+:", str(error))[0]
    text = re.sub(r"^[A-Z][A-Za-z ]+ Error: ", "", text)
    text = " ".join(text.split())
    return KcapError(f"the query failed: {text}", hint=_HINTS.get(type(error).__name__))


def _duckdb() -> ModuleType:
    try:
        return importlib.import_module("duckdb")
    except ImportError as e:
        raise MissingExtraError("DuckDB is not installed", hint="pip install 'kcap[sql]'") from e


def _is_argument(column: str) -> bool:
    prefixes = (naming.ARGUMENT, naming.EXTENSION)
    base = naming.parts(column)[0]
    return base in prefixes or base.startswith(tuple(f"{p}_" for p in prefixes))


def _lower(name: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in name)


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
