"""Makes records as the kernel program does, for tests of what decodes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.decode import layouts
from kcap.readers.live.bpf.elf import ElfObject
from kcap.readers.live.bpf.records import Layouts

OBJECT = Path(__file__).parent.parent / "readers/live/bpf/recorder.bpf.o"


class Made(NamedTuple):
    """Records in memory."""

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]


def object_layouts() -> Layouts:
    """The structures of the kernel program."""
    return layouts(ElfObject(OBJECT.read_bytes()).btf)


LAYOUTS = object_layouts()

USUAL: Mapping[str, Any] = {
    "ts_ns": 5_000_000_000,
    "pid": 100,
    "tid": 101,
    "ppid": 99,
    "ns_pid": 10,
    "ns_tid": 11,
    "ns_ppid": 9,
    "uid": 1000,
    "gid": 1001,
    "cgroup_id": 4242,
    "start_ns": 3_000_000_000,
    "thread_start_ns": 3_000_000_001,
    "mount_ns": 4026531840,
    "pid_ns": 4026531836,
    "cpu": 1,
    "nr": 0xFFFFFFFF,
    "comm": b"bash",
}


def record(
    event: str,
    *,
    pieces: Mapping[int, bytes] | None = None,
    numbers: Mapping[int, int] | None = None,
    **fields: Any,
) -> bytes:
    """A record.

    Args:
        event: Name of the event.
        pieces: Its pieces by number.
        numbers: Its numbers by number; negative ones as two's complement.
        fields: Other fields of the record.

    Returns:
        Its bytes.
    """
    pieces = pieces or {}
    known = events.events()[event]
    head = np.zeros((), LAYOUTS.record)
    told = dict(USUAL)
    if known.is_call:
        told["nr"] = known.native[0]
    told |= fields
    for name, value in told.items():
        if name == "comm":
            head[name] = np.frombuffer(value.ljust(16, b"\0"), head[name].dtype)
        else:
            head[name] = value
    for at, number in (numbers or {}).items():
        head["number"][at] = number & 0xFFFFFFFFFFFFFFFF
    head["event"] = known.number
    failed = known.is_call and -4095 <= head["retval"] < 0
    head["error"] = -head["retval"] if failed else 0
    for at, piece in pieces.items():
        head["piece"][at] = len(piece)
    body = b"".join(pieces[at] for at in sorted(pieces))
    head["bytes"] = LAYOUTS.record.itemsize + len(body)
    return head.tobytes() + body


def made(records: Iterable[bytes], gap: int = 8) -> Made:
    """Records as they lie in a ring.

    Args:
        records: The records.
        gap: Bytes between two at least.

    Returns:
        The memory, and where they are.
    """
    data = bytearray()
    offsets = []
    for item in records:
        data += bytes(gap)
        data += bytes(-len(data) % 8)
        offsets.append(len(data))
        data += item
    return Made(np.frombuffer(bytes(data), np.uint8), np.array(offsets, np.int64))


def components(path: str) -> bytes:
    """A path as the kernel program gives it."""
    names = [name for name in path.split("/") if name]
    return b"".join(name.encode() + b"\0" for name in reversed(names)) + b"\0"
