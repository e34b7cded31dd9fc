"""The filters that people have: those of the manuals, and all of Fibratus's rules."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from filter_rows import batch, column

from kcap.filter import Filter, FilterError
from kcap.filter.check import Checked, check
from kcap.filter.parser import MacroTable, parse
from kcap.filter.syntax import Expr, Sequence, text_of
from kcap.model.classes import TypeClass

# the filters of manuals

ROWS: list[dict[str, Any]] = [
    {"category": "file", "process_name": "cmd.exe", "pid": 1},
    {"category": "file", "process_name": "CMD.EXE", "pid": 2},
    {"category": "file", "pid": 3},
    {"category": "network", "arg_dip": "172.17.2.3", "process_name": "cmd.exe"},
    {"category": "network", "arg_dip": "172.17.2.30"},
    {"category": "network", "arg_dip": "::ffff:172.17.2.3"},
    {"category": "net", "arg_dip": "172.17.2.3", "process_name": "svchost.exe"},
    {"category": "registry", "arg_dip": "172.17.2.3", "process_name": "svchost.exe"},
    {"ext_pe.resources": '{"Company":"blackwater","Copyright":"a"}'},
    {"ext_pe.resources": '{"CompanyName":"The blackwater company"}'},
    {"ext_pe.resources": '{"Copyright":"blackwater"}'},
    {"ext_pe.resources": '{"Company":"whitewater"}', "process_name": "it's"},
    {"process_name": "bash", "event": "openat", "exe": "/bin/bash", "uid": 0},
    {"process_name": "bash", "event": "read", "exe": "/bin/bash", "uid": 1000},
    {},
]


def resource(row: Mapping[str, Any]) -> str:
    """The resource Company, or the first whose name begins with that."""
    found = yaml.safe_load(row.get("ext_pe.resources", "{}"))
    return next((text for name, text in found.items() if name.startswith("Company")), "")


def to_host(row: Mapping[str, Any], where: str) -> bool:
    """Whether the address that an event goes to is in a network."""
    address = ip_address(row["arg_dip"]) if "arg_dip" in row else None
    address = getattr(address, "ipv4_mapped", None) or address
    return address is not None and address in ip_network(where)


SEEDS: list[tuple[str, Callable[[Mapping[str, Any]], bool]]] = [
    (
        "kevt.category = 'file' and ps.name = 'cmd.exe'",
        lambda row: row.get("category") == "file" and row.get("process_name") == "cmd.exe",
    ),
    ("kevt.category = 'file'", lambda row: row.get("category") == "file"),
    (
        "kevt.category = 'net' and net.dip = 172.17.2.3",
        lambda row: row.get("category") in ("net", "network") and to_host(row, "172.17.2.3/32"),
    ),
    ("pe.resources[Company] contains 'blackwater'", lambda row: "blackwater" in resource(row)),
    (
        "ps.name in ('svchost.exe', 'it\\'s')",  # as the filament of the manual makes it of names
        lambda row: row.get("process_name") in ("svchost.exe", "it's"),
    ),
    # What Tracee's --filter and --scope say, as a filter.
    ("comm = 'bash'", lambda row: row.get("process_name") == "bash"),
    (
        "comm = 'bash' and event = 'openat'",
        lambda row: row.get("process_name") == "bash" and row.get("event") == "openat",
    ),
    ("uid = 0", lambda row: row.get("uid") == 0),
]


@pytest.mark.parametrize(("text", "means"), SEEDS, ids=[text for text, _ in SEEDS])
def test_manuals(text: str, means: Callable[[Mapping[str, Any]], bool]) -> None:
    """A filter of the manuals keeps the events that they say, and some of them are there."""
    expected = [number for number, row in enumerate(ROWS) if means(row)]
    assert 0 < len(expected) < len(ROWS)
    chosen = Filter.of(text)
    assert chosen.rows(made(ROWS)).tolist() == expected
    assert Filter.of(str(chosen)).rows(made(ROWS)).tolist() == expected


def made(rows: list[dict[str, Any]]) -> Any:
    """A batch of events."""
    from kcap.model import naming

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        number = any(isinstance(value, int) for value in values)
        prefix, _, rest = name.partition("_")
        cls = TypeClass.JSON if prefix == "ext" else TypeClass.STR
        full = naming.column_name(naming.extension(rest), cls, None) if prefix == "ext" else name
        columns[full] = column(TypeClass.I64 if number else cls, values)
    return batch(columns, len(rows))


def test_lost_quotes_of_the_manuals() -> None:
    """The manual's command line, as bash hands it on, is refused with how to write it."""
    for text in ("kevt.category = file and ps.name = cmd.exe", "kevt.category = net"):
        with pytest.raises(FilterError) as found:
            Filter.of(text)
        assert "put the whole filter into double quotes" in (found.value.hint or "")


# Fibratus's rules


@pytest.fixture(scope="module")
def rules(data: Callable[[str], Path]) -> tuple[dict[str, str], MacroTable]:
    """The conditions of Fibratus's rules by file, and its macros."""
    conditions, expressions, lists = {}, {}, {}
    with zipfile.ZipFile(data("rules/fibratus-rules.zip")) as archive:
        for name in archive.namelist():
            if not name.endswith(".yml"):
                continue
            content = yaml.safe_load(archive.read(name))
            if "/macros/" not in name:
                conditions[name] = content["condition"]
                continue
            for macro in content:
                if "expr" in macro:
                    expressions[macro["macro"]] = macro["expr"]
                else:
                    lists[macro["macro"]] = [str(item) for item in macro["list"]]
    assert len(conditions) > 100
    assert len(expressions) > 50
    assert len(lists) > 10
    return conditions, MacroTable(expressions, lists)


def steps(tree: Expr | Sequence) -> list[tuple[Expr, list[str]]]:
    """The expressions of a rule, each with the names of the steps before it."""
    if not isinstance(tree, Sequence):
        return [(tree, [])]
    names = [step.alias for step in tree.steps]
    return [(step.expr, names[:i]) for i, step in enumerate(tree.steps)]


def checked(rules: tuple[dict[str, str], MacroTable]) -> list[Checked]:
    """Every expression of every rule."""
    found = []
    for text in rules[0].values():
        for expr, before in steps(parse(text, rules[1], unopened=True)):
            found.append(check(expr, text, 3, before))
    return found


def test_rules_parse(rules: tuple[dict[str, str], MacroTable]) -> None:
    """All conditions and steps of Fibratus's rules parse, and from their own text again."""
    for text in rules[0].values():
        tree = parse(text, rules[1], unopened=True)
        assert parse(text_of(tree)) == tree


def test_rules_make_sense(rules: tuple[dict[str, str], MacroTable]) -> None:
    """All of them name fields and functions that there are, and compare what can be compared."""
    assert len(checked(rules)) > 190
    with pytest.raises(FilterError, match="nothing is called"):
        check(parse("pid = $e1.ps.pid"), "pid = $e1.ps.pid")  # type: ignore[arg-type]
    broken = {name: text.replace("ps.name", "ps.nam") for name, text in rules[0].items()}
    with pytest.raises(FilterError, match=r"ps\.nam"):
        checked((broken, rules[1]))


def test_rules_run(rules: tuple[dict[str, str], MacroTable]) -> None:
    """Those that ask for one event only can be asked of events."""
    alone = 0
    for text in rules[0].values():
        if isinstance(parse(text, rules[1], unopened=True), Sequence):
            continue
        chosen = Filter(check(parse(text, rules[1], unopened=True), text, 3), text, rules[1])  # type: ignore[arg-type]
        assert not len(chosen.rows(made(ROWS)))
        alone += 1
    assert alone > 40


def test_fields_without_source(
    rules: tuple[dict[str, str], MacroTable], read_text: Callable[[str], str]
) -> None:
    """The fields that rules name and no capture has yet are in the table of docs/fields.md."""
    text = read_text("docs/fields.md")
    missing = {
        resolved.field.name
        for one in checked(rules)
        for resolved in one.fields.values()
        if not resolved.field.sources
    }
    assert missing
    assert all(f"| `{name}` |" in text for name in missing)
    listed = text.partition("rules name these:")[2].partition("\n\n")[0]
    assert {name.strip(" `.\n") for name in listed.split(",")} == missing
