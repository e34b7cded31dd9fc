"""What makes no sense in a filter is refused before an event is read, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import run
from filter_made import Maker
from filter_rows import batch, column, rows
from hypothesis import given
from hypothesis import strategies as st
from test_filter_parser import mutated, understandable

from kcap.filter import Filter, FilterError, fields
from kcap.filter.check import check, era_of
from kcap.filter.functions import REFUSED
from kcap.filter.parser import DEPTH_MAX, parse
from kcap.filter.syntax import And, Binary, FieldRef, Op, Sequence
from kcap.model.classes import TypeClass

EVENTS = Maker(1).events(30)
DEEP = "(" * 20_000 + "pid = 1" + ")" * 20_000
REFUSALS = [
    # the filter, the place, a part of the message, a part of the hint
    ("ps.nam = 'a'", "ps.nam", "no field is called 'ps.nam'", "did you mean 'ps.name'"),
    ("ps.name = 'a' and foo.bar = 1", "foo.bar", "no field is called", "kcap fields"),
    ("proc.name = 'a'", "proc.name", "no field is called 'proc.name'", "did you mean 'ps.name'"),
    ("pid = 'abc'", "'abc'", "'pid' is a number, and this is text", "quotes"),
    ("pid contains 'a'", "pid", "'contains' is for text; 'pid' is a number", ""),
    ("exe = 5", "5", "'exe' is text, and this is a number", "quotes: '5'"),
    ("ps.name > 5", "5", "'>' is for numbers; 'ps.name' is text", ""),
    ("pid < '5'", "'5'", "'<' is for numbers, and this is text", "quotes"),
    ("pid = true", "true", "is a number, and this is true or false", ""),
    ("pid = 10.0.0.1", "10.0.0.1", "is a number, and this is an address", ""),
    ("exe = pid", "exe = pid", "text is never equal to a number", ""),
    ("ps.args = 'a'", "ps.args = 'a'", "'ps.args' is a list", ""),
    ("ps.name intersects ('a')", "ps.name", "is text, not a list", ""),
    ("ps.name = ('a', 'b')", "('a', 'b')", "takes one value, not a list", ""),
    ("net.dip = 300.1.1.1", "300.1.1.1", "invalid IP address", ""),
    ("net.dip = '300.1.1.1'", "'300.1.1.1'", "is no IP address", ""),
    ("net.dip = fe80:::1", "fe80:::1", "invalid IP address", ""),
    ("net.dip = 10.0.0.0/33", "10.0.0.0/33", "invalid network", ""),
    ("net.dip = fe80::/129", "fe80::/129", "invalid network", ""),
    ("net.dip in ('10.0.0.0/8', 'x')", "'x'", "is no IP address", ""),
    ("net.dip > 10.0.0.1", "10.0.0.1", "'>' is for numbers", ""),
    ("cidr_contains(net.dip, '10.0.0.0/40')", "'10.0.0.0/40'", "is no network", ""),
    ("ts > 'yesterday'", "'yesterday'", "is no time", ""),
    ("ps.name = 'abc", "'abc", "unterminated text", "close it with '"),
    ('"ps.name = 1', '"ps.name = 1', "unterminated name", 'close it with "'),
    ("ps.exe = 'C:\\Windows'", "\\W", "bad escape", "a backslash in text is written twice"),
    ("ps.name = cmd.exe", "cmd.exe", "no field is called 'cmd.exe'", "a shell takes single"),
    ("ps.name in (sh, bash)", "sh", "'sh' is no constant", "a shell takes single"),
    ("ps.exe = /usr/bin/sh", "/usr/bin/sh", "is not understood here", "a shell takes single"),
    ("ps.cmdline = rm -rf", "-rf", "is not understood here", "single quotes"),
    ("ps.name = `sh`", "`", "a quotation mark of another kind", "straight single quotes"),
    ("ps.name == 'a'", "==", "is no operator", ""),
    ("pid = 1 && pid = 2", "&&", "is no operator", ""),
    ("!pid = 1", "!", "is no operator", ""),
    ("pid = 1 adn pid = 2", "adn", "expected an operator", "did you mean 'and'"),
    ("pid =", " ", "expected a field, a value", ""),
    ("pid in 5", "5", "expected '(' after 'in'", ""),
    ("pid in ()", ")", "an empty list", ""),
    ("pid = 1)", ")", "a ')' that nothing opened", ""),
    ("(pid = 1", " ", "expected ')' to close '('", ""),
    ("pid = 99999999999999999999", "99999999999999999999", "more than 64 bits", ""),
    ("pid = 12ab", "12ab", "is no number", "single quotes"),
    (DEEP, "(", "nested more than 64 deep", ""),
    ("", " ", "it is empty", ""),
    ("ps.name = '\udcff'", "?", "it is not valid UTF-8", ""),
    ("not ps.name", "ps.name", "is text, not a condition", "exists"),
    ("pid", "pid", "is a number, not a condition", ""),
    ("pid = 1 and 'a'", "'a'", "is text, not a condition", ""),
    ("lowr(ps.name) = 'a'", "lowr(ps.name)", "no function is called 'lowr'", "'lower'"),
    ("nothing_like_it(pid)", "nothing_like_it(pid)", "no function is called", "there are base"),
    ("lower() = 'a'", "lower()", "lower() with 0 arguments", ""),
    ("lower(exe, 'b') = 'a'", "lower(exe, 'b')", "lower() with 2 arguments", ""),
    ("regex(ps.name, '(')", "'('", "a bad pattern: missing )", "RE2"),
    ("regex(ps.name, '(?=a)')", "'(?=a)'", "a bad pattern", "no look-around"),
    ("regex(ps.name, exe)", "exe", "a pattern is text in quotes", ""),
    ("exists('a')", "exists('a')", "exists() asks for a field", ""),
    ("$x = 1", "$x", "nothing is called $x here", "foreach"),
    ("foreach(ps.args, 'x', true)", "'x'", "expected a variable, as $x", ""),
    ("foreach(pid, $x, $x = 1)", "pid", "is a number, not a list", ""),
    ("foreach(ps.args, $x, $y = 1)", "$y", "nothing is called $y here", ""),
    ("evt.arg = 'a'", "evt.arg", "needs a name in brackets", "evt.arg[pathname]"),
    ("pid[x] = 1", "pid[x]", "takes nothing in brackets", ""),
    ("evt.arg[x = 1", "[", "'[' is not closed", ""),
    ("evt.arg[] = 1", "[]", "nothing stands in the brackets", ""),
    ("sequence |pid = 1| |pid = 2|", "sequence", "this is a sequence", "for rules"),
    *((f"{name}('x')", f"{name}('x')", "can't be replayed", "") for name in REFUSED),
]


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    REFUSALS,
    ids=[case[0][:40] or "empty" for case in REFUSALS],
)
def test_refusals(text: str, place: str, message: str, hint: str) -> None:
    """A bad filter is refused in one message, with carets under the place and what to do."""
    with pytest.raises(FilterError) as found:
        Filter.of(text)
    error = found.value
    assert message in str(error)
    assert hint in (error.hint or "")
    assert (text + " ")[error.start : error.end].replace("\udcff", "?") == place
    line, carets = error.caret()
    shown = (line + " ")[len(carets) - carets.count("^") : len(carets)]
    assert shown == place
    assert error.__notes__ == [f"  {line}", f"  {carets}"]


@pytest.mark.parametrize(
    "text", [text for text, *_ in REFUSALS], ids=[case[0][:40] or "empty" for case in REFUSALS]
)
def test_exit_codes(text: str, root: Path) -> None:
    """On the command line that is exit code 2, nothing on standard output, and no traceback."""
    result = run("cat", root / "fixtures" / "first.kcap", "-w", text)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len([line for line in lines if line.startswith("kcap: ")]) == 1
    assert lines[0].startswith("kcap: the filter: ")
    assert set(lines[2].strip()) == {"^"}
    assert len(result.stderr) < 2000


@pytest.mark.parametrize(
    "text",
    [
        "ps.name = 'a'",
        "pid = 5 and not ps.signature.trusted",
        "evt.arg[x] = 5 or evt.arg[x] = 'a' or evt.arg[x] > 1 or evt.arg[x] = 10.0.0.1",
        "args.flags = 'O_CREAT' and args.flags = 64",
        "net.dip = 10.0.0.0/8 or net.dip = '10.0.0.1' or net.dip startswith '10.'",
        "net.dip in (10.0.0.1, 'fe80::/10')",
        "pid in ('5', 6)",
        "ts > '2026-11-20T12:00:00Z' and evt.time.ns < 5",
        "ps.args in ('a') and ps.args intersects ('a', 'b')",
        "ps.name = ps.parent.name and ps.pid != ppid",
        "foreach(ps._ancestors, $p, $p.name = 'a' and $p.pid > 1)",
        "PS.NAME = 'a' and Lower(ps.name) = 'a'",
        "kevt.arg[x] exists and KEVT.NAME = 'a'",
        "thread.callstack.summary contains 'a'",
        "pe.sections[.text].entropy > 6.5",
        "'a' = ps.name and 5 <= pid",
        "regex(ps.name, '(?i)^a') and 1 = 1",
    ],
)
def test_accepted(text: str) -> None:
    """What looks much like it makes sense, and parses again from its own text."""
    chosen = Filter.of(text)
    assert Filter.of(str(chosen)).checked.expr == chosen.checked.expr


def test_places_in_long_filters() -> None:
    """Of a long filter, or one of several lines, the part around the place is shown."""
    text = "pid = 1 or\n" + "pid = 2 or " * 20 + "nope = 1" + " or pid = 3" * 20 + "\nor pid = 4"
    with pytest.raises(FilterError) as found:
        Filter.of(text)
    line, carets = found.value.caret()
    assert line.startswith("...")
    assert line.endswith("...")
    assert len(line) < 80
    assert line[carets.index("^") :][:4] == "nope"
    assert "\n" not in line


@given(mutated())
def test_mutated(text: str) -> None:
    """What is left of a real filter after some mistakes is refused, or can be asked of events."""
    try:
        chosen = Filter.of(text)
    except FilterError as error:
        understandable(error)
        return
    assert len(chosen.rows(EVENTS)) <= EVENTS.rows


def test_deepest() -> None:
    """What nests as deep as is allowed goes through all that recurses."""
    text = "pid = 1"
    for _ in range((DEPTH_MAX - 2) // 2):
        text = f"pid = 2 or ps.name = 'a' and ({text})"
    chosen = Filter.of(text)
    assert Filter.of(str(chosen)).checked.expr == chosen.checked.expr
    assert chosen.rows(EVENTS).tolist() == rows(chosen, EVENTS)


# eras, synonyms, times


@pytest.mark.parametrize(
    ("text", "era"),
    [
        ("kevt.name = 'a'", 1),
        ("ps.sibling.name = 'a'", 1),
        ("pid = 1 and not (ps.child.exe = 'a')", 1),
        ("lower(kevt.name) = 'a'", 1),
        ("evt.name = 'a'", 3),
        ("file.name = 'a'", 3),
        ("1 = 1", 3),
    ],
)
def test_eras(text: str, era: int) -> None:
    """An expression is of 1.x where a name in it is of 1.x alone; --era overrides that."""
    node = parse(text)
    assert not isinstance(node, Sequence)
    assert era_of(node) == era
    assert check(node, text).era == era
    assert check(node, text, 4 - era).era == 4 - era


def test_eras_mean_something(root: Path) -> None:
    """file.name is the path in 1.x, and its last part in 3.x; kcap cat --era says which."""
    event = {"arg_file_path": column(TypeClass.STR, ["C:\\a\\b.txt"])}
    event["category"] = column(TypeClass.STR, ["file"])
    one = batch(event, 1)
    whole, last = "file.name = 'C:\\\\a\\\\b.txt'", "file.name = 'b.txt'"
    assert [len(Filter.of(text, 1).rows(one)) for text in (whole, last)] == [1, 0]
    assert [len(Filter.of(text, 3).rows(one)) for text in (whole, last)] == [0, 1]
    assert [len(Filter.of(text).rows(one)) for text in (whole, last)] == [0, 1]
    for era, code in (("1", 0), ("3", 0), ("2", 2)):
        words = ("cat", root / "fixtures" / "first.kcap", "-n", "1", "--era", era, "-w", last)
        assert run(*words).exit_code == code


def test_synonyms() -> None:
    """A constant that Fibratus called otherwise finds events by either name, != leaves both out."""
    one = batch({"category": column(TypeClass.STR, ["network", "file", "net", None])}, 4)
    assert Filter.of("evt.category = 'net'").rows(one).tolist() == [0, 2]
    assert Filter.of("evt.category ~= 'net'").rows(one).tolist() == [0, 2]
    assert Filter.of("evt.category in ('network')").rows(one).tolist() == [0, 2]
    assert Filter.of("evt.category != 'net'").rows(one).tolist() == [1]
    assert Filter.of("not (evt.category = 'net')").rows(one).tolist() == [1, 3]
    found = Filter.of("evt.category != 'net'").checked.expr
    assert isinstance(found, And)
    assert [part.op for part in found.parts if isinstance(part, Binary)] == [Op.NE, Op.NE]


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01", 0),
        ("1970-01-01 00:00:01.5", 1_500_000_000),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:59:59.999999999Z", -1),
    ],
)
def test_times(text: str, ns: int) -> None:
    """A time in text is that time in UTC to the nanosecond, unless it says its zone."""
    one = batch({"ts": column(TypeClass.I64, [ns - 1, ns, ns + 1])}, 3)
    assert Filter.of(f"ts = '{text}'").rows(one).tolist() == [1]
    assert Filter.of(f"ts >= '{text}'").rows(one).tolist() == [1, 2]
    assert Filter.of(f"evt.time.ns = {ns}").rows(one).tolist() == [1]


NAMES = sorted({field.name for field in fields.all_fields() if "[]" not in field.name})


@given(st.sampled_from(NAMES), st.sampled_from([1, 3]))
def test_fields_are_understood(name: str, era: int) -> None:
    """Every field of the catalogue can be asked for, and knows its columns."""
    known = fields.lookup(name, era)
    assert known is not None
    argument = "x" if known.argument == "required" else None
    ref = FieldRef(name, argument)
    brackets = f"[{argument}]" if argument else ""
    quoted = name if name.replace(".", "").replace("_", "").isalnum() else f'"{name}"'
    chosen = Filter.of(f"{quoted}{brackets} exists", era)
    assert set(chosen.checked.fields) == {ref}
    assert bool(chosen.sourceless) == (
        not known.sources and name.lower() not in ("evt.arg", "kevt.arg")
    )
