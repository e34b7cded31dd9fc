"""``kcap diff``: what is in one capture only, whatever the order, the chunks and the formats."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import lines_of, run, shell
from hypothesis import given
from hypothesis import strategies as st
from support import RECORDS, SOURCE, batch_of, capture, make_events, opened, read, rows_of
from test_state import make_batch

from kcap import comparison
from kcap.comparison import Compared, Digests, Only, RowDigests, unmatched
from kcap.errors import KcapError, LimitError
from kcap.format.reader import CaptureReader
from kcap.model.batch import Batch, concat, without_state
from kcap.model.side import Loss
from kcap.replay.merge import reordered

SECRET = bytes(range(32))
ORDERS = st.randoms(use_true_random=False)


def digests(*batches: Batch, compared: Compared | None = None, secret: bytes = SECRET) -> Digests:
    sink = RowDigests(compared or Compared(), secret, "test")
    for batch in batches:
        sink.write(batch)
    sink.close()
    return sink.digests()


def write(path: Path, *batches: Batch, **options: Any) -> Path:
    path.write_bytes(capture(list(batches), **options))
    return path


def diff(*words: str | Path, code: int = 0) -> dict[str, Any]:
    result = run("diff", "--json", *words)
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def lines(*words: str | Path) -> list[str]:
    result = run("diff", *words)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


# Digests


@given(RECORDS, st.booleans())
def test_digests_are_equal_where_events_are(records: list[Any], strict: bool) -> None:
    """Two events have one digest if and only if all that is compared of them is equal."""
    batch = batch_of(records + records[::-1])
    compared = Compared(ignored=() if strict else comparison.IDENTITY)
    found = [tuple(words) for words in digests(batch, compared=compared).tolist()]
    names = [name for name in batch.columns if compared.has(name)]
    told = rows_of([batch.select(names)])

    assert len(found) == batch.rows
    assert len(set(found)) == len(set(told)) == len(set(zip(found, told, strict=True)))


@given(RECORDS, st.lists(st.integers(0, 40), max_size=4), ORDERS)
def test_digests_are_of_events_alone(records: list[Any], cuts: list[int], order: Any) -> None:
    """Neither chunks nor order nor what other events have changes an event's digest."""
    batch = batch_of(records)
    expected = digests(batch).tolist()
    places = sorted({0, batch.rows, *(min(cut, batch.rows) for cut in cuts)})
    parts = [batch.slice(a, b).compact() for a, b in itertools.pairwise(places)]
    shuffled = np.array(order.sample(range(batch.rows), batch.rows), np.int32)

    assert digests(*parts).tolist() == expected
    again = digests(reordered(batch, shuffled)).tolist()
    assert again == [expected[i] for i in shuffled]
    alone = [digests(batch.slice(i, i + 1)).tolist()[0] for i in range(batch.rows)]
    assert alone == expected


def test_another_secret_gives_other_digests() -> None:
    """Else events could be made that look alike to everyone."""
    batch = make_events(200)
    one, other = digests(batch), digests(batch, secret=bytes(32))

    assert not (one == other).any()
    assert len(np.unique(one, axis=0)) == 200


def test_every_half_of_a_digest_tells_events_apart() -> None:
    """Numbers that differ in one bit, at either end or between, have four halves of their own."""
    values = [0, *(1 << i for i in range(63))]
    found = digests(make_batch([{"pid": value} for value in values]))
    halves = np.stack([found >> np.uint64(32), found & np.uint64(0xFFFFFFFF)], 2).reshape(64, 4)

    assert [len(np.unique(half)) for half in halves.T] == [64] * 4
    bits = np.unpackbits(np.ascontiguousarray(found).view(np.uint8), axis=1)
    assert 0.2 < bits.mean(axis=0).min() <= bits.mean(axis=0).max() < 0.8


def test_every_word_of_a_value_counts() -> None:
    """A bit in any of the four words of a text's own hash changes every lane."""
    drawn = np.random.default_rng(1).integers(0, 1 << 63, (4, 5)).astype(np.uint64)
    words = [np.zeros(128, np.uint64) for _ in range(4)]
    for i in range(128):
        words[i // 32][i] = 1 << i % 32
    lanes = comparison._weighed(words, drawn)

    assert [len(np.unique(lane >> np.uint64(32))) for lane in lanes] == [128] * 4
    assert not any(((lane >> np.uint64(32)) == drawn[i, 0]).any() for i, lane in enumerate(lanes))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"pid": 1}, {"tid": 1}),
        ({"pid": 0}, {}),
        ({"pid": 1, "tid": 2}, {"pid": 2, "tid": 1}),
        ({"event": "ab", "user": "c"}, {"event": "a", "user": "bc"}),
        ({"arg_a": ""}, {}),
        ({"arg_a": ""}, {"arg_a": b""}),
        ({"arg_a": "1"}, {"arg_a": 1}),
        ({"arg_a": 1}, {"arg_a": True}),
        ({"arg_a": 1}, {"arg_a": 1.0}),
        ({"arg_a": 0.0}, {"arg_a": -0.0}),
        ({"arg_a": ["ab", "c"]}, {"arg_a": ["a", "bc"]}),
        ({"arg_a": ["ab, c"]}, {"arg_a": ["ab", "c"]}),
        ({"arg_a": [1, 2]}, {"arg_a": [2, 1]}),
        ({"arg_a": [*range(3000)]}, {"arg_a": [*range(2999), 0]}),
        ({"arg_a": "a" * 60_000}, {"arg_a": "a" * 59_999 + "b"}),
        ({"arg_a": [0.0]}, {"arg_a": [-0.0]}),
        ({"arg_a": [float("nan")]}, {"arg_a": [1.0]}),
        ({"arg_a": 1 << 63}, {"arg_a": -(1 << 63)}),
        ({"arg_a": {"k": 1}}, {"arg_a": '{"k":1}'}),
    ],
)
def test_values_are_told_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    """By column, class, place and bits, together in a batch or each alone."""
    found = digests(make_batch([one, other]))
    assert found[0].tolist() != found[1].tolist()
    assert digests(make_batch([one])).tolist() != digests(make_batch([other])).tolist()


def test_too_many_events_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of memory is said, with a way out."""
    monkeypatch.setattr(comparison, "ROWS_MAX", 10)
    with pytest.raises(LimitError, match="more than 10 events") as caught:
        digests(make_events(11))
    assert "--start" in str(caught.value.hint)


# Matching

SMALL = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30)


@given(SMALL, SMALL)
def test_what_is_left_over_is_the_difference_of_multisets(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    """Of each digest as many as the other stream has fewer, also where halves are equal."""
    one, other = (np.array(side, np.uint64).reshape(-1, 2) for side in (a, b))
    only_a, only_b = unmatched(one, other)

    for mask, side, against in ((only_a, a, b), (only_b, b, a)):
        assert len(mask) == len(side)
        left = Counter(row for row, kept in zip(side, mask, strict=True) if kept)
        assert left == Counter(side) - Counter(against)


def test_what_stands_at_the_same_place_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two long streams only what lies between the first and the last difference is."""
    rows = np.arange(2000, dtype=np.uint64).reshape(1000, 2)
    sorted_rows: list[int] = []
    surplus = comparison._surplus

    def noted(a: Digests, b: Digests) -> Any:
        sorted_rows.append(len(a) + len(b))
        return surplus(a, b)

    monkeypatch.setattr(comparison, "_surplus", noted)
    changed = rows.copy()
    changed[[400, 405]] = 0
    only_a, only_b = unmatched(rows, changed)

    assert sorted_rows == [12]
    assert np.flatnonzero(only_a).tolist() == np.flatnonzero(only_b).tolist() == [400, 405]
    appended = unmatched(rows, rows[:990])[0]
    assert np.flatnonzero(appended).tolist() == list(range(990, 1000))


# Reading again


def test_only_what_is_marked_comes() -> None:
    """In order, with its marks, without columns that are left out; sources stay, losses don't."""
    batch = make_events(60)
    data = capture([batch.with_before([SOURCE, Loss("lost", 1, "then")])], chunk_rows=13)
    mask = np.zeros(60, np.bool_)
    mask[[0, 1, 20, 37]] = True
    only = Only(opened(data), [], mask, "A", marks={"only_in": "A"}, left_out=("ord",))
    found = list(only.batches())

    expected = batch.take(np.flatnonzero(mask).astype(np.int32))
    joined = concat(found)
    assert joined.columns["only_in"].values.to_pylist() == ["A"] * 4
    names = set(joined.columns) - {"only_in"}
    assert "ord" not in names
    assert rows_of([joined.select(names)]) == rows_of([expected.select(names)])
    assert {type(side) for b in found for side in b.before} == {type(SOURCE)}
    assert sum(b.rows for b in Only(opened(data), [], mask[:0], "A", marks={}).batches()) == 0


def test_a_file_that_changed_meanwhile_is_an_error() -> None:
    """Places of events mean nothing in another file."""
    mask = np.ones(61, np.bool_)
    with pytest.raises(KcapError, match="changed while it was read"):
        list(Only(opened(capture([make_events(60)])), [], mask, "A", marks={}).batches())


# The verb


@pytest.mark.parametrize("deep", [(), ("--deep",)])
def test_chunks_and_order_are_no_difference(deep: tuple[str, ...], tmp_path: Path) -> None:
    """The same events in other chunks, or the other way round, are the same events."""
    batch = make_events(300)
    backwards = reordered(batch, np.arange(299, -1, -1, dtype=np.int32))
    one = write(tmp_path / "one.kcap", batch)
    many = write(tmp_path / "many.kcap", batch, chunk_rows=7)
    other = write(tmp_path / "other.kcap", backwards, chunk_rows=50)

    for path in (many, other):
        result = run("diff", *deep, one, path, "--exit-code")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "no difference: 300 events in both" in result.stderr


@given(st.sets(st.integers(0, 59)), st.sets(st.integers(0, 59)), ORDERS)
def test_each_side_has_what_the_other_lacks(a: set[int], b: set[int], order: Any) -> None:
    """Of two parts of one capture, in any order, exactly what only one of them has is found."""
    batch = make_events(60)
    sides = []
    for part in (a, b):
        rows = np.array(sorted(part), np.int32)
        shuffled = np.array(order.sample(range(len(rows)), len(rows)), np.int32)
        sides.append(digests(reordered(batch.take(rows), shuffled)))
    only_a, only_b = unmatched(*sides)

    assert (int(only_a.sum()), int(only_b.sum())) == (len(a - b), len(b - a))


def test_a_difference_of_one_value_is_two_lines(tmp_path: Path) -> None:
    """The event as A has it before the event as B has it, in the order of time."""
    rows = [{"ts": i, "event": "read", "pid": i, "cpu": 0} for i in range(9)]
    one = write(tmp_path / "a.kcap", make_batch(rows))
    rows[4]["pid"] = 40
    rows[7]["cpu"] = 1
    other = write(tmp_path / "b.kcap", make_batch(rows))

    found = lines(one, other)
    assert [(line[0], line.split("(")[1].split(")")[0]) for line in found] == [
        ("-", "4"),
        ("+", "40"),
        ("-", "7"),
        ("+", "7"),
    ]
    assert len(lines("--ignore", "cpu", one, other)) == 2
    assert len(lines("--columns", "cpu", one, other)) == 2
    assert lines("--ignore", "cpu,pid", one, other) == []
    assert lines(one, other, "-n", "3") == found[:3]
    assert lines(other, one)[0].startswith("- ")


def test_how_often_an_event_stands_there_counts(tmp_path: Path) -> None:
    """Three equal events against one are two only there."""
    one = write(tmp_path / "a.kcap", make_batch([{"ts": 1, "event": "read"}] * 3))
    other = write(tmp_path / "b.kcap", make_batch([{"ts": 1, "event": "read"}]))

    assert [diff(one, other)[side]["only"] for side in "AB"] == [2, 0]


def test_identity_is_compared_only_when_asked_for(tmp_path: Path) -> None:
    """origin, ord, seq, shape and source make no difference but with --strict."""
    base = {"ts": 1, "event": "read", "pid": 1}
    one = write(tmp_path / "a.kcap", make_batch([{**base, "seq": 1, "origin": "a", "source": "s"}]))
    other = write(tmp_path / "b.kcap", make_batch([{**base, "seq": 2, "ord": 4}]))

    assert diff(one, other)["equal"]
    assert not diff("--strict", one, other)["equal"]
    assert not diff("--columns", "seq", "--strict", one, other)["equal"]
    assert diff("--strict", "--ignore", "seq,origin,source,ord", one, other)["equal"]


def test_equal_hashes_save_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk of captures with equal hashes is read, unless asked for; of others all are."""
    batch = make_events(100)
    one = write(tmp_path / "a.kcap", batch)
    other = write(tmp_path / "b.kcap", batch, chunk_rows=9, file_id=bytes(16))
    less = write(tmp_path / "c.kcap", batch.slice(0, 99))
    files: list[str] = []
    chunk = CaptureReader.chunk

    def noted(self: CaptureReader, number: int, columns: Any = None) -> Batch:
        files.append(self.file)
        return chunk(self, number, columns)

    monkeypatch.setattr(CaptureReader, "chunk", noted)
    found = diff(one, other, "--strict")
    assert (files, found["compared"], found["A"]["events"]) == ([], "content hashes", 100)
    found = diff(one, other, "--deep")
    assert (set(files), found["compared"]) == ({str(one), str(other)}, "events")
    assert diff(one, less)["A"]["only"] == 1


def test_hashes_answer_only_what_they_cover(tmp_path: Path) -> None:
    """content_hash_values leaves the source out: where it is compared, another hash is asked."""
    one = write(tmp_path / "a.kcap", make_batch([{"ts": 1, "source": "a"}]))
    other = write(tmp_path / "b.kcap", make_batch([{"ts": 1, "source": "b"}]))

    assert diff(one, other)["compared"] == "content hashes"
    found = diff("--strict", one, other)
    assert (found["compared"], found["equal"]) == ("events", False)


def test_state_records_are_left_out(tmp_path: Path) -> None:
    """They say what was there, not what happened."""
    rows = [{"ts": 1, "event": "read", "kind": "event"}]
    one = write(tmp_path / "a.kcap", make_batch(rows))
    other = write(tmp_path / "b.kcap", make_batch([*rows, {"ts": 2, "kind": "state"}]))

    assert diff(one, other)["equal"]


def test_options_of_the_input_hold_for_both(tmp_path: Path) -> None:
    """An interval of time and a filter decide which events are compared, and are printed."""
    rows = [{"ts": i * 10**9, "event": "read", "pid": i} for i in range(20)]
    one = write(tmp_path / "a.kcap", make_batch(rows), chunk_rows=3)
    other = write(tmp_path / "b.kcap", make_batch(rows[:10]))
    late = ("--start", "1970-01-01T00:00:08", "--end", "1970-01-01T00:00:12")

    assert [len(lines(*words, one, other)) for words in ((), late, ("-w", "ps.pid = 15"))] == [
        10,
        2,
        1,
    ]
    assert lines("-w", "ps.pid = 5", one, other) == []


def test_json_lines_say_where_an_event_is(tmp_path: Path) -> None:
    """Each is the event as cat prints it, and only_in."""
    batch = make_events(40)
    one, other = write(tmp_path / "a.kcap", batch), write(tmp_path / "b.kcap", batch.slice(0, 30))
    found = lines_of("diff", one, other)

    assert {event.pop("only_in") for event in found} == {"A"}
    assert sorted(found, key=str) == sorted(lines_of("cat", one)[30:], key=str)


def test_counts_by_event(tmp_path: Path) -> None:
    """--stat and --json say how many of each event are only where."""
    one = write(
        tmp_path / "a.kcap", make_batch([{"ts": i, "event": e} for i, e in enumerate("aabbc")])
    )
    other = write(
        tmp_path / "b.kcap", make_batch([{"ts": i, "event": e} for i, e in enumerate("aaddd")])
    )

    assert lines("--stat", one, other) == [
        "   only in A     only in B  event",
        "   ---------     ---------  -----",
        "           0             3  d",
        "           2             0  b",
        "           1             0  c",
    ]
    assert diff(one, other)["by_event"] == [
        {"event": "d", "only_in_A": 0, "only_in_B": 3},
        {"event": "b", "only_in_A": 2, "only_in_B": 0},
        {"event": "c", "only_in_A": 1, "only_in_B": 0},
    ]
    assert lines("--stat", one, one) == []


def test_exit_codes(tmp_path: Path) -> None:
    """4 for a difference where asked, 3 where something could not be read, 2 for wrong usage."""
    batch = make_events(30)
    one = write(tmp_path / "a.kcap", batch, chunk_rows=10)
    other = write(tmp_path / "b.kcap", batch.slice(0, 20))
    assert run("diff", one, other).exit_code == 0
    assert run("diff", one, other, "--exit-code").exit_code == 4
    assert run("diff", one, one, "--exit-code", "--deep").exit_code == 0

    data = bytearray(one.read_bytes())
    index = opened(bytes(data)).index()
    assert index is not None
    data[int(index.table[1]["offset"]) + 40] ^= 0xFF
    one.write_bytes(bytes(data))
    result = run("diff", one, other, "--exit-code", "--stat")
    assert result.exit_code == 3
    assert f"kcap: {one}: damaged 10 events" in result.stderr

    assert run("diff", "-", "-").exit_code == 2
    result = run("diff", "--ignore", "cup", one, other)
    assert (result.exit_code, "'cpu'" in result.stderr) == (2, True)
    result = run("diff", one, tmp_path / "none.kcap")
    assert (result.exit_code, "none.kcap: can't be opened" in result.stderr) == (1, True)


def test_streams_can_be_compared(tmp_path: Path) -> None:
    """Standard input and pipes, though differences are read twice; errors give their names."""
    one = write(tmp_path / "a.kcap", make_events(30))
    other = write(tmp_path / "b.kcap", make_events(28))
    expected = lines(one, other)

    done = shell(f"cat {one} | kcap diff - <(cat {other})", tmp_path)
    assert done.stdout.decode().splitlines() == expected
    assert len(expected) >= 2
    assert b"A, -: 30 events" in done.stderr
    done = shell(f"echo no | kcap diff - {other}", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(b"kcap: -: ")


@pytest.mark.parametrize(
    "name",
    [
        "tracee/tracee_event_dump_2022-10.jsonl.gz",
        "scap/full_capture.scap",
        "fibratus/v1.6.0-test.kcap",
    ],
)
def test_an_import_has_what_the_foreign_file_has(
    name: str, data: Callable[[str], Path], tmp_path: Path
) -> None:
    """A foreign file and its import are equal; one event less is found."""
    own = tmp_path / "own.kcap"
    assert run("import", data(name), "-o", own).exit_code == 0
    assert diff(data(name), own)["equal"]

    events = without_state(concat(read(own.read_bytes())[0])).with_before(())
    less = write(tmp_path / "less.kcap", events.slice(0, events.rows - 1))
    found = diff(data(name), less)
    assert (found["A"]["only"], found["B"]["only"]) == (1, 0)


def test_two_forms_of_one_dump_are_equal(data: Callable[[str], Path]) -> None:
    """Tracee's gob and its JSON hold the same events."""
    name = "tracee/tracee_event_dump_2022-10"
    assert diff(data(f"{name}.gob"), data(f"{name}.jsonl.gz"))["equal"]


def test_no_vector_is_too_much(fixtures: Path) -> None:
    """A good, damaged or hostile capture has what it has, or is refused."""
    paths = sorted(fixtures.glob("vectors/*/*.kcap"))
    codes = Counter[int]()
    for path in paths:
        result = run("diff", "--deep", "--strict", "--exit-code", path, path)
        assert "internal error" not in result.stderr, path
        codes[result.exit_code] += 1

    assert set(codes) == {0, 1, 3}
    assert len(paths) > 200
