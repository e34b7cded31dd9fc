"""A hundred filters over one capture: one by one, and all in one pass.

The filters are made of values that the capture has, by one seed. One by one means what kcap does
for a filter: chunks that the index rules out stay unread, and of the others only the columns that
decide. One pass reads each of these columns once for all. Both give the numbers of the hits, which
must be the same.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

import kcap as api
from kcap.filter import Filter
from kcap.filter.many import Filters
from kcap.format.reader import CaptureReader
from kcap.selection import Pass, Wanted

Int64s = npt.NDArray[np.int64]

COUNT: Final = 100
SEED: Final = 20260801
_KINDS: Final = 10
_ROWS: Final = 1000
"""Events whose values are asked for."""

_TOGETHER: Final = 0.7
"""Share of filters whose values are all of one event, so that they have hits."""


def filters(path: Path, *, rare: bool, count: int = COUNT) -> list[str]:
    """Filters over values of a capture, of ten kinds in turns.

    Args:
        path: The capture.
        rare: Draw values among the different events, not among all: as often rare as frequent.
        count: How many.

    Returns:
        The expressions, all different.
    """
    with api.open(path) as capture:
        table = capture.to_arrow(columns=_ASKED)
    rng = random.Random(SEED)
    named = table.filter(table["fd_name"].is_valid())
    if rare:
        named = named.unify_dictionaries().group_by(list(_ASKED), use_threads=False).aggregate([])
    picked = sorted(rng.sample(range(len(named)), _ROWS))
    rows = [_Row(**row) for row in named.take(picked).to_pylist()]
    found: dict[str, None] = {}
    for turn in itertools.count():
        if len(found) == count:
            break
        row = rng.choice(rows)
        other = row if rng.random() < _TOGETHER else rng.choice(rows)
        found[_filter(turn % _KINDS, row, other, rows, rng)] = None
    return list(found)


class _Row(NamedTuple):
    """Values that an event has; those that it lacks are None."""

    event: str
    process_name: str | None
    user: str | None
    fd_name: str
    fd_type: str | None
    status: str | None
    arg_fd: int | None


_ASKED: Final = _Row._fields


def _filter(kind: int, row: _Row, other: _Row, rows: list[_Row], rng: random.Random) -> str:
    """A filter of one kind over the values of one event, or of two."""
    event, path = f"evt.name = {_quoted(row.event)}", other.fd_name
    process = f"ps.name = {_quoted(other.process_name)}"
    at = rng.randrange(max(len(path) - 5, 1))
    part = _quoted(path[at : at + 6])
    some = rng.sample(rows, 8)
    return (
        f"{event} and {process}",
        f"{event} and fd_name contains {part}",
        f"{event} and fd_name startswith {_quoted(path[: rng.randint(3, 12)])}",
        f"fd_name matches {_quoted(f'*{path[at : at + 3]}*{path[-2:]}')}",
        f"fd_name in ({', '.join(sorted({_quoted(r.fd_name) for r in some}))})",
        f"{event} and retval > {rng.randint(-1, 4000)}",
        f"user = {_quoted(row.user)} and {event} and arg_fd = {other.arg_fd or 0}",
        f"{process} and not status = {_quoted(row.status)}",
        f"fd_type = {_quoted(row.fd_type)} and fd_name icontains {part.upper()}",
        f"{process} and ({event} or fd_name endswith {_quoted(path[-6:])})",
    )[kind]


def _quoted(text: str | None) -> str:
    return "'" + (text or "").replace("\\", "\\\\").replace("'", "\\'") + "'"


def one_by_one(path: Path, texts: list[str]) -> list[Int64s]:
    """The numbers of each filter's hits, a reading of the capture for each."""
    return [_joined(_alone(path, text)) for text in texts]


def _alone(path: Path, text: str) -> Iterator[Int64s]:
    with api.open(path) as capture:
        wanted = Wanted(capture.columns, ("seq",), filter=Filter.of(text))
        for batch in Pass(capture, wanted).batches():
            yield batch.numpy("seq", -1)


def one_pass(path: Path, texts: list[str]) -> list[Int64s]:
    """The numbers of each filter's hits, of one reading for all."""
    together = Filters([Filter.of(text) for text in texts])
    found: list[list[Int64s]] = [[] for _ in texts]
    with path.open("rb") as stream:
        reader = CaptureReader(stream, str(path))
        together.note(reader.info.sources)
        index = reader.index()
        assert index is not None
        for number in range(len(index.table)):
            view = reader.view(number)
            seq = view.get("seq")
            assert seq is not None
            numbers = seq.values.to_numpy()
            for rows, hits in zip(together.rows(view), found, strict=True):
                hits.append(numbers[rows])
    return [_joined(iter(hits)) for hits in found]


def _joined(parts: Iterator[Int64s]) -> Int64s:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def report(path: Path, turns: int) -> str:
    """Both ways as Markdown, for rare and for frequent values.

    Args:
        path: A closed capture.
        turns: How often each is run; the best counts.

    Returns:
        A table.
    """
    with api.open(path) as capture:
        events = len(capture.to_arrow(columns=["seq"]))
    lines = [
        f"### {COUNT} filters over {events:,} events\n",
        "| values drawn from | one by one | one pass | | filters with hits | hits of all |",
        "|---|---|---|---|---|---|",
    ]
    for what, rare in (("different events", True), ("all events", False)):
        alone_s, together_s, hits = measured(path, filters(path, rare=rare), turns)
        finding = sum(len(found) > 0 for found in hits)
        lines.append(
            f"| {what} | {alone_s:.2f} s | {together_s:.2f} s | {alone_s / together_s:.1f} x |"
            f" {finding} | {sum(map(len, hits)):,} |"
        )
    return "\n".join(lines) + "\n"


def measured(path: Path, texts: list[str], turns: int) -> tuple[float, float, list[Int64s]]:
    """The seconds that both ways take.

    Args:
        path: A closed capture.
        texts: The filters.
        turns: How often each way is gone; the best counts.

    Returns:
        Seconds one by one, seconds of one pass, and the hits.

    Raises:
        AssertionError: They find different events, or over half of the filters find none.
    """
    seconds: dict[str, list[float]] = {"one by one": [], "one pass": []}
    for _ in range(turns):
        results = []
        for name, work in (("one by one", one_by_one), ("one pass", one_pass)):
            begun = time.perf_counter()
            results.append(work(path, texts))
            seconds[name].append(time.perf_counter() - begun)
        apart, together = results
        for text, a, b in zip(texts, apart, together, strict=True):
            assert np.array_equal(a, b), text
    assert sum(len(hits) > 0 for hits in apart) > len(texts) / 2
    alone_s, together_s = (min(found) for found in seconds.values())
    return alone_s, together_s, apart
