"""Captures with blobs for the tests of blobs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import strategies as st
from support import FILE_ID, opened

from kcap import limits
from kcap.format import scan
from kcap.format.blobs import Gap, Manifest
from kcap.format.writer import CaptureWriter

Parts = list[bytes | Gap]
BLOCK = 16

PARTS: st.SearchStrategy[Parts] = st.lists(
    st.one_of(
        st.binary(max_size=3 * BLOCK),
        st.binary(min_size=1, max_size=2).map(lambda b: b * BLOCK),
        st.builds(Gap, st.integers(0, 40), st.sampled_from([None, "EIO", "not mapped"])),
    ),
    max_size=8,
)


@contextmanager
def blocks_of(size: int) -> Iterator[None]:
    """Blocks of a few bytes, which are as good as those of 1 MiB (9.2)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "BLOB_BLOCK_BYTES", size)
        yield


def written(
    blobs: list[Parts], *, closed: bool = True, **options: Any
) -> tuple[bytes, list[Manifest]]:
    """A capture with blobs, and what the writer said of them."""
    out = io.BytesIO()
    made = CaptureWriter(out, file_id=FILE_ID, **options)
    manifests = [made.blob(parts, path=f"/bin/{i}", ord=i) for i, parts in enumerate(blobs)]
    if closed:
        made.close()
    return out.getvalue(), manifests


def content(parts: Parts) -> bytes:
    """What a reader gives for parts."""
    return b"".join(bytes(p.length) if isinstance(p, Gap) else p for p in parts)


def divided(parts: Parts, cuts: list[int]) -> Parts:
    """The same blob in other parts."""
    out: Parts = []
    for part in parts:
        at = 0
        for cut in [*sorted(cuts), 1 << 30]:
            if isinstance(part, Gap):
                end = min(cut, part.length)
                out.append(Gap(max(0, end - at), part.reason))
            else:
                end = min(cut, len(part))
                out.append(part[at:end])
            at = max(at, end)
    return out


def kinds_of(data: bytes) -> list[str]:
    """The kinds of a capture's records."""
    found = opened(data).scanner().records()
    return [r.header.name for r in found if isinstance(r, scan.Record)]
