"""Transformers: events change as asked, however they were cut into batches."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import RECORDS, SOURCE, batch_of, make_events, rows_of, snapshot
from tracee_support import OPENED, V1BETA1

from kcap import limits
from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.model import naming, shape
from kcap.model.batch import Batch, concat, constant
from kcap.model.builder import RawText
from kcap.model.classes import TypeClass
from kcap.model.side import Side, Snapshot, SourceInfo
from kcap.readers.tracee import TraceeReader
from kcap.state import State
from kcap.transform import NAMES, parse, parse_text
from kcap.transform.collect import Collector
from kcap.transform.names import Names
from kcap.transform.redact import Redact, Rules
from kcap.transform.tokens import TOKEN, Key
from kcap.writers.tracee_json import objects

KEY = bytes(range(32))

STAGES: dict[str, tuple[str, Any]] = {
    "remove": ("remove", ["pathname", "flags"]),
    "rename": ("rename", {"pathname": "flags", "a": "other"}),
    "replace": ("replace", {"param": "a", "old": "a", "new": "longer"}),
    "trim": ("trim", {"param": "pathname", "prefix": "a", "suffix": "b"}),
    "tags": ("tags", {"site": "lab"}),
    "redact": ("redact", {"columns": ["pathname", "a"]}),
    "pattern": ("redact", {"patterns": ["[0-9]+", "secrets"]}),
    "where": ("redact", {"columns": ["a", "flags"], "where": "evt.arg[a] startswith 'a'"}),
}


def transformed(name: str, arguments: Any, *batches: Batch) -> list[Batch]:
    """Batches behind a transformer."""
    stage = parse(name, arguments, key=KEY)
    return [stage.process(batch) for batch in batches]


@pytest.mark.parametrize("name", STAGES)
@given(records=RECORDS, cuts=st.lists(st.integers(0, 20), max_size=4))
@settings(max_examples=20)
def test_batch_boundaries_change_nothing(name: str, records: list[Any], cuts: list[int]) -> None:
    """Whatever batches the events come in, the same events go on."""
    whole = batch_of(records)
    ends = [0, *sorted(min(c, whole.rows) for c in cuts), whole.rows]
    parts = [whole.slice(a, b) for a, b in pairwise(ends)]

    found = transformed(*STAGES[name], *parts)

    assert rows_of(found) == rows_of(transformed(*STAGES[name], whole))


@pytest.mark.parametrize("name", STAGES)
def test_each_of_them_does_something(name: str) -> None:
    """Negative control: the events of the property before are changed."""
    records = [(i, {"pathname": "ab", "a": "a1", "flags": 11, "b": b"12"}) for i in range(3)]

    changed = transformed(*STAGES[name], batch_of(records))

    assert rows_of(changed) != rows_of([batch_of(records)])


@given(records=RECORDS)
@settings(max_examples=40)
def test_there_and_back_is_where_it_was(records: list[Any]) -> None:
    """Renamed and renamed back, events have every column and shape that they had."""
    to = {"a": "elsewhere", "b": "somewhere", "é-é": "plain", "x2D": "x2Dx"}
    kept = [(ts, r) for ts, r in records if not set(r) & set(to.values())]
    batch = batch_of(kept)

    there = transformed("rename", to, batch)
    back = transformed("rename", {new: old for old, new in to.items()}, *there)

    assert rows_of(back) == rows_of([batch])
    assert not {naming.argument(n) for n in to} & {naming.parts(n)[0] for n in there[0].columns}


def test_a_value_is_stored_where_its_new_name_is_at_home() -> None:
    """The class suffix comes and goes with the name's home class, exact bytes and length along."""
    batch = batch_of([(0, {"pathname": RawText(b"\xff"), "other": "x" * 70_000, "n": 5})])

    (made,) = transformed("rename", {"pathname": "what", "other": "pathname", "n": "fd"}, batch)

    names = set(made.columns) - {"ts", "ord", "shape"}
    assert names == {
        *("arg_what__str", "arg_what__str__raw"),
        *("arg_pathname", "arg_pathname__size"),
        "arg_fd",
    }
    assert made.columns["shape"].values.to_pylist() == ["what:any,pathname:any,fd:any"]


def test_a_renamed_argument_takes_the_place_of_another() -> None:
    """Where an event has both names the renamed value stays, elsewhere the other one does."""
    rows: list[tuple[int, dict[str, Any]]] = [
        (0, {"a": 1, "b": "old"}),
        (1, {"b": "kept"}),
        (2, {"a": None, "b": "kept too"}),
        (3, {"a": "text"}),
    ]

    (made,) = transformed("rename", {"a": "b"}, batch_of(rows))

    assert [
        {k: v for k, v in row.items() if k not in {"ts", "ord", "shape"}}
        for row in made.to_pylist()
    ] == [
        {"arg_b__i64": 1},
        {"arg_b__str": "kept"},
        {"arg_b__str": "kept too"},
        {"arg_b__str": "text"},
    ]


@pytest.mark.parametrize("event", [OPENED, V1BETA1])
def test_what_is_removed_is_gone_from_the_record_too(event: dict[str, Any]) -> None:
    """The foreign record that is given back lacks the fields that were removed, and no other."""
    batch = next(TraceeReader(io.BytesIO(json.dumps(event).encode()), "x").batches())
    whole = next(objects(batch))

    (made,) = transformed("remove", ["pathname", "pid", "exe"], batch)
    found = next(objects(made))

    if event is OPENED:
        assert found.pop("args") == []
        expected = {k: v for k, v in whole.items() if k not in {"hostProcessId", "args"}}
    else:
        process = whole["workload"]["process"]
        del process["executable"]["path"], process["host_pid"]
        whole["data"] = [d for d in whole["data"] if d["name"] != "pathname"]
        expected = whole
    assert found == expected


def test_the_form_of_each_argument_stays_with_it() -> None:
    """Arguments of several spellings keep theirs when one between them goes or gets a name."""
    args: list[dict[str, Any]] = [
        {"name": "fd", "type": "int", "value": 3},
        {"name": "pathname", "type": "const char*"},
        {"name": "dirfd", "type": "int", "value": -100},
    ]
    line = json.dumps(OPENED | {"args": args, "argsNum": 3}).encode()
    batch = next(TraceeReader(io.BytesIO(line), "x").batches())
    assert next(objects(batch))["args"] == args

    (shorter,) = transformed("remove", ["fd"], batch)
    (renamed,) = transformed("rename", {"dirfd": "at"}, batch)

    assert next(objects(shorter))["args"] == args[1:]
    assert next(objects(renamed))["args"] == [*args[:2], args[2] | {"name": "at"}]


def test_the_state_does_not_keep_what_was_removed() -> None:
    """The tables of the state, and the sources, lack what events lack; ids fit each other."""
    table = Batch(1, {n: constant(TypeClass.STR, n, 1) for n in ("name", "cmdline", "machine")})
    source = SourceInfo("test", host="secret", origin="00" * 16)
    rows = {"source": constant(TypeClass.STR, source.id, 2)}
    machine = {"machine": constant(TypeClass.STR, State.machine(source), 1)}
    state = Snapshot({"processes": table.adding(machine)})
    batch = make_events(2).adding(rows).with_before([source, state])

    (made,) = transformed("remove", ["cmdline", "host"], batch)

    found, tables = made.before
    assert isinstance(found, SourceInfo)
    assert isinstance(tables, Snapshot)
    assert found.host is None
    assert tables.tables["processes"].to_pylist() == [
        {"name": "name", "machine": State.machine(found)}
    ]
    assert set(made.columns["source"].values.to_pylist()) == {found.id} != {source.id}


def test_texts_change_in_lists_json_bytes_and_state() -> None:
    """A text is replaced in lists, in the strings of JSON, in exact bytes, and in the state."""
    records: list[tuple[int, dict[str, Any]]] = [
        (0, {"x": ["/old/a", "b"]}),
        (1, {"x": {"/old": ['"/old']}}),
        (2, {"x": RawText(b"/old/\xff")}),
        (3, {"x": "no"}),
    ]
    given_ = {"param": "x", "old": "/old", "new": "/new"}

    (made,) = transformed("replace", given_, batch_of(records))

    assert made.columns["arg_x__list"].values.to_pylist() == [["/new/a", "b"]]
    assert json.loads(made.columns["arg_x__json"].values[0].as_py()) == {"/new": ['"/new']}
    assert made.columns["arg_x__str"].values.to_pylist() == ["/new/\\xff", "no"]
    assert made.columns["arg_x__str__raw"].values.to_pylist() == [b"/new/\xff"]

    given_ = {"param": "process_name", "old": "process ", "new": "p"}
    (made,) = transformed("replace", given_, make_events(1).with_before([snapshot(2)]))
    (state,) = made.before
    assert isinstance(state, Snapshot)
    assert state.tables["processes"].columns["name"].values.to_pylist() == ["p0", "p1"]


def test_a_text_that_grows_too_long_is_cut() -> None:
    """A value beyond the limit is cut, and its true length stands beside it, row by row."""
    records = [(0, {"x": "a"}), (1, {"x": "aa" * 30_000}), (2, {"x": "b" * 70_000})]

    (made,) = transformed("replace", {"param": "x", "old": "a", "new": "ééé"}, batch_of(records))

    size = made.columns["arg_x__str__size"]
    assert size.rows is not None
    assert dict(zip(size.rows.tolist(), size.values.to_pylist(), strict=True)) == {
        1: 60_000 * 6,
        2: 70_000,
    }
    texts = made.columns["arg_x__str"].values.to_pylist()
    assert [len(t.encode()) for t in texts] == [6, limits.VALUE_BYTES // 2 * 2, limits.VALUE_BYTES]


def test_tags_stand_on_every_event() -> None:
    """A tag is a column of its own on all events, with variables of the given environment."""
    tags = {"site": "lab-%ROOM%", "share": "5%%", "number": 7, "yes": True}

    stage = parse("tags", tags, environ={"ROOM": "12"})
    made = stage.process(make_events(3))

    found = {n: c.values.to_pylist() for n, c in made.columns.items() if n.startswith("ext_")}
    assert found == {
        "ext_tag_site__str": ["lab-12"] * 3,
        "ext_tag_share__str": ["5%"] * 3,
        "ext_tag_number__str": ["7"] * 3,
        "ext_tag_yes__str": ["true"] * 3,
    }
    assert stage.process(Batch(0, {})).columns == {}


SPELLINGS: list[tuple[str, Any, Any]] = [
    ("remove", {"kparams": ["pathname"]}, ["pathname"]),
    ("remove", "pathname,fd", ["pathname", "fd"]),
    ("remove", {"enabled": True, "params": ["fd"]}, ["fd"]),
    ("rename", {"kparams": [{"old": "fd", "new": "f"}]}, {"fd": "f"}),
    ("rename", [{"old": "fd", "new": "f"}], {"fd": "f"}),
    ("rename", {"old": "fd", "new": "f"}, [{"old": "fd", "new": "f"}]),
    (
        "replace",
        {"enabled": True, "replacements": [{"kparam": "pathname", "old": "tmp", "new": "t"}]},
        {"param": "pathname", "old": "tmp", "new": "t"},
    ),
    (
        "trim",
        {"prefixes": [{"kparam": "pathname", "trim": "/tmp/"}]},
        {"param": "pathname", "prefix": "/tmp/"},
    ),
    (
        "trim",
        {"suffixes": [{"param": "pathname", "trim": "3"}]},
        [{"column": "arg_pathname", "suffix": "3"}],
    ),
    ("tags", {"tags": [{"key": "a", "value": "b"}]}, {"a": "b"}),
    ("tags", [{"key": "a", "value": "b"}], {"a": "b"}),
]


@pytest.mark.parametrize(("name", "first", "second"), SPELLINGS)
def test_spellings_mean_the_same(name: str, first: Any, second: Any) -> None:
    """Fibratus's way to write a transformer and ours give the same events, which are changed."""
    events = make_events(40)

    found = [rows_of(transformed(name, arguments, events)) for arguments in (first, second)]

    assert found[0] == found[1] != rows_of([events])


def test_disabled_ones_change_nothing() -> None:
    """`enabled: false` leaves the events as they are."""
    (made,) = transformed("remove", {"enabled": False, "params": ["fd"]}, make_events(5))

    assert rows_of([made]) == rows_of([make_events(5)])


WRONG: list[tuple[str, Any, str, str]] = [
    ("remov", [], "there is no transformer 'remov'", "did you mean 'remove'?"),
    ("remove", [], "remove: nothing", ""),
    ("remove", ["ord"], "'ord' is part of what identifies an event", "arg_ord"),
    ("remove", ["ts"], "'ts' is part of what identifies an event", ""),
    ("remove", {"columns": ["a"], "colums": ["b"]}, "no key 'colums'", "did you mean 'columns'?"),
    ("remove", [3], "remove: a name: 3: expected a text", ""),
    ("remove", ["a", ""], "an empty name", ""),
    ("rename", {"a": "pid"}, "'pid' is a column that every event has", "arg_pid"),
    ("rename", {"a": "c", "b": "c"}, "two parameters would have the same name", ""),
    ("rename", [{"old": "a", "new": "b"}, {"old": "a", "new": "c"}], "'a' twice", ""),
    ("rename", {"origin": "c"}, "part of what identifies an event", ""),
    ("rename", [{"old": "a"}], "no 'new'", ""),
    ("replace", {"param": "a", "old": "", "new": "b"}, "an empty text to replace", ""),
    ("replace", {"param": "a", "old": 5, "new": "b"}, "old: 5: expected a text", ""),
    ("replace", "a", "replace: 'a'", ""),
    ("trim", {"param": "a"}, "neither a prefix nor a suffix", ""),
    ("trim", {"param": "a", "prefx": "a"}, "no key 'prefx'", "did you mean 'prefix'?"),
    ("tags", {"a": ["b"]}, "a: ['b']: expected a text", ""),
    ("tags", {"a": "%NOT_THERE%"}, "no variable NOT_THERE", "%%"),
    ("tags", {}, "tags: nothing", ""),
    ("redact", {"columns": ["source"]}, "part of what identifies an event", ""),
    ("redact", {"patterns": ["secret"]}, "there is no pattern 'secret'", "did you mean 'secrets'?"),
    ("redact", {"patterns": ["(a"]}, "is no regular expression", ""),
    ("redact", {"patterns": ["a*"]}, "matches nothing at all", ""),
    ("redact", {"paths": "some"}, "whole or components", ""),
    ("redact", ["a"], "redact: ['a']", ""),
    ("redact", {"key-file": "/no/such/key"}, "the key can't be read", "--new-key"),
    ("redact", {"enabled": "yes"}, "true or false", ""),
]


@pytest.mark.parametrize(("name", "arguments", "what", "hint"), WRONG)
def test_mistakes_are_explained(name: str, arguments: Any, what: str, hint: str) -> None:
    """An error says what is wrong, and what was probably meant."""
    with pytest.raises(KcapError) as e:
        parse(name, arguments, key=KEY)

    assert what in str(e.value)
    assert hint in (e.value.hint or "")


def test_no_key_is_an_error() -> None:
    """Without a key nothing is redacted, and nothing made up."""
    with pytest.raises(KcapError, match="there is no key") as e:
        parse("redact", {"columns": ["a"]})

    assert "--new-key" in (e.value.hint or "")


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_work(name: str) -> None:
    """What the help shows is understood, in a file and on a command line, and means the same."""
    environ = {"HOSTNAME": "h"}
    ((found, arguments),) = yaml.safe_load(NAMES[name].example)[0].items()
    assert found == name
    short = NAMES[name].short
    if name == "redact":
        del arguments["key-file"]
        short = short.replace(', "key-file": "/etc/kcap/redact.key"', "")

    parse(name, arguments, key=KEY, environ=environ)
    stage = parse_text(short, key=KEY, environ=environ)

    assert rows_of([stage.process(make_events(3))])


def test_the_page_is_true(read_text: Callable[[str], str]) -> None:
    """The page has a row for each transformer, and its settings are understood."""
    page = read_text("docs/transform.md")
    block = page.split("```yaml\n")[1].split("```")[0]

    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(NAMES)
    for entry in yaml.safe_load(block)["transformers"]:
        ((name, arguments),) = entry.items()
        given_ = (
            {k: v for k, v in arguments.items() if k != "key-file"}
            if name == "redact"
            else arguments
        )
        assert hasattr(parse(name, given_, key=KEY, environ={"ROOM": "1"}), "process")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("remove", "has no arguments"),
        ("remov=a", "no transformer 'remov'"),
        ("rename=a", "rename: 'a'"),
        ("trim=a", "trim: 'a'"),
        ("replace=a:b", "replace: 'a:b'"),
        ("redact={", "no JSON"),
    ],
)
def test_mistakes_of_a_command_line_are_explained(text: str, what: str) -> None:
    """An error shows how it is written."""
    with pytest.raises(KcapError, match="expected") as e:
        parse_text(text, key=KEY)

    assert what in str(e.value)


_SPREAD = st.text('ab/"\\é', min_size=4, max_size=9)


@given(
    hidden=st.lists(_SPREAD, min_size=1, max_size=3),
    frames=st.lists(
        st.tuples(st.text("ab/c", max_size=4), st.text("ab/c", max_size=4)), max_size=5
    ),
    other=st.sampled_from(["text", "list", "json", "bytes", "raw", "column"]),
    where=st.sampled_from([None, "evt.arg[shown] = 'yes'"]),
)
@settings(max_examples=80)
def test_what_a_column_hides_is_hidden_everywhere(
    hidden: list[str], frames: list[tuple[str, str]], other: str, where: str | None
) -> None:
    """Known after a first pass, no value of the column is in any other one, in whatever form."""
    texts = [f"{a}{hidden[i % len(hidden)]}{b}" for i, (a, b) in enumerate(frames)]
    forms: dict[str, Any] = {
        "text": texts,
        "list": [[t, "x"] for t in texts],
        "json": [{"k": [t]} for t in texts],
        "bytes": [t.encode("utf-16-le") for t in texts],
        "raw": [RawText(t.encode() + b"\xff") for t in texts],
        "column": [t.encode() for t in texts],
    }
    records = [(0, {"secret": h, "shown": "yes"}) for h in hidden]
    records += [(1, {"other": value}) for value in forms[other]]
    batch = batch_of(records)
    chosen = None if where is None else Filter.of(where)
    rules = Rules(Names(["secret"], "redact", both=True), where=chosen)

    found = Collector(Key(KEY), rules)
    found.process(batch)
    second = replace(rules, where=None, literals=found.literals, only=found.only)
    made = Redact(Key(KEY), second if where else replace(second, only=None)).process(batch)

    for name, column in made.columns.items():
        said = [v for v in column.values.to_pylist() if not isinstance(v, int)]
        plain = [json.loads(v)["k"][0] if name.endswith("json") else v for v in said]
        flat = [w for v in plain for w in (v if isinstance(v, list) else [v])]
        for word in flat:
            rest = word if isinstance(word, str) else word.decode("latin-1")
            for value in hidden:
                forms_of = {value, value.encode().decode("latin-1")}
                forms_of.add(value.encode("utf-16-le").decode("latin-1"))
                assert not [f for f in forms_of for part in TOKEN.split(rest) if f in part]


def test_side_records_pass() -> None:
    """Every transformer hands on what travels beside the events, in its order."""
    sides: list[Side] = [SOURCE, snapshot()]
    for name, arguments in STAGES.values():
        (made,) = transformed(name, arguments, Batch(0, {}, tuple(sides)))
        assert [type(s) for s in made.before] == [SourceInfo, Snapshot], name


@given(records=RECORDS)
@settings(max_examples=40)
def test_shapes_stay_true(records: list[Any]) -> None:
    """A new shape names the arguments that have a column, and no others."""
    whole = [(ts, {n: v for n, v in r.items() if v is not None}) for ts, r in records]
    (made,) = transformed("rename", {"pathname": "flags", "a": "b"}, batch_of(whole))
    (made,) = transformed("remove", ["é-é", "x2D"], made)

    for row in concat([made]).to_pylist():
        named = {naming.argument(i.name) for i in shape.decode(str(row["shape"])).arguments}
        assert named == {naming.parts(n)[0] for n in row} - {"ts", "ord", "shape"}
