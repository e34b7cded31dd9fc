"""``kcap split``: parts that are complete captures, and the whole again by ``kcap merge``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pytest
from cli_support import run, shell
from filter_support import NS, events, planted, saved, uncovered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import make_events, opened, read, rows_of
from test_state import HOST, event, fork, make_batch

from kcap.model.batch import Batch, Column, concat, constant, without_state
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.state import State
from kcap.tools import part_files, parts
from kcap.tools.parts import Template

ORIGINS = ("0a" * 16, "0b" * 16)
TIMES = st.lists(
    st.none() | st.integers(0, 40) | st.sampled_from([-(2**62), 2**62]), min_size=1, max_size=30
)


def stream(times: list[int | None], origin: str, ords: list[int] | None = None) -> Batch:
    """Events of one origin at these times, every third a state record."""
    rows = [
        {"event": f"e{i % 4}", "pid": i % 3, "kind": "state" if i % 3 == 2 else "event"}
        | ({} if ts is None else {"ts": ts})
        for i, ts in enumerate(times)
    ]
    info = SourceInfo("test", origin=origin)
    batch = make_batch(rows, info)
    numbers = np.arange(batch.rows) if ords is None else np.array(ords)
    return batch.adding(
        {
            "ord": Column(TypeClass.I64, pa.array(numbers)),
            "origin": constant(TypeClass.STR, origin, batch.rows),
            "source": constant(TypeClass.STR, info.id, batch.rows),
        }
    )


def split(source: Path, *words: str, name: str = "p-{n:03}.kcap") -> list[Path]:
    """The parts of a capture."""
    for old in source.parent.glob("p-*.kcap"):
        old.unlink()
    result = run("split", source, *words, "-o", source.parent / name)
    assert result.exit_code == 0, result.output
    return sorted(source.parent.glob("p-*.kcap"))


def merged(found: list[Path]) -> Path:
    """Parts put together."""
    out = found[0].parent / "merged.kcap"
    result = run("merge", "--force", *found, "-o", out)
    assert result.exit_code == 0, result.output
    return out


def content(path: Path) -> Any:
    """The content hash that the footer of a capture says."""
    footer = opened(path.read_bytes()).footer
    assert footer is not None
    return footer.totals["content_hash"]


def rows(path: Path) -> list[str]:
    """The events of a capture."""
    batches, losses = read(path.read_bytes())
    assert not losses
    return rows_of(batches)


HOW = st.one_of(
    st.integers(1, 12).map(lambda n: ("--events", str(n))),
    st.integers(1, 6).map(lambda n: ("--parts", str(n))),
    st.integers(1, 20).map(lambda n: ("--every", f"{n / 1e9:.9f}")),
    st.just(("--bytes", "1")),
)


@given(TIMES, TIMES, HOW, st.randoms(use_true_random=False))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_parts_merged_are_the_whole(
    tmp_path: Path,
    first: list[int | None],
    second: list[int | None],
    how: tuple[str, str],
    random: Any,
) -> None:
    """Whatever the times, numbers and cuts, and in whatever order the parts are named."""
    ords = random.sample(range(50), len(first))
    one = saved(tmp_path / "one.kcap", [stream(first, ORIGINS[0], ords)])
    two = saved(tmp_path / "two.kcap", [stream(second, ORIGINS[1])])
    for source in (one, merged([one, two]).rename(tmp_path / "both.kcap")):
        found = split(source, *how)
        random.shuffle(found)

        whole = merged(found)

        assert content(whole) == content(source)
        assert rows(whole) == rows(source)
        assert sum(len(rows(part)) for part in found) == len(rows(source))
        assert all(run("verify", part).exit_code == 0 for part in found[:2])


def test_merging_by_time_alone_would_not_do(tmp_path: Path) -> None:
    """Where times go back, parts of no known origin come in another order."""
    whole = stream([1, 50, 9, 2, 3, 4], ORIGINS[0])
    source = saved(tmp_path / "in.kcap", [whole])
    assert content(merged(split(source, "--events", "2"))) == content(source)

    bare = {n: c for n, c in whole.columns.items() if n != "origin"}
    info = SourceInfo("test")
    saved(source, [Batch(whole.rows, bare, (info,))])

    assert content(merged(split(source, "--events", "2"))) != content(source)


@given(TIMES, st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_time_is_the_greatest_so_far(times: list[int | None], length: int) -> None:
    """A part begins where the logical clock has passed another length since the first event."""
    whole = stream(times, ORIGINS[0])
    expected, first, number, clock = [], None, 0, None
    for i, ts in enumerate(times):
        if ts is not None:
            first = ts if first is None else first
            clock = ts if clock is None else max(clock, ts)
        now = 0 if clock is None or first is None else (clock - first) // length
        if now != number:
            expected.append(i)
        number = now
    for step in (1, 4, 100):
        rule = parts.EveryNs(length)
        found = [
            at + start
            for at in range(0, whole.rows, step)
            for start in rule.starts(whole.slice(at, at + step))
        ]
        assert found == expected


@given(TIMES, st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_state_records_do_not_count(times: list[int | None], size: int, step: int) -> None:
    """A part of N events has N, and the state records between them."""
    whole = stream(times, ORIGINS[0])
    rule = parts.EveryEvents(iter(range(size, 1000, size)))

    found = [
        at + start
        for at in range(0, whole.rows, step)
        for start in rule.starts(whole.slice(at, at + step))
    ]

    ends = [0, *found, whole.rows]
    counts = [without_state(whole.slice(a, b)).rows for a, b in itertools.pairwise(ends)]
    assert all(count == size for count in counts[:-1])
    assert counts[-1] <= size


def test_a_number_of_parts_is_met(tmp_path: Path) -> None:
    """Parts differ by one event at most."""
    source = saved(tmp_path / "in.kcap", [make_events(100)])

    sizes = [len(rows(part)) for part in split(source, "--parts", "7")]

    assert len(sizes) == 7
    assert max(sizes) - min(sizes) <= 1


def test_parts_have_about_the_size_that_was_asked_for(tmp_path: Path) -> None:
    """No part but the last is much smaller or larger."""
    source = saved(tmp_path / "in.kcap", [make_events(30_000)], chunk_rows=5000)

    sizes = [p.stat().st_size for p in split(source, "--bytes", "48K")]

    assert len(sizes) > 3
    assert all(42_000 < size < 90_000 for size in sizes[:-1])


def lives(path: Path) -> Path:
    """A capture in which processes are born, in the order of their ids."""
    told = [event("process_rundown", 10, process_name="sh", process_start_ns=10**9)]
    told += [fork(10, 11 + i, (2 + i) * 10**9) for i in range(20)]
    numbered = [{**row, "event": row["action"], "ts": NS + i} for i, row in enumerate(told)]
    batch = make_batch(numbered, HOST)
    ords = Column(TypeClass.I64, pa.array(np.arange(batch.rows)))
    origin = constant(TypeClass.STR, ORIGINS[0], batch.rows)
    return saved(path, [batch.adding({"ord": ords, "origin": origin})])


def state_at_start(path: Path) -> list[Any]:
    """The processes in the first snapshot of a capture, before its first event."""
    batch = next(iter(opened(path.read_bytes()).batches()))
    for side in batch.before:
        if isinstance(side, Snapshot):
            return side.tables["processes"].to_pylist()
    return []


@pytest.mark.parametrize("how", [("--events", "4"), ("--parts", "3"), ("--by", "ts")])
def test_each_part_begins_with_the_state_before_it(tmp_path: Path, how: tuple[str, str]) -> None:
    """The state at the start of a part is that of following all events before its first one."""
    source = lives(tmp_path / "in.kcap")
    how = ("--by", "ord") if how[0] == "--by" else how
    (batch,) = [b for b in opened(source.read_bytes()).batches() if b.rows]

    for part in split(source, *how):
        first = json.loads(run("cat", "--format", "jsonl", "-n", "1", part).stdout)["ord"]
        state = State()
        state.update(batch.slice(0, first).with_before(batch.before))
        assert state_at_start(part) == state.snapshot().tables["processes"].to_pylist()


def test_by_a_column(tmp_path: Path) -> None:
    """A part for each value, named after it, with the events of that value in their order."""
    names = ["/usr/bin/a b", "..", "", "ä", "x" * 300, "(none)"]
    batches = [events([{"n": i}], first=i, exe=names[i % 6]) for i in range(12)]
    batches.append(events([{"n": 12}], first=12))
    source = saved(tmp_path / "in.kcap", [concat(batches)])

    found = split(source, "--by", "exe", name="p-{value}.kcap")

    assert len(found) == 7
    shown = {}
    for part in found:
        lines = run("cat", "--format", "jsonl", part).stdout.splitlines()
        shown[part.name] = [json.loads(line) for line in lines]
    assert [row["ord"] for row in shown["p-%2Fusr%2Fbin%2Fa%20b.kcap"]] == [0, 6]
    assert [row["ord"] for row in shown["p-(none).kcap"]] == [12]
    assert all(len({row.get("exe") for row in rows}) == 1 for rows in shown.values())
    assert content(merged(found)) == content(source)


def test_losses_are_in_one_part(tmp_path: Path) -> None:
    """What the input had lost is said once, so that the parts merged have lost as much."""
    whole = stream(list(range(20)), ORIGINS[0])
    lost = Loss("lost", 3, "ring full")
    source = saved(
        tmp_path / "in.kcap", [whole.slice(0, 9), whole.slice(9, 20).with_before([lost])]
    )

    for how in (("--events", "2"), ("--by", "pid")):
        found = split(source, *how)
        said = [run("info", "--json", p).stdout for p in found]
        assert [sum(e["count"] for e in json.loads(s)["loss"]) for s in said].count(3) == 1
        assert json.loads(run("info", "--json", merged(found)).stdout)["loss"][0]["count"] == 3


def test_blobs_go_with_their_event(tmp_path: Path) -> None:
    """Each blob is in the part of its event, and in the whole again."""
    found = split(planted(tmp_path / "in.kcap"), "--events", "4")

    has = [b"kept bytes" in uncovered(p.read_bytes()) for p in found]

    assert has == [True, False, False]
    manifests = list(opened(merged(found).read_bytes()).manifests())
    assert sorted(m.ord or 0 for m in manifests) == [1, 5]


@pytest.mark.parametrize("by", [False, True])
@pytest.mark.parametrize(
    "text", ["a.kcap", "{n:x}.kcap", "{n!r}.kcap", "{n", "{x}", "{n.real}.kcap", "{n}/a.kcap", "{}"]
)
def test_names_that_can_not_be(text: str, by: bool) -> None:
    """A template that gives a name twice, or asks for what there is not, is refused."""
    with pytest.raises(click.UsageError):
        Template(text, by=by)
    assert Template("{value}", by=True).name(1, "a") == "a.kcap"
    with pytest.raises(click.UsageError):
        Template("{value}", by=False)


def test_existing_parts(tmp_path: Path) -> None:
    """Nothing is replaced unasked; parts of another time are pointed out."""
    source = saved(tmp_path / "in.kcap", [make_events(10)])
    names = ["-o", str(tmp_path / "p-{n}.kcap")]
    (tmp_path / "p-7.kcap").write_bytes(b"precious")

    refused = run("split", "--events", "5", source, *names)
    forced = run("split", "--force", "--events", "5", source, *names)

    assert refused.exit_code == 1
    assert "p-7.kcap" in refused.stderr
    assert forced.exit_code == 0
    assert "p-7.kcap" in forced.stderr
    assert (tmp_path / "p-7.kcap").read_bytes() == b"precious"
    assert {p.name for p in tmp_path.iterdir()} == {"in.kcap", "p-1.kcap", "p-2.kcap", "p-7.kcap"}


@pytest.mark.parametrize(
    "words", [["--by", "exe", "-o", "{value}.kcap"], ["--events", "9", "-o", "{n}.kcap"]]
)
def test_the_input_is_never_replaced(tmp_path: Path, words: list[str]) -> None:
    """A part that has the input's name is refused, also with --force."""
    source = saved(tmp_path / "1.kcap", [events([{"n": 1}], exe="1"), events([{"n": 2}], exe="")])
    before = source.read_bytes()
    words[-1] = str(tmp_path / words[-1])

    result = run("split", "--force", source, *words)

    assert result.exit_code == 1
    assert "replace the input" in result.stderr
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    "words", [[], ["--events", "1", "--parts", "2"], ["--bytes", "0"], ["--every", "0"]]
)
def test_one_rule(tmp_path: Path, words: list[str]) -> None:
    """Exactly one way to divide is given."""
    source = saved(tmp_path / "in.kcap", [make_events(5)])

    assert run("split", *words, source, "-o", tmp_path / "p-{n}.kcap").exit_code == 2
    assert list(tmp_path.iterdir()) == [source]


def test_too_many_values_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of very many values is refused before anything is written."""
    monkeypatch.setattr(part_files, "VALUES_MAX", 3)
    source = saved(tmp_path / "in.kcap", [stream(list(range(20)), ORIGINS[0])])

    result = run("split", "--by", "ord", source, "-o", tmp_path / "p-{n}.kcap")

    assert result.exit_code == 1
    assert "more than 3 values" in result.stderr
    assert list(tmp_path.iterdir()) == [source]


@given(TIMES, st.integers(1, 9))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_groups_of_values_make_the_same_parts(
    tmp_path: Path, times: list[int | None], most: int
) -> None:
    """However many parts may be open at a time, they are the same."""
    source = saved(tmp_path / "in.kcap", [stream(times, ORIGINS[0])])
    expected = [(p.name, rows(p), state_at_start(p)) for p in split(source, "--by", "ord")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_files, "OPEN_MAX", most)
        found = [(p.name, rows(p), state_at_start(p)) for p in split(source, "--by", "ord")]

    assert found == expected
    assert len(found) == len(times)


def test_too_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of parts is limited."""
    monkeypatch.setattr(part_files, "PARTS_MAX", 3)
    source = saved(tmp_path / "in.kcap", [make_events(20)])

    result = run("split", "--events", "2", source, "-o", tmp_path / "p-{n}.kcap")

    assert result.exit_code == 1
    assert "more than 3 parts" in result.stderr


def test_an_empty_capture_has_one_part(tmp_path: Path) -> None:
    """So that there is something to read where one expects it."""
    source = saved(tmp_path / "in.kcap", [])

    (part,) = split(source, "--events", "5")

    assert rows(part) == []


def test_a_pipe(tmp_path: Path) -> None:
    """A pipe is divided as it comes; for a number of parts it is kept first."""
    saved(tmp_path / "in.kcap", [make_events(50)])

    for how in ("--events 25", "--parts 2"):
        done = shell(f"cat in.kcap | kcap split - {how} --force -o 'p-{{n}}.kcap'", tmp_path)
        assert done.returncode == 0, done.stderr
        sizes = [len(rows(tmp_path / f"p-{n}.kcap")) for n in (1, 2)]
        assert sizes == [25, 25]


def test_foreign_captures(data: Any, tmp_path: Path) -> None:
    """The parts of a sysdig capture are those of its import."""
    source = data("scap/full_capture.scap")
    assert run("import", source, "-o", tmp_path / "whole.kcap").exit_code == 0

    assert run("split", source, "--events", "9000", "-o", tmp_path / "p-{n}.kcap").exit_code == 0

    found = sorted(tmp_path.glob("p-*.kcap"))
    assert len(found) == 3
    assert content(merged(found)) == content(tmp_path / "whole.kcap")
    split_by = run("split", source, "--by", "process_name", "-o", tmp_path / "{value}.kcap")
    assert split_by.exit_code == 0, split_by.output
    assert rows(tmp_path / "systemd.kcap")
    shown = run("cat", "-w", "ps.name = 'systemd'", tmp_path / "whole.kcap").stdout
    assert run("cat", tmp_path / "systemd.kcap").stdout == shown
