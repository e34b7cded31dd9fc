"""The limits of the format (spec/kcap.md, clause 3), enforced by the writer and by every reader."""

from __future__ import annotations

from typing import Final

RECORD_PAYLOAD_BYTES: Final = 64 << 20
"""Longest payload of one record."""

CHUNK_BYTES: Final = 32 << 20
"""What a chunk of several rows may take in memory (clause 3.2)."""

CHUNK_ROWS: Final = 65_536
"""Rows of one chunk."""

COLUMNS: Final = 65_536
"""Columns of one capture."""

VALUE_BYTES: Final = 64 << 10
"""Longest value; a longer one is cut and its true length kept in ``NAME__size``."""

ROW_BYTES: Final = 24 << 20
"""What one row may take in memory, so that a chunk of one row still fits a record."""

CHUNKS: Final = 1_000_000
"""Chunks of one capture, so that the FOOTER's table still fits a record."""

DIRECTORY_BYTES: Final = 16 << 20
"""Longest chunk directory."""

BODY_BYTES: Final = 1 << 20
"""Decoded JSON of a record, other than SCHEMA and FOOTER."""

SCHEMA_BYTES: Final = 16 << 20
"""Decoded JSON of a SCHEMA or FOOTER record."""

BODY_CONTAINERS: Final = 1 << 20
"""Objects and lists in one JSON body."""

STATE_BYTES: Final = 64 << 20
"""What the tables of one STATE record may take in memory."""

BLOB_BLOCK_BYTES: Final = 1 << 20
"""Longest block of an artifact."""

BLOB_BLOCKS: Final = 1 << 20
"""Different blocks of one capture, so that a table of them fits into memory."""

BLOBS: Final = 1 << 20
"""Blobs of one capture."""

BLOB_RANGES: Final = 1 << 20
"""Ranges of one blob, so that a manifest fits a record."""

BLOB_BYTES: Final = 1 << 43
"""Size of one blob, and of one hole or missing range in it."""

BLOB_HASHED_HOLES: Final = 1 << 30
"""Holes of a blob that has a hash."""

BLOB_REASONS: Final = 100
"""Different reasons why ranges of one blob are missing."""

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

LIST_VALUE_ITEMS: Final = 8192
"""Items of one list."""

LINE_BYTES: Final = 16 << 20
"""Longest line of a text input."""

EVENT_FIELDS: Final = 8192
"""Fields of one foreign event that a reader accepts, arguments included; no limit of the format."""
