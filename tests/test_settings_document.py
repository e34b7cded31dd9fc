"""Files of settings: what they hold, where it stands, what is refused, which mistakes are told."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_support import run
from hypothesis import given, settings
from hypothesis import strategies as st
from settings_support import called, environment, refused

from kcap.documents import Node
from kcap.tools.settings import document

# What settings are

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)
WORDS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**40), 2**40), TEXTS, WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(content=st.dictionaries(WORDS, VALUES, max_size=5), flow=st.booleans())
def test_yaml_is_what_the_library_says_it_is(content: dict[str, Any], flow: bool) -> None:
    """Our nodes hold what PyYAML reads, and each key stands on the line that its node names."""
    text = yaml.safe_dump(content, default_flow_style=flow, allow_unicode=True, sort_keys=False)

    node = document.parse(text.encode(), "a.yaml")

    assert node.plain() == content
    lines = text.splitlines()
    for inner in walked(node):
        if isinstance(inner.value, dict):
            for key, value in inner.value.items():
                assert yaml.safe_dump(key).split("\n")[0].strip("'\"") in lines[value.line - 1]


def walked(node: Node) -> Iterator[Node]:
    """A node and all in it."""
    yield node
    inner = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(inner, str) or not hasattr(inner, "__iter__"):
        return
    for one in inner:
        yield from walked(one)


SCALARS = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), WORDS)


@settings(max_examples=40)
@given(
    tables=st.dictionaries(WORDS, st.dictionaries(WORDS, SCALARS, max_size=4), max_size=4),
    gaps=st.integers(0, 2),
)
def test_toml_knows_its_lines(tables: dict[str, dict[str, Any]], gaps: int) -> None:
    """Keys of tables are found where they stand."""
    lines: list[str] = []
    places_of: dict[tuple[str, str], int] = {}
    for table, keys in tables.items():
        lines += ["# comment"] * gaps + [f"[{table}]"]
        for key, value in keys.items():
            lines.append(f"{key} = {value!r}".lower())
            places_of[table, key] = len(lines)

    node = document.parse("\n".join(lines).encode(), "a.toml")

    assert node.plain() == tables
    assert isinstance(node.value, dict)
    for (table, key), line in places_of.items():
        inner = node.value[table].value
        assert isinstance(inner, dict)
        assert (inner[key].line, inner[key].place) == (line, f"near line {line}")


def test_lists_of_tables_have_their_lines() -> None:
    """Each sink of a TOML file stands where its table begins."""
    text = '[[sinks]]\nurl = "null:"\n\n[[sinks]]\nurl = "console:"\nformat = "jsonl"\n'

    node = document.parse(text.encode(), "a.toml")

    assert isinstance(node.value, dict)
    sinks = node.value["sinks"].value
    assert isinstance(sinks, tuple)
    assert [one.line for one in sinks] == [1, 4]
    assert isinstance(sinks[1].value, dict)
    assert sinks[1].value["format"].line == 6


def test_json_is_yaml(tmp_path: Path) -> None:
    """A .json file is read as one."""
    path = tmp_path / "kcap.json"
    path.write_text('{\n  "record": {\n    "keep": 7\n  }\n}')

    assert called("--config", path, "record").params["keep"] == 7


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "too many values, those of aliases counted each time: expected at most 20,000"),
        ("a: &a [*a]", "line 1: the alias *a stands in what it stands for"),
        ("a: [*b]", "line 1: the alias *b stands for nothing: expected &b above"),
        ("a: " + "[" * 10_000, "line 1: this is nested too deep"),
        ("x: 1\na:\n  " + "{a: " * 20 + "1" + "}" * 20, "line 3: this is nested too deep"),
        ("#" * (1 + (256 << 10)), "too large for settings: expected at most 262,144 bytes"),
        ("\n".join(f"a{i}: 1" for i in range(20_001)), "too many values"),
        (
            "record:\n  keep: 1\n  keep: 2",
            "line 3: 'keep' stands here again: expected it once, as at line 2",
        ),
        ("a: 1\n\na: 2", "line 3: 'a' stands here again: expected it once, as at line 1"),
        ("a: !!python/object/apply:os.system [id]", "line 1: !!python/object/apply:os.system is"),
        ("\na: !!set {b}", "line 2: !!set is not known here"),
        ("a: &b {c: 1}\nd:\n  <<: *b", "line 3: '<<' is not known here"),
        ("a:\n  [b, c]: 1", "line 2: a key is one word"),
        ("record:\n\tkeep: 1", "line 2: this is no YAML: found character"),
        ("a: [1,\nb: 2", "line 2: this is no YAML"),
        ("a: 1\n---\nb: 2", "line 3: this is another document: expected one"),
        ("a: 1\nb: \x07", "line 2: this is no YAML: control characters are not allowed"),
        ("- a\n- b", "line 1: this is no section: expected sections, as 'record:'"),
        ("a: !!int 12x", "line 1: '12x' is no int"),
    ],
)
def test_what_is_no_settings_is_refused_quickly(text: str, says: str) -> None:
    """The error says which line and what; nothing takes long, or makes an object."""
    begun = time.monotonic()

    assert says in refused(lambda: document.parse(text.encode(), "a.yaml"))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[record]\nkeep = 1\nkeep = 2", "line 3: this is no TOML: Cannot overwrite a value"),
        ("[record\n", "line 1: this is no TOML"),
        ("a = " + "[" * 50_000, "nested too deep"),
        ("a = " + "[" * 20 + "]" * 20, "nested too deep"),
    ],
)
def test_what_is_no_toml_is_refused(text: str, says: str) -> None:
    """The error says which line and what."""
    assert says in refused(lambda: document.parse(text.encode(), "a.toml"))


def test_what_is_no_text_or_has_no_suffix_is_refused() -> None:
    """The error says what a file should be."""
    assert "this is not UTF-8 at byte 3" in refused(lambda: document.parse(b"a: \xff", "a.yaml"))
    assert ".yaml, .yml, .json or .toml" in refused(lambda: document.parse(b"", "a.conf"))


def test_a_small_alias_is_fine() -> None:
    """Negative control: aliases as such are understood."""
    node = document.parse(b"a: &a [x, y]\nb: *a\n", "a.yaml")

    assert node.plain() == {"a": ["x", "y"], "b": ["x", "y"]}


# Mistakes

MISTAKES = [
    ("recrod: {}", "line 1: 'recrod' is no section; did you mean 'record'?"),
    ("capture: {}", "line 1: 'capture' is no section; its options stand in 'record'"),
    ("docs: {}", "line 1: 'docs' is no section; this verb takes no settings"),
    ("record:\n  kepe: 1", "line 2: 'kepe' is no option of 'record'; did you mean 'keep'?"),
    ("record:\n\n  keep: few", "line 3: 'keep': 'few' is not a valid integer range"),
    ("record: {keep: [1, 2]}", "line 1: 'keep': expected one value"),
    ("record: {keep: }", "line 1: 'keep': expected a value"),
    ("record: 5", "line 1: 'record' is a section: expected options with values"),
    ("service: {install: 5}", "line 1: 'service install' is a section"),
    ("service:\n  instal: {}", "line 2: 'instal' is no option of 'service'"),
    ("replay: {format: xml}", "line 1: 'format': 'xml' is not one of"),
    ("record: {where: 'ps.name ='}", "line 1: 'where':"),
    ("record: {duration: soon}", "line 1: 'duration': 'soon' is no duration"),
    ("sinks: https://x", "line 1: 'sinks' is a list"),
    ("sinks:\n - ampq://x", "line 2: there is no sink"),
    ("sinks:\n - {exchange: x}", "line 2: this is no sink"),
    ("sinks:\n - url: amqp://x\n   exchnge: y", "line 3: 'exchnge' is no option of 'amqp'"),
    ("sinks:\n - url: amqp://x\n   heartbeat: y", "line 3: heartbeat: 'y' is not understood"),
    ("sinks:\n - url: amqp://x\n   headers: y", "line 3: 'headers': expected names with values"),
    ("transformers: {remove: [a]}", "line 1: 'transformers' is a list"),
    ("transformers:\n - remvoe: [a]", "line 2: 'remvoe' is no transformer; did you mean 'remove'?"),
    ("transformers:\n - rename: {a: 5}", "line 2: rename:"),
    ("filament: {call-s: soon}", "line 1: 'call-s': 'soon' is no duration"),
    ("filament: {memory-bytes: lots}", "line 1: 'memory-bytes': 'lots' is no size"),
    ("logging: {level: loud}", "line 1: 'level': 'loud' is not one of"),
    ("logging: {keep: 5000}", "line 1: 'keep': 5000 is not in the range"),
    ("logging: {fiel: x}", "line 1: 'fiel' is no option of 'logging'; did you mean 'file'?"),
]


@pytest.mark.parametrize(("text", "says"), MISTAKES)
def test_mistakes_are_named_with_line_and_suggestion(tmp_path: Path, text: str, says: str) -> None:
    """`kcap config --check` says what is wrong, where, and what was probably meant."""
    path = tmp_path / "kcap.yaml"
    path.write_text(text)

    result = run("config", "--check", path)

    assert result.exit_code == 1
    assert f"kcap: {path}: {says}" in result.stderr


def test_a_kind_of_sink_that_is_not_there_is_named_with_one_that_is(tmp_path: Path) -> None:
    """Transports of other distributions included, as far as they are loaded."""
    path = tmp_path / "kcap.yaml"
    path.write_text("sinks:\n - ampq://x")

    assert "did you mean amqp?" in run("config", "--check", path).stderr


def test_all_mistakes_are_told_at_once_up_to_a_limit(tmp_path: Path) -> None:
    """Those of every section, in the order of their lines, and no more than twenty."""
    path = tmp_path / "kcap.yaml"
    path.write_text("logging: {level: loud}\nrecord:\n  kepe: 1\n  keep: few\nrecrod: {}\n")
    lines = run("config", "--check", path).stderr.splitlines()
    assert [re.search(r"line (\d)", line)[1] for line in lines] == ["1", "3", "4", "5"]  # type: ignore[index]

    path.write_text("".join(f"section{i}: 1\n" for i in range(25)))
    lines = run("config", "--check", path).stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 5 more")


@pytest.mark.parametrize(
    ("text", "variables", "says"),
    [
        ("replay: {format: xml}", {}, "kcap.yaml line 1: 'format': 'xml' is not one of"),
        ("", {"KCAP_REPLAY_FORMAT": "xml"}, "KCAP_REPLAY_FORMAT: 'format': 'xml' is not one of"),
        ("replay: {frmat: xml}", {}, "did you mean 'format'?"),
        ("recrod: {}", {}, "did you mean 'record'?"),
    ],
)
def test_a_verb_says_where_a_wrong_setting_stands(
    tmp_path: Path, closed: Path, text: str, variables: Mapping[str, str], says: str
) -> None:
    """What was not given on the command line is not blamed on it; the flag still wins."""
    path = tmp_path / "kcap.yaml"
    path.write_text(text)
    with environment(**variables):
        result = run("--config", path, "replay", closed)

    assert result.exit_code == 1
    assert says in result.stderr
    with environment(**variables):
        wrong = run("--config", path, "replay", closed, "--format", "xml")
    assert wrong.exit_code == (1 if "did you" in says else 2)


def test_only_the_sections_that_a_verb_needs_are_looked_into(tmp_path: Path, closed: Path) -> None:
    """A mistake in another verb's options, or a secret that is not there, stops nobody else."""
    path = tmp_path / "kcap.yaml"
    path.write_text(
        "record: {kepe: 1}\nsinks:\n - url: amqp://x\n   password: !env KCAP_TEST_NONE\n"
    )

    with environment():
        assert run("--config", path, "info", closed).exit_code == 0
        assert "'kepe'" in run("--config", path, "record").stderr


def test_help_needs_no_settings(tmp_path: Path) -> None:
    """A broken file keeps nobody from the help, the version, or an example; and from no verb."""
    path = tmp_path / "kcap.yaml"
    path.write_text("nonsense: [")

    for words in (["--help"], ["record", "--help"], ["version"], ["config", "--example"]):
        assert run("--config", path, *words).exit_code == 0, words
    assert run("--config", path, "fields").exit_code == 1


def test_help_shows_what_is_built_in(tmp_path: Path) -> None:
    """Defaults in the help are the same on every host."""
    path = tmp_path / "kcap.yaml"
    path.write_text("replay: {format: jsonl}")

    with environment():
        helped = run("--config", path, "replay", "--help").stdout
        assert helped == run("replay", "--help").stdout


def test_variables_that_set_nothing_are_told(closed: Path) -> None:
    """A misspelt variable is a warning that says what was meant; others' and tests' are not."""
    with environment(
        KCAP_INFO_JSN="1", KCAP_RECORD_KEPE="1", KCAP_TEST_DATA="/x", KCAP_BTF="/x", KCAP_RECROD="1"
    ):
        result = run("info", closed)

    assert result.exit_code == 0
    warnings = [line for line in result.stderr.splitlines() if "warning" in line]
    assert warnings == [
        "kcap: warning: the variable KCAP_INFO_JSN sets nothing; did you mean 'KCAP_INFO_JSON'?",
        "kcap: warning: the variable KCAP_RECROD sets nothing",
    ]
