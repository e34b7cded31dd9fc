"""Documents with lines: what they hold, where it stands, and what is refused before it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.documents import RULES, Node, documents
from kcap.errors import BadInputError, KcapError, LimitError

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30)
WORDS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=10,
)
PARSERS = ("libyaml", "python")


@pytest.fixture(params=PARSERS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of PyYAML's parsers: that of libyaml is not in every build."""
    name: str = request.param
    if name == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    return name


def read(text: str, **limits: Any) -> Node:
    """The only document of a text."""
    (found,) = documents(text, "a.yml", replace(RULES, **limits))
    return found


def refused(text: str, **limits: Any) -> KcapError:
    """Why a text is refused."""
    with pytest.raises(KcapError) as caught:
        list(documents(text, "a.yml", replace(RULES, **limits)))
    return caught.value


# what they hold


def differences(text: str) -> Iterator[str]:
    """What we read otherwise than PyYAML does."""
    theirs = [one for one in yaml.safe_load_all(text) if one not in (None, "")]
    ours = [one.plain() for one in documents(text, "a.yml")]
    if ours != theirs:
        yield f"{ours} is not {theirs}"


@settings(max_examples=60)
@given(contents=st.lists(VALUES, max_size=3), flow=st.booleans(), width=st.sampled_from([9, 80]))
def test_it_is_what_the_library_reads(contents: list[Any], flow: bool, width: int) -> None:
    """All documents of a file have the values that PyYAML constructs, aliases among them."""
    shared = [[one, one] for one in contents]
    text = yaml.safe_dump_all(shared, default_flow_style=flow, allow_unicode=True, width=width)

    assert not list(differences(text))


@settings(max_examples=60)
@given(contents=st.lists(VALUES, max_size=3))
def test_both_parsers_say_the_same(contents: list[Any]) -> None:
    """Values, lines and texts do not depend on how PyYAML was built."""
    text = yaml.safe_dump_all(contents, allow_unicode=True, width=20)

    fast = [list(walked(one)) for one in documents(text, "a.yml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(yaml, "CSafeLoader", raising=False)
        slow = [list(walked(one)) for one in documents(text, "a.yml")]

    assert fast == slow


def walked(node: Node) -> Iterator[tuple[Any, ...]]:
    """A node and all in it."""
    yield node.line, node.text, node.own_line, node.raw
    inner = node.value.values() if isinstance(node.value, dict) else node.value
    if not node.is_scalar:
        for one in inner:
            yield from walked(one)


@pytest.mark.parametrize(
    "text",
    [
        "a: &x {b: 1, c: 2}\nd:\n  c: 3\n  <<: *x\n",
        "a: &x {b: 1}\nb: &y {b: 2, c: 3}\nd:\n  <<: [*x, *y]\n",
        "a: 0x1F\nb: 1_000\nc: 0o17\nd: 1e3\ne: .inf\nf: ~\ng: yes\nh: 1:30\ni: '1'\n",
        "a: !!str 5\nb: !!int '5'\nc: ! 5\nd: !!float 1\n",
        "a: >-\n  folded\n  text\n\n  more\nb: |\n  as it is\n   there\nc: 'it''s\n  two'\n",
        '? a\n: "\\u263a \\\n   b"\n',
        "\ufeffa: 1\n",
        "--- a\n--- b\n...\n# nothing\n---\n",
        '{"a": [1, null, {"b": "c"}], "d": 1.5}',
    ],
)
def test_corners_of_yaml(text: str, parser: str) -> None:
    """Merges, numbers, tags, folds, escapes, marks and JSON are what PyYAML says, too."""
    del parser

    assert not list(differences(text))


def test_the_comparison_sees_a_difference() -> None:
    """Control: a date, which stays the text that it is here, is seen as one."""
    assert list(differences("a: 2026-11-01\n"))
    assert read("a: 2026-13-41\nb: !!binary aGk=\n").plain() == {"a": "2026-13-41", "b": "aGk="}


def test_texts_stay_as_they_are_written(parser: str) -> None:
    """Where a dialect has no types, ``no`` and ``010`` are texts; what has types is the control."""
    del parser
    text = "a: no\nb: 010\nc: ~\nd:\n"

    assert read(text, is_typed=False).plain() == {"a": "no", "b": "010", "c": "~", "d": ""}
    assert read(text).plain() == {"a": False, "b": 8, "c": None, "d": None}


def test_tags_of_a_dialect_make_values() -> None:
    """A tag that a dialect knows makes a value; elsewhere it is refused."""
    assert read("a: !up x", tags={"!up": str.upper}).plain() == {"a": "X"}
    assert "!up is not known" in str(refused("a: !up x"))


# where it stands

SPREAD = """\
rules:
- name: one
  condition: >-
    pid = 1

      and wrong
  quoted: "a
    b wrong"
  plain: a
    b
    wrong
  literal: |

    a
    wrong
- &x name: two
"""


@pytest.mark.parametrize(
    ("key", "line"), [("condition", 6), ("quoted", 8), ("plain", 11), ("literal", 15)]
)
def test_a_place_in_a_text_has_its_line(key: str, line: int, parser: str) -> None:
    """The line of a character is found in folded, quoted, plain and literal texts."""
    del parser
    node = read(SPREAD).value["rules"].items[0].value[key]

    assert node.line_at(node.text.index("wrong")) == line
    assert node.line_at(0) < line


def test_a_value_stands_where_its_key_does(parser: str) -> None:
    """Also one that begins below it; an alias stands where it is used."""
    del parser
    node = read("a:\n  - &x b\n  - c\nd:\n\n  [1]\ne: *x\n")

    assert {key: one.line for key, one in node.value.items()} == {"a": 1, "d": 4, "e": 7}
    assert [one.line for one in node.value["a"].items] == [2, 3]


# what is refused

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "billion laughs": (LAUGHS, LimitError, 6, "too many values, those of aliases"),
    "laughs in merges": (LAUGHS + "z:\n  <<: {q: *i}\n", LimitError, 6, "too many values"),
    "deep lists": ("a:\n " + "[" * 100_000, LimitError, 2, "nested too deep"),
    "deep mappings": ("a:\n " + "{a: " * 40, LimitError, 2, "nested too deep"),
    "deep by aliases": (
        "a: &a [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]\nb: [[[[[[[[[[[[[[[*a]]]]]]]]]]]]]]]",
        LimitError, 2, "nested too deep",
    ),
    "itself": ("a: &a\n  b: *a", BadInputError, 2, "stands in what it stands for"),
    "no anchor": ("a: *b", BadInputError, 1, "*b stands for nothing"),
    "large": ("#" * ((4 << 20) + 1), LimitError, None, "too large for rules"),
    "twice": ("a: 1\nb:\n  c: 1\n  'c': 2", BadInputError, 4, "it once, as at line 3"),
    "object": ("a: !!python/object/apply:os.system [id]", BadInputError, 1, "!!python/object"),
    "text object": ("\na: !!python/name:os.system x", BadInputError, 2, "!!python/name"),
    "mapping object": ("a: !x {b: 1}", BadInputError, 1, "!x is not known"),
    "set": ("a: !!set {b}", BadInputError, 1, "!!set is not known"),
    "object as key": ("!x a: 1", BadInputError, 1, "!x is not known"),
    "list as key": ("a: 1\n[b]: 1", BadInputError, 2, "a key is one word"),
    "alias as key": ("a: &a [1]\n*a : 1", BadInputError, 2, "a key is one word"),
    "merge of a text": ("a: 1\n<<: b", BadInputError, 2, "no mapping"),
    "no number": ("a: !!int ''", BadInputError, 1, "'' is no int"),
    "digits": ("a: " + "9" * 5000, BadInputError, 1, "is no int"),
    "no bool": ("a: !!bool maybe", BadInputError, 1, "'maybe' is no bool"),
    "syntax": ("a: [1,\nb: 2", BadInputError, 2, "no YAML"),
    "tab": ("a:\n\tb: 1", BadInputError, 2, "no YAML"),
    "control": ("a: 1\nb: \x07", BadInputError, 2, "no YAML"),
}  # fmt: skip
"""A text, how it is refused, at which line, and what is said."""


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, parser: str) -> None:
    """It is refused with its line, before it takes time or memory, and nothing is run."""
    del parser
    text, kind, line, what = BAD[name]
    begun = time.monotonic()

    error = refused(text)

    assert type(error) is kind
    assert (error.file, error.line) == ("a.yml", line)
    assert what in str(error)
    assert time.monotonic() - begun < 20


def test_limits_are_exact() -> None:
    """As much as a dialect may have is read, and one more of each is not."""
    assert read("[[1]]", depth=3, values=3, characters=5).plain() == [[1]]
    for limits in ({"depth": 2}, {"values": 2}, {"characters": 4}):
        assert isinstance(refused("[[1]]", **limits), LimitError)
    aliased = "[&a [1, 2], *a]"
    assert read(aliased, values=7).plain() == [[1, 2], [1, 2]]
    assert isinstance(refused(aliased, values=6), LimitError)


def test_documents_before_a_mistake_are_read() -> None:
    """What stands before the mistake comes, then the error."""
    found = documents("a: 1\n---\nb: 2\n---\nc: [", "a.yml")

    assert [next(found).plain(), next(found).plain()] == [{"a": 1}, {"b": 2}]
    with pytest.raises(BadInputError):
        next(found)


@settings(max_examples=150)
@given(st.text("ab:-[]{}&*!<>|'\"#,? \n\t\x85\u2028\ufeff\x00~=%@`0.", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises anything but kcap's errors; and each error has a line."""
    found: object
    try:
        found = [one.plain() for one in documents(text, "a.yml")]
    except KcapError as error:
        found = error.line
    if not isinstance(found, list):
        assert found in range(1, len(text.splitlines()) + 2)
