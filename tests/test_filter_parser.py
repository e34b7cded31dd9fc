"""The parser of filters: what is written comes back, and nothing makes it stumble."""

from __future__ import annotations

import time
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import pytest
from filter_trees import EDGES, expressions, integers, sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_events

from kcap.filter import Filter, FilterError
from kcap.filter.lexer import TEXT_MAX
from kcap.filter.parser import DEPTH_MAX, MacroTable, parse
from kcap.filter.syntax import (
    UNITS,
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
    children,
    relocated,
    text_of,
)

A, B, C, D = map(FieldRef, "abcd")
ONE = Literal(1)
REAL = [
    "kevt.category = 'file' and ps.name = 'cmd.exe'",
    "kevt.category = 'net' and net.dip = 172.17.2.3",
    "ps.name in ('cmd.exe', 'powershell.exe') or not (file.name imatches '?:\\\\Users\\\\*')",
    "cidr_contains(net.dip, '10.0.0.0/8', fe80::/10) and evt.arg[exit_status] != -1",
    "foreach(ps._modules, $m, $m.name iendswith ('.dll', '.sys')) and evt.time > 5m30s",
    "ps.envs[PATH] exists and pe.sections[.text].size >= 1.5 and \"odd name\" ~= 'x'",
    "sequence maxspan 2m by ps.uuid |a = 1| as e1 |b = $e1.ps.name| by c",
    "evt.name iin ('A') and not ps.args intersects ('-c', 'x') or 1 <> 2",
]
"""Filters of every kind, to be mutated."""


def same_places(tree: Expr, text: str) -> None:
    """Every node stands where it says."""
    assert 0 <= tree.start < tree.end <= len(text)
    for part in children(tree):
        assert tree.start <= part.start
        assert part.end <= tree.end
        same_places(part, text)


@given(expressions)
def test_text_parses_back(tree: Expr) -> None:
    """parse(text_of(tree)) is the tree, and each node knows where it stands."""
    text = text_of(tree)
    found = parse(text)
    assert not isinstance(found, Sequence)
    assert found == tree
    assert hash(found) == hash(tree)
    assert text_of(found) == text
    same_places(found, text)


@given(sequences())
def test_sequence_parses_back(tree: Sequence) -> None:
    """So it is with sequences, whose joins and names stand where they stood."""
    assert parse(text_of(tree)) == tree


@pytest.mark.long
@settings(max_examples=4000)
@given(expressions | sequences())
def test_text_parses_back_long(tree: Expr | Sequence) -> None:
    """So it is with many more."""
    assert parse(text_of(tree)) == tree


def test_parentheses_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the parentheses that `text_of` sets, the round trip would fail."""
    tree = And((Or((A, B)), C))
    assert parse(text_of(tree)) == tree
    monkeypatch.setattr("kcap.filter.syntax._inside", lambda part, _: text_of(part))
    assert parse(text_of(tree)) == Or((A, And((B, C))))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a or b and c", Or((A, And((B, C))))),
        ("a and b or c and d", Or((And((A, B)), And((C, D))))),
        ("not a and b or c", Or((And((Not(A), B)), C))),
        ("not a = b", Not(Binary(Op.EQ, A, B))),
        ("not a contains b", Not(Binary(Op.CONTAINS, A, B))),
        ("not not a", Not(Not(A))),
        ("not (a and b)", Not(And((A, B)))),
        ("a not in ('x')", Not(Binary(Op.IN, A, ListOf((Literal("x"),))))),
        ("a = b contains c", Binary(Op.EQ, A, Binary(Op.CONTAINS, B, C))),
        ("a < b = c", Binary(Op.EQ, Binary(Op.LT, A, B), C)),
        ("a or b or c", Or((A, B, C))),
        ("(a or b) or c", Or((Or((A, B)), C))),
        ("a exists", Call("exists", (A,))),
        ("a not exists or b", None),
        ("EXISTS(a) AND Not b", And((Call("exists", (A,)), Not(B)))),
        ("a IIN ('x', 1)", Binary(Op.IIN, A, ListOf((Literal("x"), ONE)))),
        ("a <> 1", Binary(Op.NE, A, ONE)),
        ("('x', 1) intersects a", Binary(Op.INTERSECTS, ListOf((Literal("x"), ONE)), A)),
        ("(1) = a", Binary(Op.EQ, ONE, A)),
        ('"in" = "a b"', Binary(Op.EQ, FieldRef("in"), FieldRef("a b"))),
        ("a[x].size = 1", Binary(Op.EQ, FieldRef("a", "x", "size"), ONE)),
        ("$e.ps.name = $x", Binary(Op.EQ, Bound("e", "ps.name"), Bound("x"))),
        ("a[.debug$] = -1", Binary(Op.EQ, FieldRef("a", ".debug$"), Literal(-1))),
    ],
)
def test_precedence(text: str, tree: Expr | None) -> None:
    """Operators bind as the documentation says: or, and, not, comparisons, words."""
    if tree is None:
        with pytest.raises(FilterError):
            parse(text)
    else:
        assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x1fF", 511),
        ("1.50", Decimal("1.5")),
        ("-2.5", Decimal("-2.5")),
        ("true", True),
        ("FALSE", False),
        ("5m30s", Duration(330 * 10**9)),
        ("1w2d3h4m5s6ms7us8ns", Duration(788_645_006_007_008)),
        ("fe80::1", IPv6Address("fe80::1")),
        ("::ffff:10.0.0.1", IPv6Address("::ffff:10.0.0.1")),
        ("10.1.2.3/8", IPv4Network("10.0.0.0/8")),
        ("fe80::/10", IPv6Network("fe80::/10")),
        (r"'\\ \' \" \n'", "\\ ' \" \n"),
        ("''", ""),
        *((str(edge), edge) for edge in EDGES),
    ],
)
def test_constants(text: str, value: object) -> None:
    """Constants are what they look like."""
    found = parse(f"a = {text}")
    assert isinstance(found, Binary)
    assert found.right == Literal(value)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 10**4), st.sampled_from(list(UNITS))), min_size=1, max_size=4)
)
def test_durations(parts: list[tuple[int, str]]) -> None:
    """A duration is the sum of its parts."""
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert parse(text) == Literal(Duration(sum(n * UNITS[unit] for n, unit in parts)))


@given(integers, st.sampled_from([-(2**63) - 1, 2**64, 10**30, -(10**24)]))
def test_integers(inside: int, outside: int) -> None:
    """What 64 bits can hold is read to the last digit, what they can't is refused."""
    assert parse(f"a = {inside}") == Binary(Op.EQ, A, Literal(inside))
    with pytest.raises(FilterError, match="64 bits"):
        parse(f"a = {outside}")


def test_equal_is_by_type() -> None:
    """True, 1 and 1.0 are different constants, wherever they stand they are equal."""
    different = [
        Literal(True),
        Literal(1),
        Literal(Decimal("1.0")),
        Literal("1"),
        Literal(Duration(1)),
    ]
    assert len(set(different)) == 5
    assert parse("  a  ") == parse("a")


# whatever is given


def parsed(text: str) -> Expr | Sequence | None:
    """The tree of a text, None where it is refused; nothing else may happen."""
    try:
        found = parse(text)
    except FilterError as e:
        understandable(e)
        return None
    assert parse(text_of(found)) == found
    return found


def understandable(error: FilterError) -> None:
    """One line of a message, and carets below the line of the filter."""
    assert 0 <= error.start < error.end
    line, carets = error.caret()
    assert set(carets.lstrip(" ")) == {"^"}
    assert len(carets) <= len(line) + 1
    assert line.isprintable()
    assert len(str(error)) < 1000
    assert "\n" not in str(error)


SIGNS = r"""( ) , | . [ ] ' " $ $x = != ~= < <> >= and or not in iin contains exists sequence by as
maxspan a ps.name evt.arg[x] 1 -1 0x 1.5 5m 1.2.3.4 300.1.1.1 10.0.0.0/8 ::1 fe80::/10 'x' \\ \
! / foreach( lower( true é a. .. :"""
PIECES = st.sampled_from(["\n", "\t", "\0", " ", "\u2019", *SIGNS.split()])


@given(st.text() | st.lists(PIECES, max_size=20).map(" ".join) | st.lists(PIECES).map("".join))
def test_any_text(text: str) -> None:
    """Any text is a filter or refused in one sentence with carets."""
    parsed(text)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A real filter with some of it taken away, doubled, replaced or cut off."""
    text = draw(st.sampled_from(REAL))
    for _ in range(draw(st.integers(1, 4))):
        a, b = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        new = draw(st.one_of(PIECES, st.just(""), st.just(text[a:b] * 2), st.text(max_size=2)))
        text = text[:a] + new + text[draw(st.sampled_from([a, b])) :]
    return text


@given(mutated())
def test_mutated(text: str) -> None:
    """So is what is left of a real filter after some mistakes."""
    parsed(text)


@pytest.mark.long
@settings(max_examples=20_000)
@given(mutated() | st.text() | st.lists(PIECES).map(" ".join))
def test_mutated_long(text: str) -> None:
    """So are many more."""
    parsed(text)


@pytest.mark.parametrize("text", REAL[:6] + REAL[7:])
def test_real_parse(text: str) -> None:
    """The filters that are mutated are right as they stand."""
    assert parsed(text) is not None


MANY = 20_000
LONG = {
    "parentheses": "(" * MANY,
    "closed": "(" * MANY + "a" + ")" * MANY,
    "closing": ")" * MANY,
    "not": "not " * MANY + "a",
    "calls": "lower(" * MANY + "a" + ")" * MANY,
    "lists": "a in (" * MANY,
    "comparisons": " = ".join("a" * MANY),
    "exists": "a" + " exists" * MANY,
    "not in": "a" + " not in (1)" * MANY,
    "and": " and ".join("a" * MANY),
    "alternating": " or a and ".join("a" * MANY),
    "brackets": "a[" * MANY,
    "text": "'" + "x" * 1_000_000,
    "name": "n" * 1_000_000,
    "number": "1" * 1_000_000,
    "dots": "1." * 500_000,
    "colons": ":" * 1_000_000,
    "slashes": "/" * 1_000_000,
    "blanks": " " * 1_000_000,
    "backslashes": "'" + "\\\\" * 400_000 + "'",
    "durations": "1m" * 500_000,
    "list": "a in (" + "1, " * 50_000 + "1)",
    "too long": "a" * (TEXT_MAX + 1),
    "lines": "a\n" * 100_000,
}


@pytest.mark.parametrize("name", LONG)
def test_long(name: str) -> None:
    """Long and deeply nested text is parsed or refused in time that grows with its length."""
    start = time.perf_counter()
    found = parsed(LONG[name])
    assert time.perf_counter() - start < 20
    assert (found is not None) == (name in ("and", "alternating", "list", "backslashes", "name"))


def nested(depth: int, *, form: str) -> str:
    """An expression as deep as that."""
    before, _, after = form.rpartition("a")
    return before * depth + "a" + after * depth


@pytest.mark.parametrize("form", ["(a)", "not a", "lower(a)", "b and (a)", "b in (a)"])
def test_depth(form: str) -> None:
    """What nests as deep as allowed parses, can be written and looked through; deeper does not."""
    found = parse(nested(DEPTH_MAX - 1, form=form))
    assert parse(text_of(found)) == found
    with pytest.raises(FilterError, match=f"nested more than {DEPTH_MAX} deep"):
        parse(nested(DEPTH_MAX, form=form))


def test_depth_of_the_worst() -> None:
    """The deepest tree of the most levels of nesting goes through everything that recurses."""
    text = "pid = 1"
    for _ in range((DEPTH_MAX - 2) // 2):
        text = f"pid = 1 or pid = 2 and ({text})"
    found = parse(text)
    assert not isinstance(found, Sequence)
    assert parse(text_of(found)) == found
    assert relocated(found, 3, 4) == found
    assert not len(Filter.of(text).rows(make_events(3)))
    assert len({found, relocated(found, 1, 2)}) == 1


@pytest.mark.parametrize("link", [" = a", " exists", " not in (1)"])
def test_chains(link: str) -> None:
    """Operators that follow one another nest, too, and have their limit."""
    found = parse("a" + link * (DEPTH_MAX // 2 - 1))
    assert parse(text_of(found)) == found
    with pytest.raises(FilterError, match=f"nested more than {DEPTH_MAX} deep"):
        parse("a" + link * DEPTH_MAX)


# macros


def test_macros() -> None:
    """A macro stands for its expression or list as if in parentheses, in the place of its name."""
    table = MacroTable({"m": "a or b", "n": "m and x in l"}, {"l": ["p", "q"]})
    found = parse("n and not m", table)
    items = ListOf((Literal("p"), Literal("q")))
    m = Or((A, B))
    inner = And((m, Binary(Op.IN, FieldRef("x"), items)))
    assert found == And((inner, Not(m)))
    assert isinstance(found, And)
    assert (found.parts[0].start, found.parts[0].end) == (0, 1)
    same_places(found, "n and not m")
    assert table.names() == ["l", "m", "n"]
    assert parse('"m"', table) == FieldRef("m")
    assert parse("m[x]", table) == FieldRef("m", "x")


def test_macros_that_lead_nowhere() -> None:
    """Macros that use themselves, are sequences, or nest too deep are refused."""
    with pytest.raises(FilterError, match="uses itself: m -> n -> m"):
        parse("m", MacroTable({"m": "n", "n": "not m"}))
    with pytest.raises(FilterError, match="is a sequence"):
        parse("m", MacroTable({"m": "sequence |a| |b|"}))
    chain = {f"m{i}": f"not m{i + 1}" for i in range(1000)} | {"m1000": "a"}
    with pytest.raises(FilterError, match="nested more than"):
        parse("m0", MacroTable(chain))
    # Known ones are not parsed again, but still count.
    table = MacroTable(chain)
    for i in range(1000, 1000 - DEPTH_MAX + 3, -DEPTH_MAX // 4):
        assert text_of(parse(f"m{i}", table)).endswith("a")
    with pytest.raises(FilterError, match="nested more than"):
        parse(f"m{1000 - DEPTH_MAX}", table)


def test_unopened() -> None:
    """Parentheses that nothing opened are passed over only where that is asked for, as in rules."""
    assert parse("a = 1)) ", unopened=True) == Binary(Op.EQ, A, ONE)
    with pytest.raises(FilterError, match="nothing opened"):
        parse("a = 1)")
    with pytest.raises(FilterError):
        parse("a = 1) b", unopened=True)


# sequences


def test_sequence() -> None:
    """The parts of a sequence are told apart, steps without a blank between them, too."""
    found = parse("sequence maxspan 5m by x, y |a||b = $e.c| as f |c|")
    e = Binary(Op.EQ, B, Bound("e", "c"))
    by = (FieldRef("x"), FieldRef("y"))
    assert found == Sequence((Step(A), Step(e, (), "f"), Step(C)), Duration(300 * 10**9), by)
    assert parse("sequence |a| by x as e |b| by y") == Sequence(
        (Step(A, (FieldRef("x"),), "e"), Step(B, (FieldRef("y"),)))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequence |a|", "a sequence of 1 steps"),
        ("sequence" + " |a|" * 6, "a sequence of 6 steps"),
        ("sequence maxspan 5h |a| |b|", "more than 4h"),
        ("sequence maxspan 5 |a| |b|", "expected a duration"),
        ("sequence by x |a| by x |b| by x", "not both"),
        ("sequence |a| by x |b|", "all must"),
        ("sequence |a| |b", "expected '|' behind a step"),
        ("sequence by 1 |a| |b|", "expected a field after 'by'"),
        ("sequence by x() |a| |b|", "expected a field after 'by'"),
        ("sequence |a| as 1 |b|", "expected a name after 'as'"),
        ("sequence |a| |b| c", "expected '|' or the end"),
        ("a | b", "between the steps of a sequence"),
    ],
)
def test_bad_sequences(text: str, message: str) -> None:
    """What a sequence must not have is refused with the reason."""
    with pytest.raises(FilterError) as found:
        parse(text)
    assert message in str(found.value)
