"""kcap.open: any input as batches and tables, and what is known of it."""

from __future__ import annotations

import doctest
import io
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support import SOURCE, Pipe, capture, make_events, opened, read, rows_of

import kcap
from kcap.capture import Capture
from kcap.errors import KcapError, LossWarning, MissingExtraError
from kcap.format.reader import CaptureReader
from kcap.model.batch import Batch, concat
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.replay.pipeline import Pipeline


def of(data: bytes, *, pipe: bool = False) -> Capture:
    """A capture over bytes."""
    return Capture(opened(data, pipe=pipe))


def test_everything_is_delivered_without_arguments(closed: Path) -> None:
    """Rows and side records are those of the reader, as often as they are asked for."""
    expected, _ = read(closed.read_bytes())

    with kcap.open(closed) as found:
        for _ in range(2):
            batches = list(found.batches())
            assert rows_of(batches) == rows_of(expected)
            assert [b.before for b in batches if b.before] == [
                b.before for b in expected if b.before
            ]
            assert any(isinstance(s, Snapshot) for b in batches for s in b.before)


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def write(self, batch: Batch) -> None:
        self.batches.append(batch)

    def close(self) -> None:
        pass


def test_a_capture_is_a_source(closed: Path) -> None:
    """The pipeline takes a capture like any other source."""
    sink = Kept()
    with kcap.open(closed) as found:
        summary = Pipeline(found, [sink]).run()

    assert (summary.events_in, summary.exit_code) == (60, 0)
    assert rows_of(sink.batches) == rows_of(read(closed.read_bytes())[0])


@pytest.mark.parametrize("state", ["closed", "open", "pipe"])
def test_arguments_select_rows_and_columns(state: str) -> None:
    """Columns, condition and interval give the rows for which all hold, from any kind of input."""
    events = make_events(200)
    data = capture([events], closed=state != "open", chunk_rows=30)
    times = events.numpy("ts", 0)
    start, end = (int(t) for t in np.sort(times)[[50, 150]])
    condition = pc.field("arg_fd__i64") < 5
    expected = [
        {name: row[name] for name in ("ts", "arg_fd__i64") if name in row}
        for row in events.to_pylist()
        if start <= row["ts"] < end and row["arg_fd__i64"] < 5  # type: ignore[operator]
    ]

    found = of(data, pipe=state == "pipe").batches(["ts", "arg_fd__i64"], condition, start, end)

    assert concat(list(found)).to_pylist() == expected
    assert 0 < len(expected) < 100


def test_rows_without_a_time_are_in_no_interval() -> None:
    """An interval leaves out events without a time; no interval leaves them in."""
    from kcap.format.writer import CaptureWriter
    from kcap.model.arrow import from_arrow

    out = io.BytesIO()
    writer = CaptureWriter(out)
    writer.write(from_arrow(pa.table({"ts": [5, None, 7], "ord": [0, 1, 2]})))
    writer.close()
    found = of(out.getvalue())

    def ords(**interval: int) -> list[Any]:
        return [row["ord"] for b in found.batches(**interval) for row in b.to_pylist()]  # type: ignore[arg-type]

    assert ords() == [0, 1, 2]
    assert ords(start=-(1 << 80)) == [0, 2]
    assert ords(end=7) == [0]
    assert ords(start=5, end=5) == []
    assert ords(end=1 << 80) == [0, 2]
    assert ords(start=1 << 80) == []


@pytest.mark.parametrize(
    "time",
    [
        1_700_000_000_000_001_000,
        datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC),
        datetime(2023, 11, 14, 22, 13, 20, 1),  # noqa: DTZ001  (without a zone it is UTC)
        datetime(2023, 11, 15, 0, 13, 20, 1, tzinfo=timezone(timedelta(hours=2))),
        pd.Timestamp(1_700_000_000_000_001_000),
    ],
)
def test_times_may_be_datetimes(time: Any) -> None:
    """A datetime means the same point in time as its ns, to the last digit."""
    found = of(capture([make_events(50)]))

    assert found.wanted(start=time).start_ns == 1_700_000_000_000_001_000
    assert found.wanted(start=pd.Timestamp(7)).start_ns == 7
    for wrong in ("2023", 1.5, True):
        with pytest.raises(TypeError, match="a time is"):
            found.batches(start=wrong)  # type: ignore[arg-type]


def test_side_records_of_a_selection_are_sources_and_losses() -> None:
    """With an argument, what was there at some moment is left out; losses old and new are not."""
    for pipe in (False, True):
        found = of(capture(), pipe=pipe)
        sides = [side for batch in found.batches(columns=["ts"]) for side in batch.before]

        assert {type(side) for side in sides} == {SourceInfo, Loss}
        assert [s.count for s in sides if isinstance(s, Loss)] == [3]
        assert found.losses == []  # that one is recorded, and not of this reading


def test_a_torn_capture_says_so_in_every_way() -> None:
    """What is missing at the end is a loss of each reading, kept once."""
    data = capture([make_events(100)], chunk_rows=20)
    found = of(data[: len(data) // 2])

    with pytest.warns(LossWarning, match="torn"):
        table = found.to_arrow()
    some = sum(b.rows for b in found.batches(columns=["ts"]))
    every = sum(b.rows for b in found.batches())

    assert table.num_rows == some == every < 100
    assert [loss.kind for loss in found.losses] == ["torn"]
    assert found.info.state == "torn"


def test_what_is_known_of_a_capture() -> None:
    """Of a capture in a file the numbers are known without reading the events, open or closed."""
    for is_closed in (True, False):
        found = of(
            capture([make_events(60).with_before([SOURCE, Loss("lost", 3)])], closed=is_closed)
        )
        info = found.info

        assert (info.file, info.format) == ("test.kcap", "kcap")
        assert info.state == ("closed" if is_closed else "open")
        assert (info.events, info.state_rows) == (60, 0)
        assert [s.id for s in info.sources] == [SOURCE.id]
        assert [loss.count for loss in info.losses] == [3]
        times = make_events(60).numpy("ts", 0)
        assert (info.first_ns, info.last_ns) == (times.min(), times.max())
        assert info.columns == found.columns
        assert isinstance(found.source, CaptureReader)
        assert found.source.work.chunks == 0 or not is_closed


def test_what_is_known_of_other_inputs(foreign: Path) -> None:
    """Of a foreign file and of a stream only what stands at its start is known."""
    with kcap.open(foreign) as found:
        assert (found.info.format, found.info.events, found.info.columns) == ("tracee", None, None)
        assert "event" in found.columns  # this reads it
        assert found.info.file in repr(found)
    pipe = of(capture(), pipe=True)
    assert (pipe.info.format, pipe.info.events) == ("kcap", None)


def test_a_stream_is_read_once(closed: Path) -> None:
    """A second reading of a stream, and what would need one, is an error that says what to do."""
    found = of(closed.read_bytes(), pipe=True)
    with pytest.raises(KcapError, match="only once, and its columns") as e:
        found.to_arrow()
    assert e.value.hint is not None
    assert "kcap import" in e.value.hint

    assert sum(b.rows for b in found.batches(where=pc.field("ord") >= 0)) == 60
    with pytest.raises(KcapError, match="only once, and it was read already"):
        list(found.batches())


def test_standard_input_and_files_called_like_it(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-`` is standard input, also where a file has that name; it can't be read twice."""

    class Input:
        buffer = io.BufferedReader(Pipe(closed.read_bytes()))  # type: ignore[arg-type]

    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(b"not it")
    monkeypatch.setattr(sys, "stdin", Input)

    found = kcap.open("-")

    assert sum(b.rows for b in found.batches()) == 60
    with pytest.raises(KcapError, match="only once"):
        list(found.batches())


def test_a_file_is_opened_again_for_each_reading(foreign: Path) -> None:
    """Two readings of a foreign file at once don't disturb each other."""
    with kcap.open(foreign) as found:
        one, other = found.batches(), found.batches()
        rows = [next(one).rows, next(other).rows]
        rows += [sum(b.rows for b in one), sum(b.rows for b in other)]

        assert rows[0] + rows[2] == rows[1] + rows[3] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["pidd"]}, "no column is called 'pidd'"),
        ({"where": pc.field("pidd") == 1}, "no column is called 'pidd'"),
        ({"where": pc.field("pid") == "1"}, "the filter can't be evaluated"),
        ({"where": pc.field("pid") + 1}, "the filter gives int64"),
        ({"where": pc.field(99) == 1}, "the filter can't be evaluated"),
        ({"where": pc.field("pid", "x") == 1}, "the filter can't be evaluated"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    """A wrong column or condition is an error before anything is read, of all kinds of input."""
    for found in (of(capture()), of(capture(), pipe=True)):
        with pytest.raises(
            KcapError, match="once" if _needs_columns(found, arguments) else message
        ):
            found.batches(**arguments)


def _needs_columns(found: Capture, arguments: dict[str, Any]) -> bool:
    """Whether a condition is one that only a known schema gives a meaning, over a stream."""
    text = str(arguments.get("where"))
    return found.info.events is None and ("FieldPath" in text or "Nested" in text)


def test_a_condition_is_no_number(closed: Path) -> None:
    """A number as a condition is refused, and not taken for something else."""
    with kcap.open(closed) as found, pytest.raises(TypeError, match="where is a int"):
        found.batches(where=1)  # type: ignore[arg-type]


def test_columns_by_number_mean_those_of_the_schema() -> None:
    """Arrow lets no one look into such a condition; it is evaluated all the same."""
    found = of(capture())
    at = found.schema.names.index("ord")

    assert sum(b.rows for b in found.batches(where=pc.field(at) >= 50)) == 10


def test_known_columns_may_be_missing() -> None:
    """A column that this capture lacks is null: no row, or all of them."""
    found = of(capture())

    assert found.to_arrow(["container_id", "ord"])["container_id"].null_count == 60
    assert found.to_arrow(where=pc.field("container_id") == "x").num_rows == 0
    assert found.to_arrow(where=pc.field("container_id").is_null()).num_rows == 60
    assert found.to_arrow(where=pc.scalar(True)).num_rows == 60
    assert found.to_arrow([], pc.field("ord") < 7).num_rows == 7


def test_a_name_is_shown_harmless(tmp_path: Path) -> None:
    """In a notebook and in a prompt, a file's name is text and nothing else."""
    path = tmp_path / "<img src=x onerror=alert(1)>\x1b[2J&.kcap"
    path.write_bytes(capture())
    with kcap.open(path) as found:
        page, line = found._repr_html_(), repr(found)

    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;\\x1b[2J&amp;.kcap" in page
    assert "\x1b" not in page + line
    assert "60 events" in page
    assert "60 events" in line


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Polars or pandas the error says what to install."""

    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", refuse)
    found = of(capture())

    for call in (found.to_polars, found.to_pandas):
        with pytest.raises(MissingExtraError) as e:
            call()
        assert e.value.hint == "pip install 'kcap[frames]'"


def test_the_core_comes_when_it_is_needed() -> None:
    """Importing kcap is quick; its classes are found by name all the same."""
    assert kcap.Capture is Capture
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = kcap.Nothing  # type: ignore[attr-defined]


def test_the_documented_examples_run(
    root: Path, read_text: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example of docs/api.md prints what stands there."""
    monkeypatch.chdir(root)
    text = read_text("docs/api.md")
    test = doctest.DocTestParser().get_doctest(text, {}, "docs/api.md", None, None)
    printed: list[str] = []

    failed, ran = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=printed.append)

    assert (failed, "".join(printed)) == (0, "")
    assert ran > 20
