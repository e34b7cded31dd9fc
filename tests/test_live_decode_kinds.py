"""Records that are alike are one kind, of which texts are made once: nobody can tell that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.readers.live.bpf import records as bpf_records
from kcap.readers.live.bpf.decode import syscalls
from kcap.readers.live.bpf.records import KIND_NUMBER, Records
from tests import recorder_oracle
from tests.recorder_strategies import records
from tests.recorder_support import LAYOUTS, components, made, record
from tests.test_live_decode import OFFSET_NS, decoded


def again(item: bytes, **fields: int) -> bytes:
    """A record again, with other fields and other registers: another time, process and call."""
    head = np.frombuffer(item[: LAYOUTS.record.itemsize], LAYOUTS.record).copy()
    for name, value in fields.items():
        if name == "number":
            head["number"][0, :KIND_NUMBER] = value
        else:
            head[name] = value
    return head.tobytes() + item[LAYOUTS.record.itemsize :]


WHO_AND_HOW = ("pid", "tid", "uid", "cpu", "mount_ns", "number")
others = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(1, 99) for name in ("pid", "tid", "uid", "cpu", "mount_ns", "number")
    },
)


@settings(max_examples=150)
@given(st.lists(records(), min_size=1, max_size=3), st.data())
def test_records_of_a_kind_keep_what_is_their_own(items: list[bytes], data: st.DataObject) -> None:
    """Where the same was done to the same, each row still has its own time, process and numbers."""
    many = data.draw(st.lists(st.tuples(st.sampled_from(items), others), max_size=12))
    copies = [again(item, **fields) for item, fields in many]

    rows = decoded(made(copies))

    for row in rows:
        row.pop("shape")
    assert rows == recorder_oracle.decode(copies, OFFSET_NS, syscalls())


def test_kinds_are_what_is_alike() -> None:
    """One kind for what differs in when, who and how; another for a text, an error, a name."""
    usual = record("openat", pieces={0: b"x", 2: components("/x")})
    alike = [usual, again(usual, pid=7, cpu=1), again(usual, number=5), again(usual, ts_ns=2**40)]
    unlike = [
        record("openat", pieces={0: b"y", 2: components("/x")}),
        record("openat", pieces={0: b"x", 2: components("/x")}, retval=-13),
        record("openat", pieces={0: b"x", 2: components("/x")}, comm=b"other"),
        record("open", pieces={0: b"x", 2: components("/x")}),
        record("openat", pieces={0: b"x", 2: components("/x")}, numbers={8: 4}),
        record("openat", pieces={0: b"x/x"}),
    ]
    kinds = Records(LAYOUTS, made([*alike, *unlike])).kinds()
    assert kinds.which is not None
    assert sorted(np.bincount(kinds.which).tolist()) == [1] * len(unlike) + [len(alike)]


@pytest.mark.parametrize("count", [1, 7])
def test_kinds_are_not_looked_for_where_hardly_any_are_alike(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the search the rows are the same."""
    items = [
        record("openat", pieces={0: b"%d" % (n % count), 2: components("/x")}) for n in range(20)
    ]
    block = made(items)
    found = decoded(block)
    monkeypatch.setattr(bpf_records, "_SAMPLE", 8)
    assert (Records(LAYOUTS, block).kinds().which is None) == (count > 4)
    assert decoded(block) == found
