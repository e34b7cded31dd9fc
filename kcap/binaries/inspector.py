"""What events have of artifacts, as columns: for filters and rules alone, nobody stores them.

An event has what its own artifact says; else that of the file its ``exe_sha256`` names; else that
of what was taken last, up to this event, at the path that its process runs from. What was recorded
with the event (as Fibratus does) counts before all of that.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap import plugins
from kcap.binaries import elf, parts, pe
from kcap.binaries.library import Entry, Library
from kcap.detect.rule import Problem, Scanner
from kcap.errors import KcapError
from kcap.filter.functions import ARTIFACTS
from kcap.filter.syntax import FieldRef
from kcap.model import naming
from kcap.model.batch import Batch, Column
from kcap.model.classes import I64_MAX, I64_MIN, TypeClass
from kcap.model.side import Loss

if TYPE_CHECKING:
    from kcap.model.stream import Source

_PE: Final[Mapping[str, TypeClass]] = {
    "address.base": TypeClass.I64,
    "address.entrypoint": TypeClass.I64,
    "anomalies": TypeClass.LIST,
    "cert.after": TypeClass.I64,
    "cert.before": TypeClass.I64,
    "cert.issuer": TypeClass.STR,
    "cert.serial": TypeClass.STR,
    "cert.subject": TypeClass.STR,
    "imphash": TypeClass.STR,
    "imports": TypeClass.LIST,
    "is_dll": TypeClass.BOOL,
    "is_dotnet": TypeClass.BOOL,
    "is_driver": TypeClass.BOOL,
    "is_exec": TypeClass.BOOL,
    "is_signed": TypeClass.BOOL,
    "link_time": TypeClass.I64,
    "nsections": TypeClass.I64,
    "nsymbols": TypeClass.I64,
    "resources": TypeClass.JSON,
    "sections": TypeClass.JSON,
    "symbols": TypeClass.LIST,
}
_ELF: Final[Mapping[str, TypeClass]] = {
    "bits": TypeClass.I64,
    "build_id": TypeClass.STR,
    "entrypoint": TypeClass.I64,
    "interpreter": TypeClass.STR,
    "is_static": TypeClass.BOOL,
    "is_stripped": TypeClass.BOOL,
    "machine": TypeClass.STR,
    "needed": TypeClass.LIST,
    "nsections": TypeClass.I64,
    "nsymbols": TypeClass.I64,
    "sections": TypeClass.JSON,
    "soname": TypeClass.STR,
    "type": TypeClass.STR,
}
_CONTENTS: Final = 1024
"""Different contents of which it is remembered what they say."""

Codes = npt.NDArray[np.int32]


def _column(form: str, fact: str, cls: TypeClass) -> str:
    return naming.column_name(naming.extension(f"{form}.{fact}"), cls, None)


_FACTS: Final = {
    _column(form, fact, cls): (form, fact, cls)
    for form, facts in (("pe", _PE), ("elf", _ELF))
    for fact, cls in facts.items()
}
DUMPS: Final = _column("artifact", "minidumps", TypeClass.LIST)
"""The paths of artifacts that are memory dumps of Windows: what ``is_minidump()`` looks in."""

YARA: Final = _column("artifact", "yara", TypeClass.JSON)
"""By the text of rules the paths of artifacts that they match: what ``yara()`` looks in."""

ASKED: Final = frozenset({DUMPS, YARA})
"""What is given to whom asks for it by a function of filters."""

COLUMNS: Final = frozenset(_FACTS) | ASKED
"""Every column that artifacts give."""

_EXE_SHA256: Final = naming.argument("exe_sha256")
_MINIDUMP: Final = b"MDMP"
_LOADER: Final = "interpreter"
"""The role of what the kernel ran to start a program: its loader, and what runs foreign ones."""

_READERS: Final = {"pe": (pe.sniff, pe.facts), "elf": (elf.sniff, elf.facts)}


class Inspector:
    """Adds to batches what artifacts say of their events.

    Args:
        wanted: The columns that somebody asks for; those of `COLUMNS` are given.
        scanners: What looks for YARA rules that are asked for, by their text (`scanner`).

    Example:
        >>> Inspector({"pid"}).update(Batch(0, {})).rows
        0
    """

    def __init__(
        self, wanted: Collection[str], scanners: Mapping[str, Scanner] | None = None
    ) -> None:
        self.library = Library()
        self._scanners = scanners or {}
        self._matches: dict[tuple[str, object], bool] = {}
        self._wanted = sorted(COLUMNS & set(wanted))
        self._forms = sorted({_FACTS[name][0] for name in self._wanted if name in _FACTS})
        self._known: OrderedDict[object, dict[str, dict[str, Any]]] = OrderedDict()
        self._dumps: dict[object, bool] = {}
        self._unreadable: dict[str, None] = {}

    @property
    def wanted(self) -> bool:
        """Whether it adds any column."""
        return bool(self._wanted)

    @property
    def losses(self) -> list[Loss]:
        """Artifacts that could not be looked at."""
        unread = [Loss("damaged", 0, reason) for reason in self._unreadable]
        return [*self.library.all_losses, *unread]

    def bind(self, sources: Iterable[Source]) -> None:
        """Take notice of captures; see `Library.bind`."""
        self.library.bind(sources)

    def anew(self) -> Inspector:
        """What adds the same columns, and knows no artifacts yet."""
        return Inspector(self._wanted, self._scanners)

    def update(self, batch: Batch) -> Batch:
        """Add the columns.

        Args:
            batch: The next events of the stream.

        Returns:
            It, with those of the columns that are wanted and not there already.
        """
        self.library.note(batch.before)
        if not self._wanted or not batch.rows:
            return batch
        found: dict[str, Column] = {}
        for form in self._forms:
            facts, codes = self._told(batch, form)
            if facts:
                found |= self._made(form, facts, codes)
        if DUMPS in self._wanted:
            found |= self._by_origin(batch, DUMPS, TypeClass.LIST, self._dump_paths)
        if YARA in self._wanted:
            found |= self._by_origin(batch, YARA, TypeClass.JSON, self._matched_paths)
        return batch.adding({n: c for n, c in found.items() if n not in batch.columns})

    # which artifact a row has

    def _told(self, batch: Batch, form: str) -> tuple[list[dict[str, Any]], Codes]:
        """What artifacts of a format say, and which of them each row has, -1 for none."""
        codes = np.full(batch.rows, -1, np.int32)
        facts: list[dict[str, Any]] = []
        numbers: dict[object, int] = {}

        def number(entry: Entry | None) -> int:
            if entry is None:
                return -1
            if entry.key not in numbers:
                said = self._facts(entry, form)
                numbers[entry.key] = len(facts) if said else -1
                facts.extend([said] if said else [])
            return numbers[entry.key]

        places = list(_origins(batch))
        mine: list[tuple[int, list[Entry]]] = []
        ords = batch.numpy("ord", I64_MIN)
        for origin, rows in places:
            own = self.library.events(origin)
            if not own:
                continue
            known = np.fromiter(own, np.int64, len(own))
            with_own = rows[np.isin(ords[rows], known)].tolist()
            mine += [(row, own[int(ords[row])]) for row in with_own]
        _by_event(mine, codes, number, loaders=False)
        self._by_hash(batch, codes, number)
        # Of a program that was taken before the loader alone may be taken at its execution.
        _by_event(mine, codes, number, loaders=True)
        for origin, rows in places:
            self._by_path(batch, origin, rows, ords, codes, number)
        return facts, codes

    def _by_hash(self, batch: Batch, codes: Codes, number: Any) -> None:  # noqa: ANN401
        column = batch.get(_EXE_SHA256)
        if column is None or column.cls is not TypeClass.STR or not self.library.by_sha256:
            return
        entries = column.values.dictionary.to_pylist()
        each = [number(self.library.by_sha256.get(sha256)) for sha256 in entries]
        found = np.array([*each, -1], np.int32)[column.codes()]
        rows = np.arange(batch.rows) if column.rows is None else column.rows
        free = codes[rows] < 0
        codes[rows[free]] = found[free]

    def _by_path(
        self,
        batch: Batch,
        origin: str,
        rows: npt.NDArray[np.int64],
        ords: npt.NDArray[np.int64],
        codes: Codes,
        number: Any,  # noqa: ANN401
    ) -> None:
        column = batch.get("exe")
        if column is None or column.cls is not TypeClass.STR:
            return
        texts = column.values.dictionary.to_pylist()
        taken = {code: self.library.at(origin, text) for code, text in enumerate(texts)}
        path_of = np.full(batch.rows, -1, np.int32)
        path_of[slice(None) if column.rows is None else column.rows] = column.codes()
        for code, entries in taken.items():
            mine = rows[(path_of[rows] == code) & (codes[rows] < 0)] if entries else rows[:0]
            if not len(mine):
                continue
            since = np.array([ord_ for ord_, _ in entries], np.int64)
            at = np.searchsorted(since, ords[mine], "right") - 1
            for which in np.unique(at[at >= 0]).tolist():
                codes[mine[at == which]] = number(entries[which][1])

    # what an artifact says

    def _facts(self, entry: Entry, form: str) -> dict[str, Any]:
        """What an artifact of a format says; nothing of one of another format."""
        known = self._known.get(entry.key)
        if known is None:
            known = self._known[entry.key] = self._looked(entry)
            if len(self._known) > _CONTENTS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(entry.key)
        return known.get(form, {})

    def _looked(self, entry: Entry) -> dict[str, dict[str, Any]]:
        try:
            head = next(iter(entry.parts()), b"")
            # A header of PE may stand anywhere behind its first two bytes.
            if head[:2] != b"MZ" and not elf.sniff(head):
                return {}
            content = entry.content()
        except KcapError as e:
            self._unreadable[f"an artifact was not looked at: {e}"] = None
            return {}
        found = {}
        for form in self._forms:
            sniff, facts = _READERS[form]
            if sniff(content):
                try:
                    found[form] = facts(content)
                except parts.MalformedError:
                    continue  # it is no such file, so it says nothing
        return found

    # columns

    def _made(
        self, form: str, facts: Sequence[Mapping[str, Any]], codes: Codes
    ) -> dict[str, Column]:
        found = {}
        for name in self._wanted:
            of, fact, cls = _FACTS.get(name, ("", "", TypeClass.STR))
            if of != form:
                continue
            values = [_fitted(said.get(fact), cls) for said in facts]
            present = np.array([value is not None for value in values] + [False])
            rows = np.flatnonzero(present[codes]).astype(np.int32)
            if len(rows):
                array = _spread(values, codes[rows], cls)
                found[name] = Column(cls, array, None if len(rows) == len(codes) else rows)
        return found

    def _by_origin(
        self, batch: Batch, name: str, cls: TypeClass, told: Callable[[str], Any]
    ) -> dict[str, Column]:
        """Of each row what its recording as a whole has."""
        codes = np.full(batch.rows, -1, np.int32)
        values: list[Any] = []
        for origin, rows in _origins(batch):
            value = told(origin)
            if value:
                codes[rows] = len(values)
                values.append(_fitted(value, cls))
        at = np.flatnonzero(codes >= 0).astype(np.int32)
        if not len(at):
            return {}
        array = _spread(values, codes[at], cls)
        return {name: Column(cls, array, None if len(at) == batch.rows else at)}

    def _dump_paths(self, origin: str) -> list[str]:
        """The paths of all memory dumps of a recording."""
        return self._paths(origin, self._is_dump)

    def _matched_paths(self, origin: str) -> dict[str, list[str]]:
        """By the text of rules the paths of what they match in a recording."""
        return {text: self._paths(origin, partial(self._is_match, text)) for text in self._scanners}

    def _paths(self, origin: str, holds: Callable[[Entry], bool]) -> list[str]:
        found = self.library.paths(origin)
        return sorted(p for p in found if any(holds(one) for _, one in self.library.at(origin, p)))

    def _is_match(self, text: str, entry: Entry) -> bool:
        key = text, entry.key
        if key not in self._matches:
            try:
                self._matches[key] = bool(self._scanners[text].scan(entry.content()))
            except KcapError as e:
                self._unreadable[f"an artifact was not looked at: {e}"] = None
                self._matches[key] = False
        return self._matches[key]

    def _is_dump(self, entry: Entry) -> bool:
        if entry.key not in self._dumps:
            try:
                head = next(iter(entry.parts()), b"")
            except KcapError as e:
                self._unreadable[f"an artifact was not looked at: {e}"] = None
                head = b""
            self._dumps[entry.key] = head[:4] == _MINIDUMP
        return self._dumps[entry.key]


def texts(fields: Iterable[FieldRef]) -> list[str]:
    """The YARA rules that ``yara()`` in filters asks about.

    Args:
        fields: The fields that the filters name.

    Returns:
        Their texts.
    """
    name = ARTIFACTS["yara"]
    return sorted({ref.argument for ref in fields if ref.name == name and ref.argument})


def scanner(text: str) -> Scanner:
    """What looks at artifacts with YARA rules that stand in a filter.

    Args:
        text: The rules.

    Returns:
        A scanner.

    Raises:
        KcapError: One of them is wrong.
        MissingExtraError: yara-x is not installed.
    """
    found = [*plugins.load(plugins.RULES, "yara")().load(text, "yara()")]
    for one in found:
        if isinstance(one, Problem):
            raise one.error
    for one in found:
        if one.includes:
            # What a filter says must not depend on the folder that it is said in.
            raise KcapError("rules in a filter include no files", file="yara()")
        if one.contents is not None:
            made: Scanner = one.contents.scanner
            return made
    raise KcapError("there is no YARA rule in it", file="yara()", expected="'rule x { ... }'")


def _by_event(
    mine: Iterable[tuple[int, Sequence[Entry]]],
    codes: Codes,
    number: Callable[[Entry], int],
    *,
    loaders: bool,
) -> None:
    """Let rows that have nothing yet have the first of their own artifacts that says something."""
    for row, entries in mine:
        for entry in entries if codes[row] < 0 else ():
            if (entry.details.get("role") == _LOADER) is loaders:
                codes[row] = number(entry)
                if codes[row] >= 0:
                    break


def _origins(batch: Batch) -> Iterable[tuple[str, npt.NDArray[np.int64]]]:
    """The recordings that rows are of, and their rows."""
    column = batch.get("origin")
    if column is None or column.cls is not TypeClass.STR:
        return
    codes = np.full(batch.rows, -1, np.int32)
    codes[slice(None) if column.rows is None else column.rows] = column.codes()
    for code, origin in enumerate(column.values.dictionary.to_pylist()):
        yield origin, np.flatnonzero(codes == code)


def _fitted(value: Any, cls: TypeClass) -> Any:  # noqa: ANN401 - any value
    """A value as its column has it; None for one that does not fit."""
    if value is None:
        return None
    if cls is TypeClass.JSON:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if cls is TypeClass.I64:
        return value if I64_MIN <= value <= I64_MAX else None
    return value


def _spread(values: Sequence[Any], codes: Codes, cls: TypeClass) -> pa.Array:
    """Values by number as the values of a column."""
    if pa.types.is_dictionary(cls.arrow):
        texts = sorted({value for value in values if value is not None})
        place = {text: at for at, text in enumerate(texts)}
        which = np.array([place.get(value, -1) for value in values], np.int32)
        entries = pa.array(texts, cls.arrow.value_type)
        return pa.DictionaryArray.from_arrays(pa.array(which[codes]), entries)
    return pa.array(values, cls.arrow).take(pa.array(codes))
