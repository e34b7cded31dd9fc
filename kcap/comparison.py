"""Which events are in one stream and not in another, by what they say and in whatever order.

An event is compared by a digest of 128 bits. Digests are universal hashes: each column's values
are taken as 32-bit words, multiplied by coefficients that a secret decides, and added up
(multiply-shift; M. Thorup, "High Speed Hashing for Integers and Strings"). For any two events
that differ, the chance that a secret drawn at random gives them one digest is below 2**-120,
whatever the events are: who makes events does not know the secret, so can't hide one behind
another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.errors import KcapError, LimitError
from kcap.model import naming
from kcap.model.batch import Batch, Column, Rows, constant
from kcap.model.classes import TypeClass
from kcap.model.distinct import distinct
from kcap.model.side import SourceInfo
from kcap.model.stream import Source, StreamInfo
from kcap.replay.pipeline import Stage

Digests = npt.NDArray[np.uint64]
"""Two words an event."""

Sums = npt.NDArray[np.uint64]
"""One word a value."""

Mask = npt.NDArray[np.bool_]

ROWS_MAX: Final = 1 << 28
"""Events of one side: 16 bytes are kept of each."""

IDENTITY: Final = frozenset({"ord", "origin", "seq", "shape", "source"})
"""Columns that say where an event stands, not what happened."""

SECRET_BYTES: Final = 32

_LANES: Final = 4
"""Sums of 64 bits of which the upper half is as good as random; four make a digest."""

_WORDS: Final = 5
"""Coefficients of a column in a sum: for that it has a value, and for the words of the value."""

_HALF: Final = np.uint64(32)
_LOW: Final = np.uint64(0xFFFFFFFF)


class Compared:
    """Which columns are compared.

    Args:
        names: Only these; None for all. A name without a class stands for columns of any class.
        ignored: None of these; what stands beside a column goes with it.
    """

    def __init__(
        self, names: Collection[str] | None = None, ignored: Collection[str] = IDENTITY
    ) -> None:
        self._names = None if names is None else frozenset(names)
        self._ignored = frozenset(ignored)

    def has(self, column: str) -> bool:
        """Whether a column is compared.

        Args:
            column: Its name.

        Returns:
            True where it is.
        """
        ways = {column, naming.parts(column)[0]}
        return not ways & self._ignored and (self._names is None or bool(ways & self._names))

    def within(self, left_out: Collection[str]) -> bool:
        """Whether what is compared is within what a hash covers.

        Args:
            left_out: The columns that the hash leaves out.

        Returns:
            True where none of them is compared.
        """
        return not any(map(self.has, left_out))


class RowDigests:
    """A sink that keeps a digest of each event.

    Args:
        compared: The columns that count.
        secret: `SECRET_BYTES` that nobody could foresee; the same for both streams.
        file: The stream's name, for errors.
    """

    def __init__(self, compared: Compared, secret: bytes, file: str) -> None:
        assert len(secret) == SECRET_BYTES
        self._compared = compared
        self._secret = secret
        self._file = file
        self._coefficients: dict[str, Digests] = {}
        self._parts: list[Digests] = []
        self._rows = 0

    def write(self, batch: Batch) -> None:
        """Take in the events of a batch.

        Args:
            batch: Events.

        Raises:
            LimitError: There are too many.
        """
        self._rows += batch.rows
        if self._rows > ROWS_MAX:
            raise LimitError(
                f"there are more than {ROWS_MAX:,} events",
                file=self._file,
                hint="compare an interval at a time, with --start and --end",
            )
        lanes = [np.zeros(batch.rows, np.uint64) for _ in range(_LANES)]
        for name, column in batch.columns.items():
            if len(column) and self._compared.has(name):
                for lane, summands in zip(lanes, self._summands(name, column), strict=True):
                    if column.rows is None:
                        np.add(lane, summands, out=lane)
                    else:
                        lane[column.rows] += summands
        first, second, third, fourth = (lane >> _HALF for lane in lanes)
        self._parts.append(np.stack([first << _HALF | second, third << _HALF | fourth], 1))

    def close(self) -> None:
        """See `Sink.close`."""

    def digests(self) -> Digests:
        """The digests of all events, in their order; they are kept no longer."""
        parts, self._parts = self._parts, []
        return np.concatenate([np.zeros((0, 2), np.uint64), *parts])

    def _summands(self, name: str, column: Column) -> list[Sums]:
        """What each value adds to the sum of each lane."""
        by = self._coefficients.get(name)
        if by is None:
            drawn = hashlib.shake_256(self._secret + name.encode()).digest(_LANES * _WORDS * 8)
            by = self._coefficients[name] = np.frombuffer(drawn, "<u8").reshape(_LANES, _WORDS)
        if column.cls.child is None and not pa.types.is_dictionary(column.values.type):
            return _weighed(_number_words(column), by)
        found = distinct(column)
        words = self._text_words(found.entries, column.cls)
        return [sums.take(found.codes) for sums in _weighed(words, by)]

    def _text_words(self, entries: pa.Array, cls: TypeClass) -> list[Sums]:
        # Once for each different value of a chunk: 1 µs each.
        made = b"".join(
            hashlib.blake2b(text, digest_size=16, key=self._secret).digest()
            for text in _spelled(entries, cls)
        )
        return list(np.frombuffer(made, "<u4").reshape(-1, 4).T.astype(np.uint64))


def _weighed(words: list[Sums], by: Digests) -> list[Sums]:
    """Words of values times the coefficients of each lane, added up."""
    lanes = []
    for lane in by:
        sums = words[0] * lane[1]
        for word, coefficient in zip(words[1:], lane[2:], strict=False):
            sums += word * coefficient
        sums += lane[0]
        lanes.append(sums)
    return lanes


def _number_words(column: Column) -> list[Sums]:
    """The bits of numbers and booleans, in words of 32."""
    values = np.asarray(column.values)
    if column.cls is TypeClass.BOOL:
        return [values.astype(np.uint64)]
    bits = values.view(np.uint64)
    return [bits & _LOW, bits >> _HALF]


def _spelled(entries: pa.Array, cls: TypeClass) -> list[bytes]:
    """Values as bytes, no two alike."""
    if cls.child is None:
        return entries.cast(pa.binary()).to_pylist()  # type: ignore[no-any-return]
    if cls is TypeClass.LIST_F64:
        entries = pa.ListArray.from_arrays(entries.offsets, entries.values.view(pa.int64()))
    return [repr(value).encode() for value in entries.to_pylist()]


def unmatched(a: Digests, b: Digests) -> tuple[Mask, Mask]:
    """Find the events without a counterpart; of equal ones their places say which are left over.

    Args:
        a: Digests of one stream.
        b: Digests of the other.

    Returns:
        Which events of each are not in the other, or more often.
    """
    only_a, only_b = np.ones(len(a), np.bool_), np.ones(len(b), np.bool_)
    # What two streams have in common stands at one place more often than not: no need to sort it.
    head = _alike(a, b)
    only_a[:head] = only_b[:head] = False
    a, b = a[head:], b[head:]
    tail = _alike(a[::-1], b[::-1])
    only_a[len(only_a) - tail :] = only_b[len(only_b) - tail :] = False
    a, b = a[: len(a) - tail], b[: len(b) - tail]
    surplus = _surplus(a, b)
    only_a[head : head + len(a)] = surplus[: len(a)]
    only_b[head : head + len(b)] = surplus[len(a) :]
    return only_a, only_b


def _alike(a: Digests, b: Digests) -> int:
    """At how many places two streams are equal before the first difference."""
    count = min(len(a), len(b))
    differ = (a[:count] != b[:count]).any(axis=1)
    return int(differ.argmax()) if differ.any() else count


def _surplus(a: Digests, b: Digests) -> Mask:
    """Which rows, those of the one stream and then those of the other, have no counterpart."""
    both = np.concatenate([a, b])
    if not len(both):
        return np.zeros(0, np.bool_)
    order = np.lexsort((both[:, 1], both[:, 0]))  # stable: of one digest first those of a, in order
    ranked = both[order]
    starts = np.flatnonzero(np.concatenate([[True], (ranked[1:] != ranked[:-1]).any(axis=1)]))
    sizes = np.diff(np.append(starts, len(both)))
    of_a = order < len(a)
    count_a = np.add.reduceat(of_a.astype(np.int64), starts)
    pairs = np.repeat(np.minimum(count_a, sizes - count_a), sizes)
    place = np.arange(len(both)) - np.repeat(starts, sizes)
    place[~of_a] -= np.repeat(count_a, sizes)[~of_a]
    surplus = np.empty(len(both), np.bool_)
    surplus[order] = place >= pairs
    return surplus


class Only:
    """Some of another source's events, marked by where they are from.

    Args:
        source: The source; nothing was read of it yet.
        stages: What its events go through before they are told apart.
        mask: Which of them.
        side: What it is called; sources that are merged stand in the order of these.
        marks: Columns to add: name to the value that all of the events get.
        left_out: Columns to leave out.
    """

    def __init__(
        self,
        source: Source,
        stages: Sequence[Stage],
        mask: Mask,
        side: str,
        *,
        marks: dict[str, str],
        left_out: Collection[str] = (),
    ) -> None:
        self._source = source
        self._stages = stages
        self._mask = mask
        self._side = side
        self._marks = marks
        self._left_out = left_out

    @property
    def info(self) -> StreamInfo:
        """Which side it is."""
        return StreamInfo(self._side, self._source.info.format)

    def batches(self) -> Iterator[Batch]:
        """The events, as far as there are any wanted.

        Yields:
            Batches with sources, and without other side records.

        Raises:
            KcapError: There are fewer events than when the mask was made.
        """
        at, wanted = 0, np.flatnonzero(self._mask)
        end = int(wanted[-1]) + 1 if len(wanted) else 0
        if not end:
            return
        for batch in self._source.batches():
            for stage in self._stages:
                batch = stage.process(batch)  # noqa: PLW2901  (one and the same batch, narrowed)
            rows = np.flatnonzero(self._mask[at : at + batch.rows]).astype(np.int32)
            at += batch.rows
            sources = [side for side in batch.before if isinstance(side, SourceInfo)]
            yield self._marked(batch, rows).with_before(sources)
            if at >= end:
                return
        raise KcapError(
            "the input changed while it was read",
            file=self._source.info.file,
            expected=f"at least {end:,} events, as the first time",
            hint="compare a copy of it",
        )

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()

    def _marked(self, batch: Batch, rows: Rows) -> Batch:
        found = batch.take(rows)
        found = found.select([name for name in found.columns if name not in self._left_out])
        if not found.rows:
            return found
        marks = self._marks.items()
        return found.adding({n: constant(TypeClass.STR, v, found.rows) for n, v in marks})
