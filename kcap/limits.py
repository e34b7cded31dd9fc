"""The limits of the format (spec/kcap.md, clause 3), enforced by the writer and by every reader."""

from __future__ import annotations

from typing import Final

RECORD_PAYLOAD_BYTES: Final = 64 << 20
"""Longest payload of one record."""

CHUNK_DECODED_BYTES: Final = 32 << 20
"""Decoded bytes of one chunk; a single row may exceed it by its own size."""

CHUNK_ROWS: Final = 65_536
"""Rows of one chunk."""

COLUMNS: Final = 65_536
"""Columns of one capture."""

VALUE_BYTES: Final = 64 << 10
"""Longest value; a longer one is cut and its true length kept in ``NAME__size``."""

ROW_BYTES: Final = 24 << 20
"""Decoded bytes of one row; so that a chunk of one row still fits a record."""

DIRECTORY_BYTES: Final = 16 << 20
"""Longest chunk directory."""

BLOB_BLOCK_BYTES: Final = 1 << 20
"""Longest block of an artifact."""

JSON_DEPTH: Final = 32
"""Deepest nesting of a ``json`` value or a JSON payload."""

NAME_BYTES: Final = 1024
"""Longest column name."""

STATE_CHUNKS: Final = 16
"""Chunks between two STATE records of a recording."""

STATE_NS: Final = 600 * 10**9
"""Event time between two STATE records of a recording, in ns."""

STATE_SHARE: Final = 0.05
"""Largest share of a file that STATE records may take."""

LIST_ITEMS: Final = 4 << 20
"""Items of all lists of one column in a chunk."""

LIST_VALUE_ITEMS: Final = 8192
"""Items of one list."""

LINE_BYTES: Final = 16 << 20
"""Longest line of a text input."""
