"""Syntax trees of filters for hypothesis: everything that can be written."""

from __future__ import annotations

import ipaddress
from decimal import Decimal

from hypothesis import strategies as st

from kcap.filter.parser import SPAN_MAX_NS
from kcap.filter.syntax import (
    KEYWORDS,
    And,
    Binary,
    Bound,
    Call,
    Duration,
    Expr,
    FieldRef,
    ListOf,
    Literal,
    Not,
    Op,
    Or,
    Sequence,
    Step,
)
from kcap.model.classes import I64_MAX, I64_MIN, U64_MAX

EDGES = [-1, 0, 2**53 - 1, 2**53, 2**53 + 1, I64_MAX, I64_MAX + 1, U64_MAX]
"""Integers at the limits of floats and of 64 bits."""

ODD_TEXTS = [
    "",
    "it's",
    "C:\\Windows\\",
    "a\nb",
    '"',
    "\0",
    "\u212a",
    "İ",
    "ς",
    "and",
    "|",
    "(",
    "\t",
]
"""Texts that a parser, or the folding of case, could trip over."""

WORDS = [
    "exists",
    "e",
    "a.b",
    "x_1",
    "sequence",
    "By",
    "5d",
    "é",
    "a.",
    "",
    "a b",
    'q"',
    "\\",
    "::1",
]
"""Names, some of which need quotes."""

texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=8)
integers = st.sampled_from([*EDGES, I64_MIN]) | st.integers(I64_MIN, U64_MAX)
names = st.sampled_from(WORDS) | st.text(max_size=5)
plain = st.from_regex(r"[a-z_]([a-z0-9_.]*[a-z0-9_])?", fullmatch=True).filter(
    lambda name: name not in KEYWORDS and name != "exists"
)
words = st.from_regex(r"[a-zA-Z_]\w{0,5}", fullmatch=True)
arguments = st.text(
    st.characters(codec="utf-8", exclude_characters="[]\n"), min_size=1, max_size=5
).filter(lambda text: text == text.strip() != "")


def _network(version: int) -> st.SearchStrategy[object]:
    bits = 32 if version == 4 else 128
    make = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    pairs = st.tuples(st.integers(0, 2**bits - 1), st.integers(0, bits))
    return pairs.map(lambda pair: make(pair, strict=False))


durations = st.builds(
    Duration,
    st.integers(0, U64_MAX) | st.sampled_from([0, 1, 10**9, 60 * 10**9, 90 * 86_400 * 10**9]),
)
decimals = st.builds(
    lambda number, places: Decimal(number).scaleb(-places),
    st.integers(-(10**18), 10**18),
    st.integers(1, 12),
)
literals = st.builds(
    Literal,
    st.one_of(
        texts,
        integers,
        decimals,
        st.booleans(),
        st.ip_addresses(),
        _network(4),
        _network(6),
        durations,
    ),
)


@st.composite
def field_refs(draw: st.DrawFn) -> FieldRef:
    """A field; a segment stands only behind brackets."""
    argument = draw(st.none() | arguments)
    segment = "" if argument is None else draw(st.just("") | words)
    return FieldRef(draw(names | plain), argument, segment)


bounds = st.builds(Bound, words, st.just("") | words | st.builds("{}[{}]".format, words, arguments))
leaves = literals | field_refs() | bounds
several = st.lists(literals, min_size=2, max_size=3).map(lambda items: ListOf(tuple(items)))


@st.composite
def binaries(draw: st.DrawFn, inner: st.SearchStrategy[Expr]) -> Binary:
    """An operator; a list of one stands only behind a word, and ``in`` takes no constant."""
    op = draw(st.sampled_from(Op))
    right: st.SearchStrategy[Expr] = inner | several
    if op.is_word:
        right |= st.builds(lambda item: ListOf((item,)), literals)
    chosen = draw(right)
    if op.base is Op.IN and isinstance(chosen, Literal):
        chosen = ListOf((chosen,))
    elif isinstance(chosen, ListOf) and len(chosen.items) == 1 and not op.is_word:
        chosen = chosen.items[0]
    return Binary(op, draw(inner | several), chosen)


def _wider(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        binaries(inner),
        st.builds(Not, inner),
        st.builds(And, parts),
        st.builds(Or, parts),
        st.builds(Call, plain, st.lists(inner | several, max_size=3).map(tuple)),
    )


expressions: st.SearchStrategy[Expr] = st.recursive(leaves, _wider, max_leaves=12)


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    """A sequence with its joins before the steps, behind each of them, or nowhere."""
    joins = st.lists(field_refs(), min_size=1, max_size=2).map(tuple)
    before = draw(st.just(()) | joins)
    each = joins if not before and draw(st.booleans()) else st.just(())
    steps = st.builds(Step, expressions, each, st.just("") | words)
    return Sequence(
        tuple(draw(st.lists(steps, min_size=2, max_size=5))),
        draw(st.none() | st.builds(Duration, st.integers(0, SPAN_MAX_NS))),
        before,
    )
