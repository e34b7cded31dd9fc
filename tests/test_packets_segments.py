"""Segments that a device splits or joins: one packet, and in `single` what tcpdump sees."""

from __future__ import annotations

import itertools
import struct
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.packets import segments
from kcap.packets.frames import Frames
from kcap.packets.headers import parse
from kcap.packets.identity import PacketIds
from kcap.writers import pcap_single
from kcap.writers.pcap_single import Singles

S = 1_700_000_000 * 10**9
IN, OUT = 1, 2


class Segment(NamedTuple):
    """One sighting of a segment of TCP, of which 40 bytes were captured."""

    way: int
    seq: int
    size: int
    ack: int = 7
    port: int = 80
    version: int = 4

    @property
    def raw(self) -> bytes:
        """Its headers; what carries more than 64 KiB does not say how long it is."""
        tcp = struct.pack(
            ">HHIIHHHH", 4000, self.port, self.seq & 0xFFFFFFFF, self.ack, 5 << 12 | 24, 9, 0, 0
        )
        if self.version == 4:
            total = 40 + self.size
            said = total if total < 1 << 16 else 0
            return struct.pack(">BBHHHBBHII", 0x45, 0, said, 1, 0, 64, 6, 0, 1, 1) + tcp
        said = 20 + self.size if 20 + self.size < 1 << 16 else 0
        return struct.pack(">IHBB", 6 << 28, said, 6, 64) + bytes(32) + tcp

    @property
    def length(self) -> int:
        """Of the whole packet."""
        return len(self.raw) + self.size


def frames(seen: list[Segment]) -> Frames:
    raws = [one.raw for one in seen]
    return Frames.of(
        raws,
        [S + n for n in range(len(seen))],
        101,
        length=np.array([one.length for one in seen], np.int64),
        direction=np.array([one.way for one in seen], np.uint8),
    )


def ids(seen: list[Segment], cuts: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment]
    """Their packets, however the stream is cut."""
    every, maker, found = frames(seen), PacketIds(), []
    for begin, end in itertools.pairwise([0, *sorted(cuts), len(seen)]):
        part = every.take(np.arange(begin, end))
        found += maker.give(part, parse(part)).tolist()
    return found


def single(seen: list[Segment], numbers: list[int], cuts: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment]
    """The places of those that `single` holds."""
    every, singles, found = frames(seen), Singles(), []
    for begin, end in itertools.pairwise([0, *sorted(cuts), len(seen)]):
        part = every.take(np.arange(begin, end))
        found += singles.put(part, np.array(numbers[begin:end], np.uint64))
    found += singles.end()
    return [int(ts) - S for part in found for ts in part.ts_ns]


WHOLE = Segment(OUT, 1000, 95_232)
PARTS = [Segment(IN, 1000, 47_616), Segment(IN, 48_616, 47_616)]


@pytest.mark.parametrize("version", [4, 6])
def test_a_split_segment_is_one_packet(version: int) -> None:
    """Its parts have its id; `single` has the parts, other packets stay where they are."""
    other = Segment(OUT, 5, 100)
    seen = [other, WHOLE, other._replace(way=IN), *PARTS]
    seen = [one._replace(version=version) for one in seen]
    found = ids(seen)
    assert found == [found[0], found[1], found[0], found[1], found[1]]
    assert found[0] != found[1]
    assert single(seen, found) == [0, 3, 4]


@pytest.mark.parametrize(
    "other",
    [
        {"ack": 8},
        {"port": 81},
        {"version": 6},
        {"seq": 999},
        {"seq": 1000 + 95_232},
        {"seq": 1000 + 95_232 - 47_615},
        {"way": OUT},
    ],
)
def test_what_is_no_part_is_another_packet(other: dict[str, int]) -> None:
    """The control: another stream, bytes beyond the whole, or the wrong way."""
    seen = [WHOLE, PARTS[0]._replace(**other)]
    found = ids(seen)
    assert found[0] != found[1]
    assert single(seen, found) == [0, 1]


def test_a_part_comes_behind_its_whole() -> None:
    """Neither before it nor long after it."""
    assert len(set(ids([PARTS[0], WHOLE]))) == 2
    for more, count in ((-1, 1), (0, 2)):
        between = [Segment(0, n, 1) for n in range(segments.REACH + more)]
        found = ids([WHOLE, *between, PARTS[0]])
        assert len({found[0], found[-1]}) == count


def test_what_went_out_alike_is_no_part() -> None:
    """Sent again in pieces, each piece pairs with itself."""
    again = [one._replace(way=OUT) for one in PARTS]
    seen = [WHOLE, *again, *PARTS]
    found = ids(seen)
    assert found[1:3] == found[3:5]
    assert len(set(found)) == 3
    assert single(seen, found) == [0, 1, 2]


def test_numbers_begin_anew() -> None:
    """A whole across the end of the sequence numbers has its parts."""
    begin = (1 << 32) - 5000
    seen = [WHOLE._replace(seq=begin), *(p._replace(seq=begin + p.seq - 1000) for p in PARTS)]
    assert len(set(ids(seen))) == 1
    assert single(seen, ids(seen)) == [1, 2]


def test_what_a_device_joins() -> None:
    """Sent in pieces, come as one: the first piece's packet; `single` has the pieces."""
    sent = [one._replace(way=OUT) for one in PARTS]
    seen = [*sent, WHOLE._replace(way=IN)]
    found = ids(seen)
    assert found[2] == found[0] != found[1]
    assert single(seen, found) == [0, 1]


def test_a_whole_without_parts_stays() -> None:
    """What leaves the host is seen whole by tcpdump, too; what is behind it keeps its place."""
    seen = [WHOLE, *(Segment(OUT, 200_000 + n, 1) for n in range(5))]
    assert single(seen, ids(seen)) == [*range(6)]
    # ... and waits for no more than it has to.
    singles = Singles()
    many = [WHOLE, *(Segment(0, n, 1) for n in range(segments.REACH + 1))]
    told = singles.put(frames(many), np.array(ids(many), np.uint64))
    assert sum(map(len, told)) == len(many)


STREAM = st.lists(
    st.builds(
        Segment,
        way=st.sampled_from([OUT, IN, IN, 0]),
        seq=st.sampled_from([0, 600, 1200, 1800, (1 << 32) - 600]),
        size=st.sampled_from([0, 1, 600, 1200, 1800, 70_000]),
        ack=st.sampled_from([7, 7, 7, 8]),
        port=st.just(80),
        version=st.sampled_from([4, 6]),
    ),
    max_size=40,
)


@given(STREAM, st.data())
def test_cuts_change_nothing(seen: list[Segment], data: st.DataObject) -> None:
    """Ids, and what is in `single`, are the same however the stream is cut."""
    cuts = data.draw(st.sets(st.integers(0, len(seen)), max_size=6))
    found = ids(seen)
    assert ids(seen, cuts) == found
    assert single(seen, found, cuts) == single(seen, found)


@given(STREAM, st.data())
def test_a_short_reach_changes_nothing_either(seen: list[Segment], data: st.DataObject) -> None:
    """The same where what is remembered ends within the stream."""
    cuts = data.draw(st.sets(st.integers(0, len(seen)), max_size=6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "REACH", 5)
        patch.setattr(pcap_single, "REACH", 5)
        found = ids(seen)
        assert ids(seen, cuts) == found
        assert single(seen, found, cuts) == single(seen, found)


@given(STREAM)
def test_parts_are_found_as_one_by_one(seen: list[Segment]) -> None:
    """The search in columns finds what a search through all that was sent before finds."""
    found = ids(seen)
    for place, one in enumerate(seen):
        if one.way != IN or not one.size:
            continue
        before = [
            n
            for n, o in enumerate(seen[:place])
            if o.way == OUT and o.size and (o.ack, o.version) == (one.ack, one.version)
        ]
        if any((seen[n].seq, seen[n].size) == (one.seq, one.size) for n in before):
            continue
        ahead = {n: (one.seq - seen[n].seq) % (1 << 32) for n in before}
        nearest = max((n for n in before if ahead[n] == min(ahead.values())), default=None)
        if nearest is None:
            continue
        size = seen[nearest].size
        inside = ahead[nearest] + one.size <= size and one.size < size
        if inside or (ahead[nearest] == 0 and one.size > size):
            assert found[place] == found[nearest]
        else:
            assert found[place] not in {found[n] for n in before}


@given(STREAM)
def test_single_has_every_byte(seen: list[Segment]) -> None:
    """Of each packet something is there, once; what was split without gaps is there wholly."""
    found = ids(seen)
    kept = single(seen, found)
    assert kept == sorted(set(kept))
    assert {found[n] for n in kept} == set(found)
    for number in set(found):
        mine = [seen[n] for n in kept if found[n] == number]
        assert len({(one.seq, one.size) for one in mine}) == len(mine)
