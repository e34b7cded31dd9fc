"""Filters over real events, over captures in chunks, and over tables made from them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from export_support import parquet
from filter_made import EVENTS, Maker, accepted, quoted
from filter_rows import SOURCE, cut, families_of, field, in_pieces, rows
from filter_trees import EDGES

import kcap
from kcap.filter import Filter
from kcap.filter.cells import Reader
from kcap.filter.engine import Engine, leaf_nodes
from kcap.filter.fields import all_fields
from kcap.filter.syntax import Expr, Not
from kcap.format.writer import CaptureWriter
from kcap.model import naming
from kcap.model.batch import Batch, Column, concat
from kcap.model.classes import TypeClass
from kcap.model.side import SourceInfo
from kcap.opening import open_source
from kcap.where import Hashed, Integers, Interval, Sides

SAMPLES = [
    "fibratus/v1.6.0-cap1.kcap",
    "fibratus/2020-12-31-cap.kcap",
    "fibratus/v2.0.0-cap.kcap",
    "tracee/tracee_event_dump_2022-10.jsonl.gz",
    "tracee/tracee_docs_events_plain.jsonl",
    "scap/curl_google.scap",
    "scap/full_capture.scap",
]


def sample(path: Path, most: int, rng: random.Random) -> Batch:
    """Some events from anywhere in the beginning of a capture; the sources stand before them."""
    batches: list[Batch] = []
    with closing(open_source(path)) as source:
        for batch in source.batches():
            batches.append(batch)
            if sum(b.rows for b in batches) > 20 * most:
                break
    whole = concat(batches)
    whole = whole.with_before([s for s in whole.before if isinstance(s, SourceInfo)])
    chosen = sorted(rng.sample(range(whole.rows), min(most, whole.rows)))
    return whole.take(np.array(chosen, np.int32))


def values_of(whole: Batch) -> dict[str, list[Any]]:
    """Every field that a filter may name and that some event has, with its values."""
    names = [f.name for f in all_fields() if "[]" not in f.name and f.argument != "required"]
    for full in whole.columns:
        base = naming.parts(full)[0]
        if base.startswith("arg_"):
            names += [full, f"evt.arg[{naming.source_name(base)}]"]
    found = {}
    families, dicts = families_of(whole), whole.to_pylist()
    for name in dict.fromkeys(names):
        if accepted(f"{name} exists"):
            ((_, resolved),) = Filter.of(f"{name} exists").checked.fields.items()
            values = [field(row, resolved, families) for row in dicts]
            if any(value is not None for value in values):
                found[name] = [value for value in values if value is not None]
    return found


def about(rng: random.Random, name: str, value: Any) -> str:
    """A filter that a value may pass."""
    if isinstance(value, tuple):
        inner = [v for v in value if v is not None]
        if not inner:
            return f"{name} exists"
        value = rng.choice(inner)
        op = rng.choice(["in", "iin", "intersects"])
        return f"{name} {op} ({constant(value)})" if rng.random() < 0.5 else about(rng, name, value)
    text = getattr(value, "text", value)
    if isinstance(text, str) and rng.random() < 0.7:
        at = rng.randrange(len(text) + 1)
        op, part = rng.choice(
            [
                ("contains", text[at : at + 4]),
                ("icontains", text[at : at + 4].upper()),
                ("startswith", text[:at]),
                ("endswith", text[at:]),
                ("iendswith", text[at:].swapcase()),
                ("matches", f"*{text[at:]}"),
                ("imatches", f"{text[:at].upper()}*"),
                ("fuzzy", text[::3]),
            ]
        )
        return f"{name} {op} {quoted(part)}"
    if not isinstance(value, str | bool) and rng.random() < 0.5:
        number = getattr(value, "number", value)
        return f"{name} {rng.choice(['<', '<=', '>', '>='])} {number}"
    op = rng.choice(["=", "!=", "~=", "in"])
    return f"{name} in ({constant(value)}, 'x')" if op == "in" else f"{name} {op} {constant(value)}"


def constant(value: Any) -> str:
    """A value as a filter has it."""
    value = getattr(value, "text", value)
    if isinstance(value, str):
        return quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def agree(name: str, seed: int, most: int, count: int, find: Callable[[str], Path]) -> None:
    """Many filters about values of a capture's events."""
    rng = random.Random(seed)
    whole = sample(find(name), most, rng)
    values = values_of(whole)
    assert len(values) > 15
    hits = done = 0
    while done < count:
        texts = [about(rng, n, rng.choice(values[n])) for n in rng.choices(list(values), k=2)]
        text = rng.choice(["{0}", "{0}", "not ({0})", "{0} and {1}", "{0} or {1}"]).format(*texts)
        if not accepted(text):
            continue
        chosen = Filter.of(text)
        chosen.note(whole.before)
        expected = rows(chosen, whole)
        assert chosen.rows(whole).tolist() == expected, text
        assert in_pieces(chosen, cut(whole, [rng.randrange(most)])) == expected, text
        hits += 0 < len(expected) < whole.rows
        done += 1
    assert hits > count / 30


@pytest.mark.parametrize("name", SAMPLES)
def test_real_events(name: str, data: Callable[[str], Path]) -> None:
    """Over real events, too, the engine gives what a row-by-row reading gives."""
    agree(name, 1, 120, 60, data)


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLES)
def test_real_events_long(name: str, data: Callable[[str], Path]) -> None:
    """So it does with many more."""
    for seed in range(2, 8):
        agree(name, seed, 1000, 300, data)


# pruning


def chunked(whole: Batch, rows_each: int) -> bytes:
    """A capture of chunks of so many events."""
    out = io.BytesIO()
    writer = CaptureWriter(out, chunk_rows=rows_each)
    writer.write(whole)
    writer.close()
    return out.getvalue()


def of_several(seed: int, chunks: int = 12, rows_each: int = 10) -> tuple[list[Maker], Batch]:
    """Events of which each chunk has values of its own, numbered."""
    makers = [Maker(seed * 100 + i) for i in range(chunks)]
    whole = concat([maker.events(rows_each) for maker in makers])
    numbers = {"arg_n": Column(TypeClass.I64, pa.array(range(whole.rows)))}
    stored = [name for name in whole.columns if not name.startswith("state:")]
    return makers, whole.select(stored).adding(numbers).with_before([SOURCE])


def wanted(seed: int, folder: Path) -> Iterator[tuple[str, list[int], list[object]]]:
    """Filters over a capture in chunks: what each keeps, read row by row and with the index."""
    makers, whole = of_several(seed)
    path = folder / "test.kcap"
    path.write_bytes(chunked(whole, 10))
    for text, era in (pair for maker in makers for pair in maker.filters(6, 1)):
        chosen = Filter.of(text, era)
        if chosen.needs_state:
            continue
        with kcap.open(path) as capture:
            found = [row["arg_n"] for b in capture.batches(where=chosen) for row in b.to_pylist()]
        yield text, rows(chosen, whole), found


def test_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture read with its index gives what a row-by-row reading of all events gives."""
    answers = []
    original = Filter.may_match

    def counted(self: Filter, *known: Any) -> bool:
        answers.append(original(self, *known))
        return answers[-1]

    monkeypatch.setattr(Filter, "may_match", counted)
    for seed in range(4):
        for text, expected, found in wanted(seed, tmp_path):
            assert found == expected, text
    assert answers.count(False) > len(answers) / 20


def test_index_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that denies what chunks hold loses events, and the test above would notice."""
    lie = Sides(less=False, equal=False, greater=False)
    for values in (Interval, Integers, Hashed):
        monkeypatch.setattr(values, "sides", lambda *_: lie)
    assert any(found != expected for _, expected, found in wanted(0, tmp_path))


# DuckDB


TEXT_COLUMNS = ["process_name", "exe", "user", "event"]
NUMBER_COLUMNS = ["pid", "ppid", "retval", "seq"]
LITERALS = [
    "a",
    "sh",
    "/bin/\u212aelvin",
    "",
    "10.0.0.1",
    "stra\u00dfe",
    "STRASSE",
    "\U0001f600",
    "b",
    "'",
]


def said_twice(rng: random.Random, depth: int = 2) -> tuple[str, str]:
    """A filter, and the same in SQL; SQL's null counts as false."""
    form = rng.randrange(6) if depth else 0
    if form == 3:
        ours, theirs = said_twice(rng, depth - 1)
        return f"not ({ours})", f"NOT ({theirs})"
    if form > 3:
        pairs = [said_twice(rng, depth - 1) for _ in range(2)]
        word = "and" if form == 4 else "or"
        ours, theirs = (f"({a}) {word} ({b})" for a, b in zip(*pairs, strict=True))
        return ours, theirs
    ours, theirs = _text(rng) if rng.random() < 0.6 else _number(rng)
    return ours, f"coalesce({theirs}, false)"


def _text(rng: random.Random) -> tuple[str, str]:
    name, text = rng.choice(TEXT_COLUMNS), rng.choice([*LITERALS, *EVENTS])
    ours, theirs = quoted(text), "'" + text.replace("'", "''") + "'"
    other = rng.choice(TEXT_COLUMNS)
    return rng.choice(
        [
            (f"{name} = {ours}", f"{name} = {theirs}"),
            (f"{name} != {ours}", f"{name} != {theirs}"),
            (f"{name} in ({ours}, 'ab')", f"{name} IN ({theirs}, 'ab')"),
            (f"{name} not in ({ours}, 'ab')", f"NOT coalesce({name} IN ({theirs}, 'ab'), false)"),
            (f"{name} contains {ours}", f"contains({name}, {theirs})"),
            (f"{name} startswith {ours}", f"starts_with({name}, {theirs})"),
            (f"{name} endswith {ours}", f"ends_with({name}, {theirs})"),
            (f"{name} matches '*a?c*'", f"{name} LIKE '%a_c%'"),
            (f"regex({name}, '^[a-s]+$')", f"regexp_matches({name}, '^[a-s]+$')"),
            (f"length({name}) > 5", f"length({name}) > 5"),
            (f"{name} = {other}", f"{name} = {other}"),
            (f"exists({name})", f"{name} IS NOT NULL"),
        ]
    )


def _number(rng: random.Random) -> tuple[str, str]:
    name, number = rng.choice(NUMBER_COLUMNS), rng.choice([*EDGES, 1, 2])
    other = rng.choice(NUMBER_COLUMNS)
    op = rng.choice(["=", "!=", "<", "<=", ">", ">="])
    return rng.choice(
        [
            (f"{name} {op} {number}", f"{name}::HUGEINT {op} {number}::HUGEINT"),
            (f"{name} {op} {other}", f"{name} {op} {other}"),
            (f"{name} in ({number}, 1)", f"{name}::HUGEINT IN ({number}::HUGEINT, 1::HUGEINT)"),
            (f"{name} > 1.5", f"{name} > 1.5"),
        ]
    )


def differing(seed: int, folder: Path) -> tuple[list[str], int]:
    """Filters that DuckDB answers otherwise, and how many keep some events and not others."""
    duckdb = pytest.importorskip("duckdb")
    _, whole = of_several(seed)
    kept = whole.select([*TEXT_COLUMNS, *NUMBER_COLUMNS, "arg_n", "origin", "ord"])
    (folder / "test.parquet").write_bytes(parquet([kept]))
    rng = random.Random(seed)
    wrong, told = [], 0
    with duckdb.connect() as db:
        for _ in range(60):
            ours, theirs = said_twice(rng)
            query = f"SELECT arg_n FROM '{folder}/test.parquet' WHERE {theirs} ORDER BY arg_n"
            expected = [row[0] for row in db.execute(query).fetchall()]
            told += 0 < len(expected) < whole.rows
            if Filter.of(ours).rows(whole).tolist() != expected:
                wrong.append(ours)
    return wrong, told


def test_duckdb(tmp_path: Path) -> None:
    """What SQL can say, DuckDB answers alike from the exported events."""
    for seed in range(4):
        wrong, told = differing(seed, tmp_path)
        assert not wrong
        assert told > 15


def test_duckdb_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a comparison with a missing value unknown, as in SQL, DuckDB would differ."""
    monkeypatch.setattr(Engine, "_mask", without_missing)
    assert differing(0, tmp_path)[0]


MASK = Engine._mask


def without_missing(self: Engine, node: Expr, reader: Reader, alive: Any) -> Any:
    """Negation that leaves out rows in which a field is missing."""
    found = MASK(self, node, reader, alive)
    if isinstance(node, Not):
        for leaf in map(self.leaf, leaf_nodes(node)):
            for ref in leaf.fields:
                present = np.zeros(reader.rows, np.bool_)
                for part in reader.cells(ref, self.fields[ref]):
                    present[slice(None) if part.rows is None else part.rows] = True
                found = found & present
    return found
