"""The redacting stage, case by case."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support import batch_of

from kcap.filter import Filter
from kcap.model.batch import Batch
from kcap.model.builder import RawText
from kcap.transform import patterns
from kcap.transform.collect import Collector
from kcap.transform.hiding import Hider
from kcap.transform.names import Names
from kcap.transform.redact import Redact, Rules
from kcap.transform.shapes import renamed, without
from kcap.transform.tokens import Key

KEY = Key(bytes(range(32)))


def rules(*columns: str, found: tuple[str, ...] = (), where: str | None = None) -> Rules:
    """What to redact."""
    chosen = None if where is None else Filter.of(where)
    names = Names(columns, "redact", both=True)
    return Rules(names, patterns.chosen(found), where=chosen)


def everywhere(wanted: Rules, batch: Batch) -> Batch:
    """A batch after both passes."""
    found = Collector(KEY, wanted)
    found.process(batch)
    second = replace(wanted, literals=found.literals)
    if wanted.where is not None:
        second = replace(second, where=None, patterns=(), only=found.only)
    return Redact(KEY, second).process(batch)


def values(batch: Batch, name: str) -> list[Any]:
    """The values of a column."""
    found: list[Any] = batch.columns[name].values.to_pylist()
    return found


def test_what_stands_behind_an_option_of_its_own_is_hidden() -> None:
    """An argument behind `--password` is hidden, in that list only, whatever else it says."""
    lists = [["x", "--password", "hunter2", "y"], ["--token"], ["y", "--db-secret", "z", "--token"]]

    made = Redact(KEY, rules(found=("secrets",))).process(batch_of([(0, {"v": v}) for v in lists]))

    assert values(made, "arg_v__list") == [
        ["x", "--password", KEY.token("hunter2"), "y"],
        ["--token"],
        ["y", "--db-secret", KEY.token("z"), "--token"],
    ]


def test_an_argument_behind_an_option_is_found_elsewhere() -> None:
    """What is a secret for where it stands in one list is hidden in all texts."""
    batch = batch_of([(0, {"v": ["--password", "hunter2"]}), (1, {"w": "say hunter2"})])

    made = everywhere(rules(found=("secrets",)), batch)

    assert values(made, "arg_w__str") == [f"say {KEY.token('hunter2')}"]


def test_texts_that_look_alike_have_tokens_of_their_bytes() -> None:
    """What is no valid text is told by its exact bytes, which are gone; so is the length."""
    raw = [RawText(b"a\xff"), "a\\xff", RawText(b"a\xff"), RawText(b"\xfe" * 70_000)]
    batch = batch_of([(i, {"a": v}) for i, v in enumerate(raw)])

    made = Redact(KEY, rules("a")).process(batch)

    tokens = values(made, "arg_a__str")
    assert tokens[0] == tokens[2] == KEY.data(b"a\xff").decode()
    assert tokens[1] == KEY.token("a\\xff")
    assert len(set(tokens)) == 3
    assert made.columns.keys() == {"arg_a__str", "ts", "ord", "shape"}


def test_a_text_with_something_hidden_loses_the_length_that_it_had() -> None:
    """The length of a value that was cut goes where it would tell of what is hidden."""
    long = ["a" * 70_000, "hunter2" + "b" * 70_000, "x" * 60 + "b" * 70_000, "c"]
    batch = batch_of([(i, {"a": v}) for i, v in enumerate(long)])
    assert values(batch, "arg_a__str__size") == [70_000, 70_007, 70_060]

    made = Redact(KEY, rules(found=("hunter.", "x{60}"))).process(batch)

    # The second one is cut once more, as a token is longer than what it stands for.
    assert values(made, "arg_a__str__size") == [70_000, 65_536 - 7 + 25]


@pytest.mark.parametrize(
    ("raw", "text", "bytes_"),
    [
        (b"x \xff", "x \\xff", [b"x \xff"]),
        (b"hush \xff", f"{KEY.token('hush')} \\xff", None),
    ],
)
def test_exact_bytes_go_where_their_text_changes(
    raw: bytes, text: str, bytes_: list[bytes] | None
) -> None:
    """Bytes beside a text stay as long as the text does."""
    made = Redact(KEY, rules(found=("hush",))).process(batch_of([(0, {"a": RawText(raw)})]))

    assert values(made, "arg_a__str") == [text]
    assert (bytes_ is None) == ("arg_a__str__raw" not in made.columns)


def test_bytes_that_match_alone_take_their_text_along() -> None:
    """Where only the exact bytes show what a pattern looks for, the text is hidden as a whole."""
    batch = batch_of([(0, {"a": RawText(b"x \xff\xfe")}), (1, {"a": RawText(b"y \xff")})])

    made = Redact(KEY, rules(found=("\xff\xfe",))).process(batch)

    assert values(made, "arg_a__str") == [KEY.data(b"x \xff\xfe").decode(), "y \\xff"]
    assert values(made, "arg_a__str__raw") == [b"y \xff"]


def test_strings_of_hidden_json_are_hidden_elsewhere() -> None:
    """A column of JSON is hidden as a whole, and each of its strings in other texts."""
    batch = batch_of([(0, {"a": {"k": ["hunter2"]}}), (1, {"b": "say hunter2"})])

    made = everywhere(rules("a"), batch)

    text = json.dumps({"k": ["hunter2"]}, separators=(",", ":"))
    assert values(made, "arg_a__json") == [json.dumps(KEY.token(text))]
    assert values(made, "arg_b__str") == [f"say {KEY.token('hunter2')}"]


@pytest.mark.parametrize("where", [None, "evt.arg[zz] = 1"])
def test_short_secrets_are_hidden_where_they_are_found(where: str | None) -> None:
    """A match of a few characters is hidden, with a filter too, but no part of other words."""
    batch = batch_of([(0, {"zz": 1, "a": "PASSWORD=abc"}), (1, {"a": "abcd"})])

    made = everywhere(rules(found=("secrets",), where=where), batch)

    assert values(made, "arg_a__str") == [f"PASSWORD={KEY.token('abc')}", "abcd"]


def test_escapes_do_not_hide_a_secret() -> None:
    """JSON is parsed where its escapes may spell what is to be hidden."""
    hider = Hider(KEY, patterns.chosen(["secrets"]), ["ä-hidden\n".encode()])

    made = hider.json([r'{"x":"\u0074oken=abc"}', r'["\u00e4-hidden\n"]', r'["a\\nb", "\/"]'])

    assert [json.loads(m) for m in made] == [
        {"x": f"token={KEY.token('abc')}"},
        [KEY.token("ä-hidden\n")],
        ["a\\nb", "/"],
    ]
    assert made[2] == r'["a\\nb", "\/"]'


def test_booleans_are_left_out_and_lists_keep_their_length() -> None:
    """Two values can't be hidden by tokens; items of lists have a token each."""
    batch = batch_of(
        [(0, {"a": True}), (1, {"a": [1.5, 2.5]}), (2, {"a": [True]}), (3, {"a": ["x"]})]
    )

    made = Redact(KEY, rules("a")).process(batch)

    assert made.columns.keys() == {"ts", "ord", "shape", "arg_a__list_f64", "arg_a__list"}
    assert values(made, "arg_a__list_f64") == [[KEY.real(1.5), KEY.real(2.5)]]
    assert values(made, "arg_a__list") == [[KEY.token("x")]]


def test_a_column_can_be_named_alone() -> None:
    """A full name means one column of an argument, its name all of them."""
    batch = batch_of([(0, {"a": "x"}), (1, {"a": 1})])

    alone = Redact(KEY, rules("arg_a__str")).process(batch)
    all_ = Redact(KEY, rules("arg_a")).process(batch)

    assert values(alone, "arg_a__i64") == [1]
    assert values(alone, "arg_a__str") == values(all_, "arg_a__str") == [KEY.token("x")]
    assert values(all_, "arg_a__i64") == [KEY.number(1)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a:x,b:y", "b:x"),
        ("b:y,a:x", "b:x"),
        ("!a:x,b:y", "b:y"),
        ("!a:x", "!b:x"),
        ("a:x,!b:y", "b:x"),
        ("c:x", "c:x"),
        ("k:z,args:entries nv ntv|a:x,b:y", "k:z,args:entries nv|b:x"),
    ],
)
def test_shapes_have_a_name_once(before: str, after: str) -> None:
    """An argument gives way to the one that gets its name, unless that one is null."""
    assert renamed(before, {"a": "b"}) == after


def test_arguments_of_two_may_change_names() -> None:
    """Names can be exchanged."""
    assert renamed("a:x,b:y", {"a": "b", "b": "a"}) == "b:x,a:y"
    batch = batch_of([(0, {"a": "x", "b": 5})])
    from kcap.transform import parse

    made = parse("rename", {"a": "b", "b": "a"}).process(batch)

    assert values(made, "arg_b__str") == ["x"]
    assert values(made, "arg_a__i64") == [5]


def test_shapes_lose_fields_outside_of_arguments() -> None:
    """A field of the record goes with its column, told by the spelling of its source."""
    gone = {"uid", "ext_more"}.__contains__

    assert without("eventName:string,userId:int,more:int|a:x", gone) == "eventName:string|a:x"
    assert without("a:x", gone) == "a:x"
