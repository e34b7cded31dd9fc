"""Executables made to cost much."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kcap.binaries import parts


def test_entropy_takes_no_memory() -> None:
    """A section of a whole file does not take eight times its size."""
    data = bytes(32 << 20)
    tracemalloc.start()
    try:
        assert parts.entropy(data) == 0.0
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=400))
def test_entropy_is_shannons(data: bytes) -> None:
    """As the definition has it, in any number of steps."""
    shares = [count / len(data) for count in Counter(data).values()]
    expected = -sum(share * math.log2(share) for share in shares)
    assert math.isclose(parts.entropy(data), expected, abs_tol=1e-6)
    assert parts.entropy(data * 9000) == parts.entropy(data)
