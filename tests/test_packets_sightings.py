"""Records of packets become frames: whole ones as they are, what is no record counted."""

from __future__ import annotations

from importlib import resources

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kcap.readers.live.bpf.elf import ElfObject
from kcap.readers.live.bpf.order import Records
from kcap.readers.live.cgroups import Containers
from kcap.readers.live.host import Clocks
from kcap.readers.live.packets.program import OBJECT
from kcap.readers.live.packets.sightings import Layouts, Sightings, layouts
from kcap.readers.live.procfs import ProcFS

CLOCKS = Clocks(realtime_ns=1_000, boottime_ns=0)


def kinds() -> Layouts:
    """How the shipped program lays records out."""
    content = resources.files("kcap.readers.live.bpf").joinpath(OBJECT).read_bytes()
    return layouts(ElfObject(content, file=OBJECT).btf)


KINDS = kinds()


def record(ts_ns: int, data: bytes, pid: int, length: int) -> bytes:
    """One record as the kernel program makes it, padded to a multiple of 8."""
    packet, owner = np.zeros(1, KINDS.packet), np.zeros(1, KINDS.owner)
    packet["ts_ns"], packet["captured"], packet["length"] = ts_ns, len(data), length
    packet["direction"] = 1 + ts_ns % 2
    packet["name"][0, :2] = np.frombuffer(b"lo", np.int8)
    owner["pid"], owner["tid"], owner["mark"] = pid, pid, 1
    made = packet.tobytes() + owner.tobytes() + data
    return made + bytes(-len(made) % 8)


PARTS = st.lists(
    st.tuples(
        st.integers(0, 1 << 40), st.binary(max_size=90), st.integers(0, 3), st.integers(0, 1 << 17)
    ),
    max_size=12,
)


def sightings() -> Sightings:
    """A decoder; nobody is in a container."""
    return Sightings(KINDS, CLOCKS, Containers(ProcFS()))


def laid_out(parts: list[tuple[int, bytes, int, int]]) -> Records:
    """Records one behind the other."""
    raw = [record(*part) for part in parts]
    ends = np.cumsum([len(each) for each in raw], dtype=np.int64)
    offsets = ends - [len(each) for each in raw]
    return Records(np.frombuffer(b"".join(raw), np.uint8), np.asarray(offsets, np.int64))


@given(parts=PARTS)
def test_frames_are_what_the_records_say(parts: list[tuple[int, bytes, int, int]]) -> None:
    """Bytes, times, lengths, directions and owners; without a process there is none."""
    decoder = sightings()
    frames, owners, codes = decoder.frames(laid_out(parts))
    assert [frames.frame(n) for n in range(len(frames))] == [data for _, data, _, _ in parts]
    assert frames.ts_ns.tolist() == [ts_ns + 1_000 for ts_ns, *_ in parts]
    assert frames.length.tolist() == [max(size, len(data)) for _, data, _, size in parts]
    whose = [0 if code < 0 else int(owners["pid"][code]) for code in codes]
    assert whose == [pid for _, _, pid, _ in parts]
    assert decoder.damaged == 0
    count, columns = decoder.columns(laid_out(parts))
    assert count == len(parts)
    assert not parts or len(columns["event"]) == count


@given(parts=PARTS.filter(len), cut=st.integers(0, 5000))
def test_a_record_that_is_cut_off_is_counted(
    parts: list[tuple[int, bytes, int, int]], cut: int
) -> None:
    """Whatever ends early: those before it come, it is damage, and nothing is read beyond."""
    decoder = sightings()
    data, offsets = laid_out(parts)
    short = data[: max(len(data) - cut, KINDS.head_bytes) & -8]
    frames, _, _ = decoder.frames(Records(short, offsets[offsets < len(short)]))
    inside = int(np.count_nonzero(offsets < len(short)))
    assert len(frames) + decoder.damaged == inside
    assert len(frames) == 0 or int((frames.offsets + frames.captured).max()) <= len(short)
