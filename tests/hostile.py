"""Values that try to break out of a line of text, for the tests of the text writers."""

from __future__ import annotations

import math

from hypothesis import strategies as st

HOSTILE = st.sampled_from(
    [
        "\x1b[2J",
        "\r",
        "\n",
        "\x00",
        "\x85",
        "\u202e",
        "\ufeff",
        '"',
        "\\",
        "\\u0041",
        "ü",
        "➜ ",
        ", ",
        "😀",
        "\ud800",
    ]
)
TEXT = st.one_of(st.text(max_size=8), st.lists(HOSTILE, max_size=4).map("".join))
INTEGER = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.sampled_from([0, -(1 << 63), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 70)]),
)
FLOAT = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 1.0, -0.0])
FLAT = st.one_of(INTEGER, FLOAT, st.booleans(), TEXT)
VALUE = st.one_of(
    FLAT,
    st.binary(max_size=8),
    *(st.lists(items, max_size=3) for items in (INTEGER, FLOAT, st.booleans(), TEXT)),
    st.recursive(FLAT, lambda v: st.lists(v, max_size=2) | st.dictionaries(TEXT, v, max_size=2)),
)
