"""Corners of filters in which faster ways could part from the plain one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from math import nan
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cli_support import run
from filter_support import NS, events, written
from hypothesis import given
from hypothesis import strategies as st
from support import batch_of, opened

from kcap.filter import Filter
from kcap.filter.derive import function
from kcap.filter.entries import Memo, Values, key_of, mapped
from kcap.filter.errors import FilterError
from kcap.filter.members import Members
from kcap.filter.syntax import Op
from kcap.filter.values import Named, compare
from kcap.model.batch import Batch, Column
from kcap.model.classes import U64_MAX, TypeClass
from kcap.replay.chosen import chosen


def found(batch: Batch, text: str) -> tuple[int, int]:
    """How many events a filter finds in a batch, and in a capture that holds it."""
    one = Filter.of(text)
    out, writer = written([batch])
    writer.close()
    source, stages = chosen(opened(out.getvalue()), where=one)
    assert not stages  # chunks are pruned
    return len(one.rows(batch)), sum(part.rows for part in source.batches())


@pytest.fixture
def three() -> Batch:
    """Events with two, one and no argument, half a microsecond behind full ones."""
    batch = events([{"x": 1, "y": 2}, {"x": 3}, {}], event="open", pid=7, category="network")
    times = np.asarray(batch.columns["ts"].values) + 500
    return batch.adding({"ts": Column(TypeClass.I64, pa.array(times))})


def test_a_field_without_a_column_of_its_own_prunes_nothing(three: Batch) -> None:
    """Arguments are counted in captures, too."""
    assert found(three, "evt.nparams = 2") == (1, 1)
    assert found(three, "evt.nparams = 4") == (0, 0)


def test_times_prune_by_the_ns(three: Batch) -> None:
    """The last event of a chunk is found although its microsecond began before."""
    assert found(three, f"evt.time.ns = {NS + 2500}") == (1, 1)
    assert found(three, f"evt.time.ns > {NS + 2100}") == (1, 1)
    assert found(three, f"evt.time.ns > {NS + 2500}") == (0, 0)


def test_a_map_kept_as_text_prunes_nothing() -> None:
    """The names in a map are found where the map is a column of text."""
    # Texts that do not compress, so that the chunk has room for a bloom filter.
    words = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(500)]
    batch = events([{"x": word} for word in words], event="open")
    assert found(batch, "evt.arg[x] in ('a')") == (0, 0)
    tags = pa.array(['{"a":"b"}'] * batch.rows).dictionary_encode()
    batch = batch.adding({"ext_meta__str": Column(TypeClass.STR, tags)})
    assert found(batch, "kevt.meta in ('a')") == (500, 500)
    assert found(batch, "kevt.meta in ('b')") == (0, 0)


@pytest.mark.parametrize("word", ["--5", "-", "", "9" * 5000, "٣"])
def test_texts_that_are_no_integers(three: Batch, word: str) -> None:
    """Texts in a list of numbers that stand for no integer find nothing, and are no error."""
    assert found(three, f"pid in ('{word}')") == (0, 0)
    assert found(three, f"pid in ('{word}', '7')") == (3, 3)


@pytest.mark.parametrize("digits", ["1" * 400, "18446744073709551616", "-9223372036854775809"])
def test_fractions_keep_the_limits_of_integers(digits: str) -> None:
    """A number beyond 64 bits is refused with and without a point."""
    for text in (f"pid < {digits}", f"pid < {digits}.0"):
        with pytest.raises(FilterError, match="more than 64 bits"):
            Filter.of(text)
    assert Filter.of("pid < 18446744073709551615.0")


def test_a_time_over_two_lines_is_no_time() -> None:
    """A line break in a time is an error with its place."""
    with pytest.raises(FilterError, match="no time"):
        Filter.of(r"ts > '2026-11-21\n'")


@pytest.mark.parametrize("op", ["=", "!=", "~="])
def test_a_constant_on_the_left_means_the_same(three: Batch, op: str) -> None:
    """Constants stand for their synonyms on either side."""
    assert found(three, f"'net' {op} evt.category") == found(three, f"evt.category {op} 'net'")
    assert found(three, "'net' = evt.category") == (3, 3)


def test_items_of_a_list_keep_their_places() -> None:
    """The arguments of an ancestor are found by its number though those of another are unknown."""
    split = function("split")
    assert split(["sh -c x", None, "init"]) == (("sh", "-c", "x"), None, ("init",))
    assert split([None]) is None


def test_another_thread_may_forget() -> None:
    """Results do not depend on what is remembered staying so while they are made."""

    class Forgetful(Memo):
        def __setitem__(self, key: Any, value: Any) -> None:
            """As if another thread had cleared it at once."""

    double: Callable[[str], str] = lambda text: text * 2  # noqa: E731
    assert list(mapped(Values(["a", "a"]), double, Forgetful()).values()) == ["aa", "aa"]


MEMBERS = st.sampled_from(
    [
        *("a", "A", "5", "-5", "05", "K", "\u212a", "a|b", "b|A", "", "true", "1.5", "::1"),
        *("10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.1.2"),
        *(0, 1, 5, -5, 1 << 53, (1 << 53) + 1, U64_MAX, 5.0, 1.5, float(1 << 53), True, False),
        *(IPv4Address("10.0.0.1"), IPv6Address("::ffff:10.0.0.1"), IPv6Address("::1")),
        *(IPv4Network("10.0.0.0/8"), IPv4Network("0.0.0.0/0"), IPv6Network("fe80::/10")),
        IPv6Network("::ffff:0:0/96"),
    ]
)
ONE = st.sampled_from([None, Named(5, "a|b"), Named(1, "A"), nan, {"a": 5}]) | MEMBERS.filter(
    lambda value: isinstance(value, str | int | float)
)


@given(ONE | st.lists(ONE, max_size=3).map(tuple), st.lists(MEMBERS, min_size=1, max_size=5))
def test_members_are_what_comparing_says(value: Any, constants: list[Any]) -> None:
    """A value looked up in a list is in it where comparing it with each constant says so."""
    for op in (Op.IN, Op.IIN):
        assert Members(op, constants).has(value) == compare(op, value, tuple(constants))


def test_long_lists_take_no_longer() -> None:
    """Of many addresses and many constants not each is compared with each."""
    words = pa.array([f"10.{n >> 8}.{n & 255}.7" for n in range(20_000)])
    texts = pa.DictionaryArray.from_arrays(pa.array(range(20_000), pa.int32()), words)
    numbers = pa.array(np.arange(20_000))
    batch = Batch(
        20_000, {"arg_dip": Column(TypeClass.STR, texts), "pid": Column(TypeClass.I64, numbers)}
    )
    several = [f"10.0.{n >> 8}.{n & 255}" for n in range(10_000)]
    start = time.process_time()
    assert len(Filter.of(f"net.dip in ({', '.join(several)})").rows(batch)) == 40
    assert len(Filter.of(f"pid in ({', '.join(map(str, range(10_000)))})").rows(batch)) == 10_000
    assert time.process_time() - start < 5  # comparing each with each took minutes


@pytest.mark.parametrize("value", ["a" * 1000, ("a" * 999, "b", None)])
def test_no_more_is_remembered_than_fits(value: Any) -> None:
    """Long values are forgotten long before their number is the limit, short ones are not."""
    long, short = Memo(), Memo()
    for n in range(40_000):
        longer = f"{n}{value}" if isinstance(value, str) else (str(n), *value)
        long[key_of(longer)] = True
        short[key_of(n)] = True
    long.trim()
    short.trim()
    assert len(long) == 0
    assert len(short) == 40_000


_THREADS = """
import threading
from kcap.format import zstd

raw = bytes(range(256)) * 4096

def work():
    for _ in range(60):
        assert zstd.decompress(zstd.compress(raw), len(raw)) == raw

threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_captures_in_several_threads() -> None:
    """Captures read and written by several threads at once neither crash nor differ."""
    done = subprocess.run(
        [sys.executable, "-c", _THREADS], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "text",
    [
        "{} in (::ffff:10.0.0.0/104)",
        "{} = ::ffff:10.1.2.3/128",
        "cidr_contains({}, '::ffff:0:0/96')",
        "{} in (10.0.0.0/8)",
    ],
)
def test_networks_inside_ipv6_are_those_of_ipv4(text: str) -> None:
    """As addresses are: ::ffff:10.1.2.3 is 10.1.2.3."""
    batch = batch_of([(1, {"ip": "10.1.2.3"}), (2, {"ip": "::ffff:10.1.2.3"}), (3, {"ip": "::1"})])
    assert Filter.of(text.format("arg_ip")).rows(batch).tolist() == [0, 1]


def test_foreach_takes_items_or_their_parts() -> None:
    """Both at once would mean two things by one name."""
    with pytest.raises(FilterError, match="both alone and with a part"):
        Filter.of("foreach(ps._ancestors, $p, $p = 'sh' or $p.name = 'sh')")
    Filter.of("foreach(ps._ancestors, $p, $p.pid = 1 or $p.name = 'sh')")  # negative control


def test_an_option_of_time_over_two_lines_is_no_time() -> None:
    """Wrong usage, not an error of ours."""
    result = run("cat", "--start", "2026-11-20T10:00:00Z\nx", "x.kcap")
    assert result.exit_code == 2
    assert "is no time" in result.stderr
