"""What operators and functions mean: on single values, and through the engine."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fnmatch import translate
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from filter_made import TEXTS
from filter_rows import batch, column
from filter_trees import EDGES
from hypothesis import given
from hypothesis import strategies as st

from kcap.filter import Filter
from kcap.filter.functions import FUNCTIONS, REFUSED, regex
from kcap.filter.syntax import Op
from kcap.filter.values import Named, compare, constant, equal, fold, plain, wildcard
from kcap.model.classes import TypeClass

ROW = batch(
    {
        "process_name": column(TypeClass.STR, ["sh"]),
        "pid": column(TypeClass.I64, [5]),
        "arg_v__list": column(TypeClass.LIST, [["a", "c"]]),
    },
    1,
)
"""One event; it has no user, and no ppid."""


def holds(text: str) -> bool:
    """What a filter says of that event."""
    return bool(len(Filter.of(text).rows(ROW)))


# missing values


def truth_table(text: str) -> list[list[str]]:
    """The cells of the table of missing values in the documentation."""
    part = text.partition("## Missing values")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip("`") for cell in row] for row in rows if "OP" not in row[0]]


FORMS = ["{x} {op} {c}", "{y} {op} {x}", "{x} {op} {x}", "not ({x} {op} {c})"]
"""What the columns of the table stand for."""


def operands(op: str) -> dict[str, str]:
    """A missing field, one that is there and a constant, as an operator takes them."""
    if op in ("<", "<=", ">", ">="):
        return {"x": "ppid", "y": "pid", "c": "5"}
    if op.endswith("intersects"):
        return {"x": "args.none", "y": "arg_v__list", "c": "('a')"}
    return {"x": "user", "y": "process_name", "c": "('sh')" if op.endswith("in") else "'sh'"}


def test_truth_table(read_text: Callable[[str], str]) -> None:
    """Of missing values each operator says what the table in docs/filters.md says."""
    table = truth_table(read_text("docs/filters.md"))
    assert len(table) == 12
    for op, *cells in table:
        if op == "exists":
            assert cells == ["false", "-", "-", "true"]
            assert [holds("user exists"), holds("not (user exists)")] == [False, True]
            assert [holds("exists(user)"), holds("not exists(user)")] == [False, True]
            continue
        twins = [op, f"i{op}"] if f"i{op}" in set(Op) else [op]
        for twin, (form, cell) in itertools.product(twins, zip(FORMS, cells, strict=True)):
            text = form.format(op=twin, **operands(twin))
            assert str(holds(text)).lower() == cell, text


@pytest.mark.parametrize("op", [op for op in Op if op not in (Op.NE, Op.LT, Op.GT)])
def test_truth_table_is_about_missing(op: Op) -> None:
    """With values in their places the same operators do hold."""
    names = operands(op.value)
    left = names["y"]
    assert holds(f"{left} {op.value} {names['c']}")
    assert not holds(f"not ({left} {op.value} {names['c']})")


def test_conditions_of_missing_values() -> None:
    """What is missing makes no condition true, and spoils none that is."""
    assert holds("user = 'a' or process_name = 'sh'")
    assert not holds("user = 'a' and process_name = 'sh'")
    assert holds("not (user = 'a' and process_name = 'sh')")
    assert not holds("user != 'a'")
    assert not holds("lower(user) = 'a' or length(user) >= 0 or regex(user, '')")
    assert holds("not (length(user) >= 0)")
    assert not holds("args.none != 1 or evt.arg[none] or args.none = args.none")
    assert not holds("foreach(args.none, $x, not ($x = 'a'))")
    assert holds("foreach(arg_v__list, $x, not ($x = 'a'))")


# operators


SCALARS: list[Any] = [None, True, False, *EDGES, 1.5, 2.0**53, 2.0**63, float("nan"), *TEXTS]
SCALARS += [Named(5, "A|B"), ip_address("10.0.0.1"), ip_address("fe80::1"), ("a", "b"), ()]
VALUES = st.sampled_from(SCALARS)


@given(VALUES, VALUES, st.sampled_from(Op))
def test_operators_answer(left: Any, right: Any, op: Op) -> None:
    """Any two values can be asked: true or false, and false where one is missing."""
    found = compare(op, left, right)
    assert type(found) is bool
    assert not (found and None in (left, right))


@given(VALUES, VALUES)
def test_laws_of_equality(left: Any, right: Any) -> None:
    """What is equal is not unequal, equality goes both ways, and case is all that folding drops."""
    same = compare(Op.EQ, left, right)
    assert not (same and compare(Op.NE, left, right))
    assert (equal(left, right) is None) == (not same and not compare(Op.NE, left, right)) or (
        None in (left, right)
    )
    if not isinstance(left, tuple) and not isinstance(right, tuple):
        assert same == compare(Op.EQ, right, left)
    assert not same or compare(Op.IEQ, left, right)


@given(st.sampled_from(EDGES) | st.integers(), st.sampled_from(EDGES) | st.integers())
def test_numbers_are_exact(a: int, b: int) -> None:
    """Integers are compared to the last digit, with floats, too."""
    assert compare(Op.LT, a, b) == (a < b)
    assert compare(Op.EQ, a, b) == (a == b)
    assert compare(Op.GE, a, constant(Decimal(b))) == (a >= int(float(b)))


@pytest.mark.parametrize(
    ("left", "op", "right", "expected"),
    [
        (2**53 + 1, Op.EQ, 2.0**53, False),
        (float("nan"), Op.EQ, float("nan"), False),
        (float("nan"), Op.NE, float("nan"), True),
        (True, Op.EQ, 1, False),
        (True, Op.NE, 1, False),
        ("1", Op.EQ, 1, False),
        ("1", Op.NE, 1, False),
        ("1", Op.IN, (1, 2), True),
        (1, Op.IN, ("1", "x"), True),
        (1, Op.IN, ("01",), False),
        (True, Op.IN, ("1",), False),
        ("10.0.0.1", Op.EQ, ip_address("10.0.0.1"), True),
        ("::ffff:10.0.0.1", Op.EQ, ip_address("10.0.0.1"), True),
        ("fe80::0001", Op.EQ, ip_address("fe80::1"), True),
        ("10.0.0.1", Op.EQ, ip_network("10.0.0.0/8"), True),
        ("11.0.0.1", Op.NE, ip_network("10.0.0.0/8"), True),
        ("no address", Op.NE, ip_network("10.0.0.0/8"), False),
        ("fe80::1", Op.EQ, ip_network("0.0.0.0/0"), False),
        (Named(577, "O_CREAT|O_WRONLY"), Op.EQ, 577, True),
        (Named(577, "O_CREAT|O_WRONLY"), Op.EQ, "O_WRONLY|O_CREAT", True),
        (Named(577, "O_CREAT|O_WRONLY"), Op.EQ, "O_WRONLY", False),
        (Named(577, "O_CREAT|O_WRONLY"), Op.IEQ, "o_creat|o_wronly", True),
        (Named(577, "O_CREAT|O_WRONLY"), Op.GT, 576, True),
        (Named(577, "O_CREAT|O_WRONLY"), Op.CONTAINS, "O_CREAT", True),
        (Named(577, "O_CREAT|O_WRONLY"), Op.INTERSECTS, ("O_CREAT",), True),
        (("a", "b", "c"), Op.INTERSECTS, ("c", "a"), True),
        (("a", "b"), Op.INTERSECTS, ("a", "c"), False),
        (("A",), Op.IINTERSECTS, ("a",), True),
        ("a", Op.INTERSECTS, ("a",), False),
        (("a", "b"), Op.IN, ("b", "x"), True),
        ((), Op.IN, ("b",), False),
        (("ab", "cd"), Op.CONTAINS, ("x", "d"), True),
        ("abc", Op.FUZZY, "ac", True),
        ("abc", Op.FUZZY, "ca", False),
        ("ABC", Op.IFUZZY, "ac", True),
        ("é", Op.FUZZYNORM, "e", True),
        ("É", Op.IFUZZYNORM, "e", True),
        ("é", Op.FUZZY, "e", False),
        ("a", Op.CONTAINS, "", True),
        ("a", Op.LT, "b", False),
    ],
)
def test_operators(left: Any, op: Op, right: Any, expected: bool) -> None:
    """The traps of each operator, one by one."""
    assert compare(op, left, right) is expected


# case and wildcards


@given(st.text() | st.sampled_from(TEXTS), st.text(max_size=3), st.text(max_size=3))
def test_fold(text: str, before: str, after: str) -> None:
    """The fold has the length of the text, is its own fold, and that of a part is its part."""
    found = fold(text)
    assert len(found) == len(text)
    assert fold(found) == found
    assert fold(before + text + after) == fold(before) + found + fold(after)
    if text.isascii():
        assert found == text.lower()


def test_fold_examples() -> None:
    """What counts as one, and what does not, as docs/filters.md says."""
    assert fold("\u212a") == "k"
    assert fold("ΟΔΟΣ") == "οδοσ" != fold("οδος")
    assert fold("\u0130") == "\u0130"
    assert fold("ß") == "ß" != fold("SS")


@given(st.text("ab*?\n", max_size=8), st.text("ab*?.[\\\n", max_size=6))
def test_wildcards(text: str, pattern: str) -> None:
    """A wildcard pattern is the regular expression that says the same."""
    stars = {"*": "(?s:.*)", "?": "(?s:.)"}
    expression = "".join(stars.get(c, re.escape(c)) for c in pattern)
    assert wildcard(text, pattern) == bool(re.fullmatch(expression, text))


def test_wildcards_in_time() -> None:
    """A pattern that makes others go back and back again takes no time."""
    assert not wildcard("a" * 5000, "*a" * 500 + "b")
    assert wildcard("a" * 5000 + "b", "*a" * 500 + "b")
    assert "*" in translate("[*]")  # shells have sets; here brackets are themselves
    assert wildcard("[x]", "[x]")


@given(st.text())
def test_plain(text: str) -> None:
    """Texts that differ by marks alone are one without them."""
    marked = "".join(f"{c}\u0301" for c in text)
    assert plain(marked) == plain(text)
    assert not any(
        unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", plain(text))
    )


# functions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"base('C:\\Windows\\cmd.exe') = 'cmd.exe'", True),
        (r"base('/bin/tar.gz', false) = 'tar'", True),
        (r"dir('C:\\Windows\\cmd.exe') = 'C:\\Windows'", True),
        ("dir('/bin/sh') = '/bin'", True),
        ("ext('/a.b/c') = ''", True),
        ("ext('a.tar.gz') = '.gz'", True),
        ("ext('a.gz', false) = 'gz'", True),
        ("concat('a', 1, true) = 'a1true'", True),
        ("count(('a.x', 'b.x', 'c'), '*.x') = 2", True),
        ("count(('A.X', 'b.x'), '*.x', true) = 2", True),
        ("count('ababa', 'aba') = 1", True),
        ("entropy('aabb') = 1", True),
        ("entropy('') = 0", True),
        ("indexof('abcabc', 'c') = 2", True),
        ("indexof('abcabc', 'c', 'last') = 5", True),
        ("indexof('abcabc', 'cb', 'any') = 1", True),
        ("indexof('abcabc', 'cb', 'lastany') = 5", True),
        ("indexof('abc', 'x') = -1", True),
        ("is_minidump('/a')", False),
        ("yara('/a', 'rule a { condition: true }')", False),
        (r"is_abs('C:\\a') and is_abs('/a') and not is_abs('a') and not is_abs('C:a')", True),
        ("length('\U0001f600') = 1 and length(('a', 'b')) = 2", True),
        ("lower('ÄB') = 'äb' and upper('äß') = 'Äß'", True),
        ("ltrim('abab', 'ab') = 'ab' and rtrim('abab', 'ab') = 'ab'", True),
        ("ltrim('ab', 'b') = 'ab'", True),
        ("md5('abc') = '900150983cd24fb0d6963f7d28e17f72'", True),
        ("regex('abc', 'x', '^a.c$')", True),
        ("regex('abc', 'B')", False),
        ("regex(('x', 'abc'), '^ab')", True),
        ("replace('aabb', 'a', 'b', 'bb', 'c') = 'cc'", True),
        ("replace('a', '', 'b') = 'a'", True),
        ("split('a,b,,c', ',') intersects ('a', '', 'c')", True),
        ("substr('abc', 1) = 'bc' and substr('abc', 1, 2) = 'b'", True),
        ("substr('abc', 2, 1) = ''", False),
        (r"volume('C:\\a') = 'C:' and volume('/a') = ''", True),
        ("cidr_contains('10.1.2.3', '11.0.0.0/8', '10.0.0.0/8')", True),
        ("cidr_contains('10.1.2.3', 10.0.0.0/16)", False),
        ("cidr_contains('::ffff:10.1.2.3', '10.0.0.0/8')", True),
        ("cidr_contains('text', '10.0.0.0/8')", False),
        ("exists(pid)", True),
        ("foreach(('a', 'b'), $x, $x = 'b')", True),
        ("foreach(('a', 'b'), $x, foreach(('c', 'b'), $y, $x = $y))", True),
        ("foreach(('a', 'b'), $x, $x = 'c')", False),
        ("LENGTH('a') = 1", True),
    ],
)
def test_functions(text: str, expected: bool) -> None:
    """Each function gives what its table says."""
    assert holds(text) is expected


def test_functions_documented(read_text: Callable[[str], str]) -> None:
    """docs/filters.md has every function, refused ones too, and every operator; each has a test."""
    text = read_text("docs/filters.md")
    for name, function in FUNCTIONS.items():
        assert f"| `{function.usage}` | {function.result} | {function.meaning} |" in text
        assert name in read_text("tests/test_filter_values.py").partition("def test_functions(")[0]
    assert all(f"`{name}`" in text for name in REFUSED)
    assert all(f"`{op.value}`" in text for op in Op)


MISSING = [n for n in FUNCTIONS if n not in ("exists", "foreach")]


@pytest.mark.parametrize("name", MISSING)
@given(st.lists(VALUES, min_size=5, max_size=5))
def test_functions_take_anything(name: str, values: list[Any]) -> None:
    """A function of any values gives one, and of a missing one nothing."""
    function = FUNCTIONS[name]
    patterns = ["a", "^b"] if name == "regex" else values[1:]
    arguments = [values[0], *patterns][: min(function.most, 3)]
    function.apply(*arguments)
    assert function.apply(None, *arguments[1:]) is None


def test_regex_is_re2() -> None:
    """Patterns that take others for ever take RE2 no time; md5 is that of UTF-8."""
    assert regex("a" * 5000, "(a*)*b") is False
    assert FUNCTIONS["md5"].apply("é") == hashlib.md5("é".encode()).hexdigest()
