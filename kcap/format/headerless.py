"""Finding a capture's id where both FILE_HEADER records are damaged (spec/kcap.md, clause 2.7)."""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap import limits
from kcap.errors import KcapError
from kcap.format import payloads, record
from kcap.format.payloads import END_BYTES, FILE_ID_BYTES, Checkpoint, Footer
from kcap.format.record import HEADER_BYTES, Header, Kind
from kcap.format.scan import TRIED_BYTES, candidates
from kcap.format.window import FileWindow, Window

STREAM_BYTES: Final = 64 << 20
"""How much of a stream is held to find its id; a writer sets a CHECKPOINT every 16 MiB."""

_STEP: Final = 1 << 20
_KINDS: Final = (Kind.CHECKPOINT, Kind.FOOTER)
_TRIED: Final = 64
"""Entries of a table that are looked at."""


def find_id(window: Window) -> bytes | None:
    """Search a FOOTER or CHECKPOINT, which say whose they are.

    A capture may hold others, as artifacts of the host it was recorded on. So a record counts only
    where it stands at the place that it names, or leads to chunks of its own.

    Args:
        window: The capture.

    Returns:
        The file's id; None where no record tells it.
    """
    if isinstance(window, FileWindow):
        end = payloads.footer_place(window.read_at(max(0, window.size - END_BYTES), END_BYTES))
        if end is not None:
            found = _id_at(window, window.size - HEADER_BYTES - end[1], anywhere=True)
            if found is not None:
                return found
    most = None if isinstance(window, FileWindow) else STREAM_BYTES
    at = tried = 0
    while most is None or at < most:
        block = window.read_at(at, _STEP)
        for place in candidates(block, at):
            if block[place - at + 4 : place - at + 5] in (bytes([k]) for k in _KINDS):
                looked = _header_at(window, place)
                tried += 0 if looked is None else looked[0].size
                if tried > TRIED_BYTES + place:
                    return None
                found = _id_at(window, place)
                if found is not None:
                    return found
        if len(block) < _STEP:
            break
        at += _STEP - HEADER_BYTES
    return None


def _header_at(window: Window, at: int) -> tuple[Header, bytes] | None:
    """The header of a FOOTER or CHECKPOINT, and the id that goes with it."""
    if at < 0:
        return None
    head = window.read_at(at, HEADER_BYTES + FILE_ID_BYTES)
    file_id = head[HEADER_BYTES:]
    header = record.unpack(head[:HEADER_BYTES], file_id)
    if header is None or header.kind not in _KINDS or len(file_id) < FILE_ID_BYTES:
        return None
    return None if header.length > limits.RECORD_PAYLOAD_BYTES else (header, file_id)


def _id_at(window: Window, at: int, *, anywhere: bool = False) -> bytes | None:
    """The id that the record at a place says it belongs to, if it can be believed."""
    found = _header_at(window, at)
    if found is None:
        return None
    header, file_id = found
    payload = window.read_at(at + HEADER_BYTES, header.length)
    if zlib.crc32(payload) != header.payload_crc:
        return None
    try:
        if header.kind == Kind.FOOTER:
            place = payloads.footer_place(payload[-END_BYTES:])
            own = anywhere or place == (at, header.length)
            table = Footer.unpack(payload).chunks
        else:
            own, table = False, Checkpoint.unpack(payload).chunks
    except KcapError:
        return None
    return file_id if own or _leads_to_chunk(window, file_id, table, at) else None


def _leads_to_chunk(
    window: Window, file_id: bytes, table: npt.NDArray[np.void], before: int
) -> bool:
    """Whether a record with rows, of this id, stands where a table says."""
    for offset in table["offset"][:_TRIED].tolist():
        if offset >= before:
            return False
        header = record.unpack(window.read_at(offset, HEADER_BYTES), file_id)
        if header is not None and header.kind in (Kind.CHUNK, Kind.TAIL):
            return True
    return False
