"""A stream as Arrow's writers need it, and their errors in kcap's words."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import pyarrow as pa

from kcap.errors import KcapError, OutputError
from kcap.writers import fragments
from kcap.writers.layout import Layout

COLUMNS_MAX: Final = 2000
"""Columns of one table: each costs about 2 KB a row group until the file is closed."""


def check_columns(layout: Layout) -> None:
    """Refuse a table that would have too many columns.

    Args:
        layout: The table's layout.

    Raises:
        OutputError: It has.
    """
    count = len(layout.schema)
    if count > COLUMNS_MAX:
        raise OutputError(
            f"the table would have {count:,} columns",
            expected=f"at most {COLUMNS_MAX:,}",
            hint="--schema map keeps all arguments in one column; or choose some with --fields",
        )


class Appended(io.RawIOBase):
    """A stream that may be unable to tell its position, as Arrow sees it.

    Args:
        stream: The stream; stays open.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._at = 0

    def writable(self) -> bool:
        """Whether it takes bytes."""
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401  (a buffer, as io declares it)
        """Write all of some bytes."""
        view = memoryview(data)
        fragments.write_all(self._stream, view)
        self._at += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes written."""
        return self._at

    def flush(self) -> None:
        """Hand on what the stream buffers."""
        fragments.flush(self._stream)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Give Arrow's errors in kcap's words.

    Raises:
        OutputError: Arrow failed in writing, or a pipe's reader left: a part of a table is none.
    """
    try:
        yield
    except KcapError:
        raise
    except (pa.ArrowException, OSError) as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise OutputError(f"writing failed: {why}") from e
