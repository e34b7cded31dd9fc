"""Settings: which one wins, where each stands, what is refused, and what is never read."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
import yaml
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st

from kcap import trust
from kcap.errors import KcapError
from kcap.filament.limits import Limits
from kcap.tools import settings
from kcap.tools.cli import main
from kcap.tools.settings import document, places, verbs
from kcap.tools.settings.merged import Merged

ROOT = Path(__file__).parent.parent
OTHER = 1000
"""A user who is not root."""


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """An environment without settings of the host that runs the tests."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KCAP_")}
    with mock.patch.dict(os.environ, {**clean, **variables}, clear=True):
        yield


def called(*words: str | Path, **variables: str) -> click.Context:
    """The context in which a verb would run: its arguments are read, nothing is done."""
    with environment(**variables):
        before = list(itertools.takewhile(lambda w: str(w) not in verbs.sections(), words))
        name, *rest = (str(word) for word in words[len(before) :])
        root = main.make_context("kcap", [*map(str, before), name])
        command = main.get_command(root, name)
        assert command is not None
        return command.make_context(name, rest, parent=root)


def merged(path: Path, text: str, **variables: str) -> Merged:
    """The settings of a file with a text."""
    path.write_text(text)
    return Merged(str(path), environ=variables)


def refused(action: Callable[[], object]) -> str:
    """What an error says, with its notes."""
    with pytest.raises(KcapError) as error:
        action()
    return "\n".join([str(error.value), *getattr(error.value, "__notes__", ())])


# Which one wins

OPTIONS = {
    # An option of record: what the file, the environment and the command line say, and what that is
    # for the verb; None for what holds else.
    "keep": ("3", "4", "5", (3, 4, 5, None)),
    "split-size": ("1M", "2M", "3M", (1 << 20, 2 << 20, 3 << 20, None)),
    "split-time": ("10", "1m", "1h", (10.0, 60.0, 3600.0, None)),
    "level": ("7", "8", "9", (7, 8, 9, 3)),
    "case": ("of file", "of env", "of flag", ("of file", "of env", "of flag", None)),
    "scope": (
        "[comm=a, follow]",
        "comm=b follow",
        "comm=c",
        (("comm=a", "follow"), ("comm=b", "follow"), ("comm=c",), ()),
    ),
}


@given(
    name=st.sampled_from(sorted(OPTIONS)),
    given_in=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    form=st.sampled_from(["yaml", "toml"]),
)
def test_the_command_line_wins_over_variables_and_those_over_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    given_in: tuple[bool, bool, bool],
    form: str,
) -> None:
    """Whichever of the three say something, the last of file, variable and flag holds."""
    in_file, in_env, in_flag = given_in
    file, env, flag, values = OPTIONS[name]
    path = tmp_path_factory.mktemp("settings") / f"kcap.{form}"
    if form == "yaml":
        path.write_text(f"record:\n  {name}: {file}\n" if in_file else "")
    else:
        text = re.sub(r"([\w=]+)", r'"\1"', file) if file.startswith("[") else f'"{file}"'
        path.write_text(f"[record]\n{name} = {text}\n" if in_file else "")
    variables = {f"KCAP_RECORD_{name.upper().replace('-', '_')}": env} if in_env else {}
    words = [f"--{name}", flag] if in_flag else []

    found = called("--config", path, "record", *words, **variables).params

    field = name.replace("-", "_")
    expected = (
        values[2] if in_flag else values[1] if in_env else values[0] if in_file else values[3]
    )
    assert found[field] == expected


@pytest.mark.parametrize(
    ("text", "variable", "expected"),
    [("yes", None, True), ("no", None, False), ("true", "0", False), ("off", "yes", True)],
)
def test_flags_are_truth_values(
    tmp_path: Path, text: str, variable: str | None, expected: bool
) -> None:
    """A flag is said with yes or no, in a file as in a variable."""
    path = tmp_path / "kcap.yaml"
    path.write_text(f"record: {{force: {text}}}")
    variables = {} if variable is None else {"KCAP_RECORD_FORCE": variable}

    assert called("--config", path, "record", **variables).params["force"] is expected


def test_other_names_of_a_verb_have_its_settings(tmp_path: Path) -> None:
    """`capture` is set as `record`, and `install-service` as `service install`."""
    path = tmp_path / "kcap.yaml"
    path.write_text("record: {keep: 7}\nservice: {install: {name: web}}")

    assert called("--config", path, "record").params["keep"] == 7
    with environment():
        root = main.make_context("kcap", ["--config", str(path), "capture"])
        for name, field, value in (("capture", "keep", 7), ("install-service", "name", "web")):
            command = main.get_command(root, name)
            assert command is not None
            assert command.make_context(name, [], parent=root).params[field] == value


def test_a_verb_of_a_verb_has_a_section_in_its_section(tmp_path: Path) -> None:
    """What stands in service: install: is for that alone."""
    path = tmp_path / "kcap.yaml"
    path.write_text("service: {install: {name: web}}")
    with environment():
        root = main.make_context("kcap", ["--config", str(path), "service"])
        service = main.get_command(root, "service")
        assert isinstance(service, click.Group)
        outer = service.make_context("service", ["install"], parent=root)
        install, status = (service.get_command(outer, n) for n in ("install", "status"))
        assert install is not None
        assert status is not None
        assert install.make_context("install", [], parent=outer).params["name"] == "web"
        assert status.make_context("status", [], parent=outer).params["name"] == "kcap"


def test_the_file_is_the_named_one_else_the_variables_else_the_users_else_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that there is, and only that; --config '' is none."""
    system, home, xdg = tmp_path / "etc", tmp_path / "home", tmp_path / "xdg"
    for folder in (system, home / ".config" / "kcap", xdg / "kcap"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(places, "SYSTEM", system)
    monkeypatch.setattr(trust, "is_root", lambda: False)
    environ = {"HOME": str(home)}
    assert places.chosen(None, environ) is None
    assert places.silent(environ)

    (system / "kcap.toml").touch()
    assert places.chosen(None, environ) == str(system / "kcap.toml")
    (home / ".config/kcap/kcap.yaml").touch()
    assert places.chosen(None, environ) == str(home / ".config/kcap/kcap.yaml")
    (xdg / "kcap" / "kcap.yaml").touch()
    environ["XDG_CONFIG_HOME"] = str(xdg)
    assert places.chosen(None, environ) == str(xdg / "kcap/kcap.yaml")
    environ["KCAP_CONFIG"] = "of-variable.yaml"
    assert places.chosen(None, environ) == "of-variable.yaml"
    assert places.chosen("named.yaml", environ) == "named.yaml"
    assert places.chosen("", environ) is None
    assert not places.silent(environ)

    monkeypatch.setattr(trust, "is_root", lambda: True)
    del environ["KCAP_CONFIG"]
    assert places.chosen(None, environ) == str(system / "kcap.toml")
    (system / "kcap.yaml").touch()
    assert "two files of settings" in refused(lambda: places.chosen(None, environ))


def test_the_working_folder_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kcap.yaml that lies where kcap is started says nothing."""
    (tmp_path / "kcap.yaml").write_text("nonsense: [")
    monkeypatch.chdir(tmp_path)
    with environment(HOME=str(tmp_path / "none"), XDG_CONFIG_HOME=""):
        result = run("config")

    assert result.exit_code == 0
    assert result.stdout == "# no file of settings\n"


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


@given(content=st.dictionaries(WORDS, VALUES, max_size=5), flow=st.booleans())
def test_yaml_is_what_the_library_says_it_is(content: dict[str, Any], flow: bool) -> None:
    """Our nodes hold what PyYAML reads, and each key stands on the line that its node names."""
    text = yaml.safe_dump(content, default_flow_style=flow, allow_unicode=True, sort_keys=False)

    node = document.parse(text.encode(), "a.yaml")

    assert document.plain(node) == content
    lines = text.splitlines()
    for inner in walked(node):
        if isinstance(inner.value, dict):
            for key, value in inner.value.items():
                assert yaml.safe_dump(key).split("\n")[0].strip("'\"") in lines[value.line - 1]


def walked(node: document.Node) -> Iterator[document.Node]:
    """A node and all in it."""
    yield node
    inner = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(inner, str) or not hasattr(inner, "__iter__"):
        return
    for one in inner:
        yield from walked(one)


SCALARS = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), WORDS)


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

    assert document.plain(node) == tables
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
        ("a: &a [*a]", "line 1: this is nested too deep: expected at most 16 levels"),
        ("a: " + "[" * 10_000, "line 1: this is nested too deep"),
        ("x: 1\na:\n  " + "{a: " * 20 + "1" + "}" * 20, "line 3: this is nested too deep"),
        ("#" * (1 + (256 << 10)), "too large for settings: expected at most 262,144 bytes"),
        ("\n".join(f"a{i}: 1" for i in range(20_001)), "too many values"),
        ("record:\n  keep: 1\n  keep: 2", "line 3: 'keep' stands here again: it is at line 2"),
        ("a: 1\n\na: 2", "line 3: 'a' stands here again: it is at line 1"),
        ("a: !!python/object/apply:os.system [id]", "line 1: !!python/object/apply:os.system is"),
        ("\na: !!set {b}", "line 2: !!set is not known here"),
        ("a: &b {c: 1}\nd:\n  <<: *b", "line 3: '<<' is not known here"),
        ("a:\n  [b, c]: 1", "line 2: a key is one word"),
        ("record:\n\tkeep: 1", "line 2: this is no YAML: found character '\\t'"),
        ("a: [1,\nb: 2", "line 2: this is no YAML"),
        ("a: 1\n---\nb: 2", "line 2: this is no YAML: but found another document"),
        ("a: 1\nb: \x07", "line 2: this is no YAML: special characters are not allowed"),
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

    assert document.plain(node) == {"a": ["x", "y"], "b": ["x", "y"]}


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
    ("sinks:\n - ampq://x", "line 2: there is no sink for ampq:; did you mean amqp?"),
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


# What a run gets


def test_a_run_gets_sinks_transformers_filaments_and_log(tmp_path: Path) -> None:
    """Each with its place; numbers with units are numbers."""
    text = """\
sinks:
  - "null:"
  - url: amqp://guest@localhost/
    exchange: kcap
    headers: {site: berlin}
    password: {env: BROKER}
transformers:
  - remove: [irp]
  - tags: {site: !env SITE}
filament: {path: [/a, /b], memory-bytes: 64M, call-s: 500ms, rows: 7}
logging: {file: /var/log/kcap/kcap.log, max-size: 1M, keep: 2}
"""
    path = tmp_path / "kcap.yaml"
    found = merged(path, text, BROKER="secret-word", SITE="berlin").settings

    null, amqp = found.sinks
    assert (null.url, null.options, null.source) == ("null:", {}, f"{path} line 2")
    assert amqp.options == {
        "exchange": "kcap",
        "headers": {"site": "berlin"},
        "password": "secret-word",
    }
    assert [(one.name, one.arguments) for one in found.transformers] == [
        ("remove", ["irp"]),
        ("tags", {"site": "berlin"}),
    ]
    assert found.filament.path == ("/a", "/b")
    assert found.filament.limits == Limits(memory_bytes=64 << 20, call_s=0.5, rows=7)
    assert found.logging.max_bytes == 1 << 20
    assert found.with_sinks(["console:"]).sinks[0].url == "console:"
    assert found.with_sinks([]) is found


def test_variables_set_what_belongs_to_no_verb(tmp_path: Path) -> None:
    """KCAP_SINKS is a list of URLs; other sections have a variable an option."""
    found = merged(
        tmp_path / "kcap.yaml",
        "sinks: ['console:']\nfilament: {path: [/file]}\nlogging: {level: debug}",
        KCAP_SINKS="null: amqp://localhost/",
        KCAP_FILAMENT_PATH=os.pathsep.join(["/a", "/b"]),
        KCAP_FILAMENT_CALL_S="3",
        KCAP_LOGGING_LEVEL="error",
    ).settings

    assert [(one.url, one.source) for one in found.sinks] == [
        ("null:", "KCAP_SINKS"),
        ("amqp://localhost/", "KCAP_SINKS"),
    ]
    assert found.filament.path == ("/a", "/b")
    assert found.filament.limits.call_s == 3.0
    assert found.logging.level == "error"


def test_a_value_may_be_in_a_variable_or_a_file(tmp_path: Path) -> None:
    """Of verbs, too; one that is not there is an error for who needs it."""
    secret = tmp_path / "secret"
    secret.write_text("word of file\n")
    path = tmp_path / "kcap.yaml"
    path.write_text(f"record:\n  case: !file {secret}\n  note: {{env: KCAP_TEST_NOTE}}\n")

    found = called("--config", path, "record", KCAP_TEST_NOTE="word of env").params
    assert (found["case"], found["note"]) == ("word of file", "word of env")
    assert "'KCAP_TEST_NOTE' is not set" in refused(lambda: called("--config", path, "record"))
    secret.unlink()
    assert f"{secret}: the value can't be read" in refused(
        lambda: called("--config", path, "record", KCAP_TEST_NOTE="x")
    )
    toml = tmp_path / "kcap.toml"
    toml.write_text('[record]\nnote = {env = "KCAP_TEST_NOTE"}\n')
    assert called("--config", toml, "record", KCAP_TEST_NOTE="x").params["note"] == "x"


def test_every_option_of_every_verb_can_be_set() -> None:
    """Each option with a long name that does not print something and end is a setting."""
    for name in verbs.sections():
        for path, command in verbs.commands((name,)):
            keys = verbs.keys(command)
            for option in command.params:
                if isinstance(option, click.Option) and any(o[:2] == "--" for o in option.opts):
                    ends = option.is_eager and option.is_flag
                    assert (option.name in {k.field for k in keys.values()}) != ends, (path, option)
    assert "list-events" not in verbs.keys(verbs.command_at(("record",)))


def test_nothing_is_loaded_without_settings(closed: Path) -> None:
    """No YAML, no schema; with a file both are: the control."""
    script = (
        "import sys\nfrom kcap.tools.cli import main\n"
        "try:\n    main(sys.argv[1:], prog_name='kcap')\nexcept SystemExit:\n    pass\n"
        "print('yaml' in sys.modules, 'kcap.tools.settings.schema' in sys.modules)"
    )
    empty = closed.with_name("kcap.yaml")
    empty.touch()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KCAP_")}
    for words, loaded in (
        (["info"], "False False"),
        (["--config", str(empty), "info"], "True True"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *words, str(closed)],
            env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(closed.parent)},
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.decode().splitlines()[-1] == loaded


# What root reads


@pytest.mark.root
@pytest.mark.parametrize("fault", ["owner", "mode", None])
def test_root_reads_no_settings_that_others_can_change(tmp_path: Path, fault: str | None) -> None:
    """Nor a secret; what root alone can change is read: the control."""
    path, secret = tmp_path / "kcap.yaml", tmp_path / "secret"
    path.write_text(f"record: {{note: !file {secret}}}")
    secret.write_text("x")
    for wrong, name in ((path, "kcap.yaml"), (secret, "secret")):
        if fault == "owner":
            os.chown(wrong, OTHER, 0)
        elif fault == "mode":
            wrong.chmod(0o646)
        if fault is None:
            assert called("--config", path, "record").params["note"] == "x"
            continue
        said = refused(lambda: called("--config", path, "record"))
        assert "root does not load what others can change" in said
        assert name in said
        os.chown(wrong, 0, 0)
        wrong.chmod(0o600)


def test_of_gives_the_same_settings_in_every_context(tmp_path: Path) -> None:
    """The file is read once a run."""
    path = tmp_path / "kcap.yaml"
    path.write_text("filament: {rows: 7}")
    context = called("--config", path, "replay", "x")

    with environment():
        found = settings.of(context)
        path.unlink()
        assert settings.of(context) is found
        assert settings.of(context.find_root()).filament.limits.rows == 7


def test_a_service_has_the_settings_that_it_was_installed_with(tmp_path: Path) -> None:
    """Named ones stand in its unit; what they say of its files is not said otherwise there."""
    path = tmp_path / "kcap.yaml"
    path.write_text("record: {split-time: 1h, output: elsewhere.kcap}")
    install = ("service", "install", "--print")
    with environment(HOME=str(tmp_path / "none"), XDG_CONFIG_HOME=""):
        plain = run(*install).stdout
        named = run("--config", path, *install)
    with environment(KCAP_CONFIG=os.path.relpath(path)):
        by_variable = run(*install).stdout

    assert "--split-size 256M --keep 16" in plain
    assert "--config" not in plain
    assert named.exit_code == 0, named.stderr
    assert f" --config {path} record -o " in named.stdout
    assert "--split-size" not in named.stdout
    assert "--keep 16" in named.stdout
    assert by_variable == named.stdout
    path.write_text("record: {split-time: often}")
    with environment():
        refused_too = run("--config", path, *install)
    assert refused_too.exit_code == 1
    assert f"{path} line 1: 'split-time': 'often' is no duration" in refused_too.stderr
