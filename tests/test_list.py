"""``kcap fields`` and ``kcap list``: what kcap knows by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from cli_support import run

from kcap.filter.fields import all_fields
from kcap.model import catalogue
from kcap.tools.fields import matches, spelled

ALL = all_fields()


def test_fields_listed() -> None:
    """`kcap fields` has a line for each field, in groups, and says what is old or empty."""
    lines = run("fields").stdout.splitlines()
    groups = [line for line in lines if line and not line.startswith(" ")]
    assert groups[0] == "evt: the event"
    assert groups[-2:] == ["names of Tracee", "kcap's own columns"]
    assert len(groups) == len(set(groups))
    shown = [line for line in lines if line.startswith("  ")]
    assert [re.split(r"  +", line.strip())[0] for line in shown] == [spelled(f) for f in ALL]
    for field, line in zip(ALL, shown, strict=True):
        assert (
            f"old name of {field.replaced_by.replace(',', ', ')}" in line
        ) or not field.replaced_by
        assert ("no source yet" in line) is not bool(field.sources)
        assert (f"(era {field.era}" in line) is bool(field.era)


def test_fields_pattern() -> None:
    """A part of a name or a wildcard pattern selects fields; eras and sources do, too."""

    def names(*words: str) -> set[tuple[str, int | None]]:
        result = run("fields", "--json", *words)
        assert result.exit_code == 0, result.output
        return {(f["field"], f["era"]) for f in json.loads(result.stdout)["fields"]}

    every = names()
    assert every == {(f.name, int(f.era) if f.era else None) for f in ALL}
    assert names("ance") == {(n, e) for n, e in every if "ance" in n}
    assert names("*NAME") == {(n, e) for n, e in every if n.lower().endswith("name")}
    assert names("net.d?p") == {("net.dip", None)}
    assert names("--era", "1") == {(n, e) for n, e in every if e != 3}
    assert names("ps.exe") == {("ps.exe", 1), ("ps.exe", 3)}
    assert names("PS.EXE", "--era", "3") == {("ps.exe", 3)}
    assert names("--sourceless") == {
        (f.name, int(f.era) if f.era else None) for f in ALL if not f.sources
    }
    assert names("evt.arg[X]") == names("evt.arg") == {("evt.arg", None)}
    assert names("arg_pathname") == {("arg_pathname", None)}
    assert matches("ps.*[x].name", "ps.ancestor[X].name")
    assert not matches("ps.[an]*", "ps.ancestor")


def test_field_described() -> None:
    """Of one field, its meaning in each era and all its sources are shown."""
    text = run("fields", "ps.ppid").stdout
    assert text.count("ps.ppid\n") == 2
    assert "arg:ppid{event=CreateProcess}" in text
    assert "1: Fibratus 1.x" in text
    assert "use       evt.name; this is an old name" in run("fields", "kevt.name").stdout
    assert "no source yet: always missing" in run("fields", "evt.desc").stdout
    assert "argument  optional, as ps.envs[X]" in run("fields", "ps.envs").stdout
    with_sources = run("fields", "net.dip.names", "--sources").stdout
    assert "arg:dip_names" in with_sources
    listed = run("fields", "net.", "--sources").stdout
    assert "      from arg:dip_names | arg:dst_dns\n" in listed
    assert "from " not in run("fields", "net.d").stdout


def test_fields_json_whole() -> None:
    """The JSON of a field has all that the catalogue has."""
    (found,) = json.loads(run("fields", "pe.is_dll", "--json").stdout)["fields"]
    assert found == {
        "field": "pe.is_dll",
        "type": "bool",
        "era": None,
        "argument": None,
        "replaced_by": ["file.is_dll", "module.is_dll"],
        "sources": ["arg:is_dll", "ext:pe.is_dll"],
        "meaning": "whether the file is a library",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fields", "proc.name"), "there is no field 'proc.name'. Did you mean 'ps.name'"),
        (("fields", "qqqqqqq"), "there is no field 'qqqqqqq'. 'kcap fields' lists them."),
        (("list", "fields", "qqqqqqq"), "there is no field 'qqqqqqq'"),
        (("list", "evnts"), "there is no list of 'evnts'. Did you mean 'events'?"),
        (("list", "kevents", "qqq"), "there is no event 'qqq'. 'kcap list events' lists them."),
        (("list", "columns", "qqq"), "there is no column 'qqq'."),
        (("fields", "--era", "2"), "'2' is not one of '1', '3'"),
    ],
)
def test_nothing_like_that(words: tuple[str, ...], said: str) -> None:
    """What is not there is a wrong usage, with what may have been meant."""
    result = run(*words)
    assert result.exit_code == 2
    assert said in result.output


def test_list() -> None:
    """`kcap list` says what it lists, and lists fields as `kcap fields` does."""
    topics = [line.split()[2] for line in run("list").stdout.splitlines()]
    assert topics == ["fields", "events", "kevents", "columns", "filaments"]
    for topic in topics:
        assert run("list", topic).exit_code == 0
        assert json.loads(run("list", topic, "--json").stdout)
    assert run("list", "fields", "ps").stdout == run("fields", "ps").stdout
    assert run("list", "kevents").stdout == run("list", "events").stdout


def test_list_events() -> None:
    """Every known event is listed under its source, with action and category."""
    rows = json.loads(run("list", "events", "--json").stdout)["events"]
    assert [tuple(row.values()) for row in rows] == [
        (family, e.name, e.action, e.category)
        for family in catalogue.families()
        for e in catalogue.events(family).values()
    ]
    text = run("list", "events", "reg*").stdout
    assert text.startswith("fibratus\n")
    assert re.search(r"^  RegSetValue +reg_set_value +registry$", text, re.MULTILINE)
    assert "CreateFile" not in text


def test_list_columns() -> None:
    """The envelope's columns are listed with class and meaning."""
    rows = json.loads(run("list", "columns", "--json").stdout)["columns"]
    assert [tuple(row.values()) for row in rows] == [
        (c.name, str(c.cls), c.meaning) for c in catalogue.envelope().values()
    ]
    assert run("list", "columns", "ts_").stdout.startswith("ts_raw  str  ")


def test_sourceless_documented(read_text: Callable[[str], str]) -> None:
    """docs/fields.md names the fields without a source, those and no others."""
    rows = re.findall(
        r"^\| `(.+?)` \| (\w+) \| (.+) \|$", read_text("docs/fields.md"), re.MULTILINE
    )
    assert sorted(rows) == sorted((spelled(f), f.type, f.meaning) for f in ALL if not f.sources)
    assert len(rows) > 50
