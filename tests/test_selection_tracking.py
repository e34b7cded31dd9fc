"""Descent as a scope means it: against an oracle that goes through the events one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest
from filter_rows import batch, column
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.model import catalogue, naming
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.model.side import Snapshot
from kcap.readers.live import tracking
from kcap.readers.live.selection import select
from kcap.readers.live.subjects import Subjects
from kcap.readers.live.tracking import Tracked

PIDS = list(range(1, 9))
NAMES = ["sh", "ls", "cat"]
Row = dict[str, Any]

ARGUMENTS = {
    "child_pid": TypeClass.I64,
    "child_tid": TypeClass.I64,
    "process_group_exit": TypeClass.BOOL,
}


def events_of(rows: list[Row], before: tuple[Any, ...] = ()) -> Batch:
    """Events of rows."""
    classes = {"action": TypeClass.STR, "process_name": TypeClass.STR, "kind": TypeClass.STR}
    classes |= {"pid": TypeClass.I64, "tid": TypeClass.I64}
    found = {name: column(cls, [r.get(name) for r in rows]) for name, cls in classes.items()}
    for name, cls in ARGUMENTS.items():
        base = naming.argument(name)
        full = naming.column_name(base, cls, catalogue.home(base))
        found[full] = column(cls, [r.get(name) for r in rows])
    made = batch(found, len(rows))
    return made.with_before((*made.before, *before))


def made(rng: random.Random, count: int) -> list[Row]:
    """Births, deaths, threads and other events of few processes, with ids used again."""
    rows = []
    for _ in range(count):
        row: Row = {"kind": "event", "process_name": rng.choice(NAMES), "action": "open_file"}
        row["pid"] = None if rng.random() < 0.05 else rng.choice(PIDS)
        row["tid"] = row["pid"] if rng.random() < 0.8 else 100
        form = rng.random()
        if form < 0.25 and row["pid"] is not None:
            child = rng.choice([p for p in PIDS if p != row["pid"]])
            thread = rng.random() < 0.2
            row |= {"action": "process_fork", "child_pid": row["pid"] if thread else child}
            row["child_tid"] = 200 if thread else child
        elif form < 0.45:
            row["action"] = "process_stop"
            row["process_group_exit"] = rng.choice([True, False, None])
        rows.append(row)
    return rows


class Oracle:
    """The same, event by event."""

    def __init__(self, scopes: list[str], subjects: Subjects) -> None:
        self.tree = set(subjects.members) if any(s.startswith("tree=") for s in scopes) else None
        self.others = set(subjects.others)
        self.new: set[int] | None = set() if "pid=new" in scopes else None
        self.followed: set[int] | None = set() if "follow" in scopes else None
        self.name = next((s.removeprefix("comm=") for s in scopes if s.startswith("comm=")), None)

    def keeps(self, row: Row) -> bool:
        """Whether an event is kept; what follows from it is noted."""
        pid = row["pid"]
        kept = self.tree is None or pid in self.tree
        kept &= self.new is None or pid in self.new
        kept &= pid not in self.others
        if self.followed is not None:
            if kept and pid is not None and self.name in (None, row["process_name"]):
                self.followed.add(pid)
            kept &= pid in self.followed
        for family in (self.tree, self.others, self.new, self.followed):
            if family is None or pid is None:
                continue
            child = row.get("child_pid")
            if row["action"] == "process_fork" and row["child_tid"] == child:
                inside = family is self.new or pid in family
                (family.add if inside else family.discard)(child)
            group = row.get("process_group_exit")
            last = row["tid"] == pid if group is None else group
            if row["action"] == "process_stop" and last:
                family.discard(pid)
        return kept


SCOPES = [
    ["tree=1"],
    ["tree!=2,3"],
    ["pid=new"],
    ["follow", "comm=sh"],
    ["follow"],
    ["tree=1", "tree!=2", "follow", "comm=ls"],
    ["pid=new", "follow", "comm=sh"],
]


def differing(seed: int) -> list[tuple[list[str], int]]:
    """Scopes and rows of which the two say different things."""
    rng = random.Random(seed)
    rows = made(rng, 120)
    cuts = sorted(rng.sample(range(121), 3))
    found = []
    for scopes in SCOPES:
        members = frozenset(rng.sample(PIDS, 2)) | {1}
        subjects = Subjects(members=members, others=frozenset([2]))
        if not any(s.startswith("tree!") for s in scopes):
            subjects = subjects._replace(others=frozenset())
        oracle, stage = Oracle(scopes, subjects), Tracked(select(scopes=scopes).at(subjects))
        kept: list[int] = []
        for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            kept += [start + n for n in stage.rows(events_of(rows[start:stop])).tolist()]
        wanted = {number for number, row in enumerate(rows) if oracle.keeps(row)}
        found += [(scopes, number) for number in sorted(wanted ^ set(kept))]
    return found


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_descent_is_what_an_oracle_says(seed: int) -> None:
    """Any events, cut into batches anywhere, are kept as one by one."""
    assert differing(seed) == []


@pytest.mark.parametrize("broken", ["deaths", "threads", "first"])
def test_the_oracle_finds_what_is_wrong(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stage that forgets deaths, takes threads for processes or joins late it says so."""
    if broken == "deaths":
        real = tracking._changes
        monkeypatch.setattr(
            tracking, "_changes", lambda b: (c for c in real(b) if c.child is not None)
        )
    elif broken == "threads":
        real_argument = tracking._argument
        monkeypatch.setattr(
            tracking,
            "_argument",
            lambda b, name, cls, rows: (
                [None] * len(rows)
                if name == "process_group_exit"
                else real_argument(b, name, cls, rows)
            ),
        )
    else:
        real_merged = tracking._merged
        monkeypatch.setattr(tracking, "_merged", lambda c, j: real_merged(c, list(j)[1:]))
    found = [each for seed in range(20) for each in differing(seed)]
    assert found


def test_who_was_there_when_events_began_belongs_to_the_tree() -> None:
    """A process that was born before the recorder saw births is in the snapshot."""
    stage = Tracked(select(scopes=["tree=1"]).at(Subjects(members=frozenset([1]))))
    i64 = TypeClass.I64
    there = batch({"pid": column(i64, [1, 5, 6, 9]), "ppid": column(i64, [0, 1, 5, 0])}, 4)
    snapshot = Snapshot({"processes": there})
    rows = [{"pid": pid, "tid": pid, "kind": "event", "action": "x"} for pid in (1, 5, 6, 9)]
    assert stage.rows(events_of(rows, (snapshot,))).tolist() == [0, 1, 2]
    without = Tracked(select(scopes=["tree=1"]).at(Subjects(members=frozenset([1]))))
    assert without.rows(events_of(rows)).tolist() == [0]


def test_records_that_describe_what_was_there_are_kept() -> None:
    """A scope is about events; the state of the machine stays whole."""
    rows = [{"pid": 3, "kind": "state", "action": "process_rundown"}, {"pid": 3, "kind": "event"}]
    assert Tracked(select(scopes=["pid=new"])).rows(events_of(rows)).tolist() == [0]
