"""The catalogue's tables are well formed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from kcap.model import catalogue, decode, naming
from kcap.model.classes import BY_CODE, TypeClass

TABLES = {
    "aliases": ["family", "path", "column"],
    "arguments": ["argument", "class", "decoder", "meaning"],
    "columns": ["column", "class", "meaning"],
    "decoded": ["family", "event", "argument", "decoder"],
    "decoders": ["table", "number", "text"],
    "events": ["family", "event", "action", "category"],
    "taxonomy": ["action", "category"],
}
KEY_FIELDS = {"aliases": 2, "decoded": 3, "decoders": 2, "events": 2}
SORTED = ["aliases", "arguments", "decoded", "events"]


@pytest.fixture
def rows(read_text: Callable[[str], str]) -> Callable[[str], list[list[str]]]:
    """Read a table's rows as they stand in the file, heading and comments left out."""

    def read(table: str) -> list[list[str]]:
        lines = read_text(f"kcap/model/data/{table}.tsv").splitlines()
        return [line.split("\t") for line in lines[1:] if line and not line.startswith("#")]

    return read


def problems(table: str, rows: list[list[str]]) -> list[str]:
    """What is wrong with the form of a table."""
    width = len(TABLES[table])
    found = [f"{r}: {len(r)} fields, not {width}" for r in rows if len(r) != width]
    keys = [tuple(r[: KEY_FIELDS.get(table, 1)]) for r in rows]
    found += [f"{key}: twice" for key, count in Counter(keys).items() if count > 1]
    found += [f"{r}: blanks around a field" for r in rows if any(f != f.strip() for f in r)]
    if table in SORTED and keys != sorted(keys):
        place = next(b for a, b in pairwise(keys) if a > b)
        found.append(f"{place}: not in order")
    return found


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_well_formed(
    table: str, rows: Callable[[str], list[list[str]]], read_text: Callable[[str], str]
) -> None:
    """Every row has the heading's fields, a key of its own, and stands in order."""
    heading = read_text(f"kcap/model/data/{table}.tsv").splitlines()[0].split("\t")

    assert heading == TABLES[table]
    assert problems(table, rows(table)) == []


def test_a_bad_table_is_noticed() -> None:
    """Negative control: a short row, a double key, a stray blank and a wrong order are seen."""
    good = ["a", "b", "c", "d"]
    assert problems("events", [good]) == []
    assert problems("events", [good[:3]])
    assert problems("events", [good, good])
    assert problems("events", [["a ", "b", "c", "d"]])
    assert problems("events", [["b", "b", "c", "d"], good])


def test_classes_are_known(rows: Callable[[str], list[list[str]]]) -> None:
    """Every column and argument is of a class there is."""
    known = {cls.value for cls in TypeClass}

    assert {r[1] for r in rows("columns") + rows("arguments")} <= known


def test_class_codes_are_frozen() -> None:
    """The numbers of the classes are part of the format and never change."""
    assert [(cls.value, code) for code, cls in sorted(BY_CODE.items())] == [
        ("i64", 1),
        ("u64", 2),
        ("f64", 3),
        ("bool", 4),
        ("str", 5),
        ("bin", 6),
        ("json", 7),
        ("list", 16),
        ("list_i64", 17),
        ("list_u64", 18),
        ("list_f64", 19),
        ("list_bool", 20),
    ]
    assert len(BY_CODE) == len(TypeClass)


def test_every_column_is_explained() -> None:
    """A column or argument without a meaning helps nobody."""
    assert [c.name for c in catalogue.envelope().values() if not c.meaning] == []
    assert [a.name for a in catalogue.arguments().values() if not a.meaning] == []


def test_columns_have_the_class_their_name_says() -> None:
    """The class of a known column, or of an argument's column, follows from its name."""
    for name, info in catalogue.envelope().items():
        assert catalogue.class_of(name) is info.cls
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
        assert not name.startswith(("arg_", "ext_"))
    for name, info in catalogue.arguments().items():
        assert catalogue.class_of(naming.argument(name)) is info.cls


def test_an_unknown_name_has_no_home() -> None:
    """What the catalogue does not know has a class only by its suffix."""
    assert catalogue.class_of("arg_never_heard_of") is None
    assert catalogue.class_of("arg_never_heard_of__u64") is TypeClass.U64
    assert catalogue.class_of("pid__str") is TypeClass.STR


def test_actions_are_in_the_taxonomy(rows: Callable[[str], list[list[str]]]) -> None:
    """An event's action is one of kcap's, and its category is the action's."""
    actions = catalogue.actions()
    wrong = [r for r in rows("events") if r[2] and actions.get(r[2]) != r[3]]

    assert wrong == []


def test_aliases_lead_to_columns(rows: Callable[[str], list[list[str]]]) -> None:
    """A foreign path maps to a column of the envelope."""
    assert {r[2] for r in rows("aliases")} <= set(catalogue.envelope())


def test_decoders_are_whole(rows: Callable[[str], list[list[str]]]) -> None:
    """Decoder tables have integers and texts, and every decoder an argument names exists."""
    for _, number, text in rows("decoders"):
        assert -(1 << 63) <= int(number, 0) < 1 << 64
        assert text
    named = {a.decoder for a in catalogue.arguments().values() if a.decoder}
    named |= {r[3] for r in rows("decoded")}
    assert named <= {r[0] for r in rows("decoders")} | {decode.HEX}
    assert all(decode.known(table) for table in named)
    assert not decode.known("nothing")


def test_an_event_says_what_its_numbers_mean() -> None:
    """An argument is decoded as its event has it, else as its family, else as all have it."""
    assert catalogue.decoder_of("scap", "access", "mode") == "access_flags"
    assert catalogue.decoder_of("scap", "open", "mode") == "file_mode_flags"
    assert catalogue.decoder_of("scap", "mmap", "prot") == "scap_prot"
    assert catalogue.decoder_of("tracee", "mmap", "prot") == "mmap_prot"
    assert catalogue.decoder_of("scap", "kill", "sig") == "signal"
    assert catalogue.decoder_of("scap", "kill", "never_heard_of") == ""


def test_tables_may_be_asked_for_nothing() -> None:
    """A family or decoder that is not known is empty, no error."""
    assert catalogue.events("nobody") == {}
    assert catalogue.aliases("nobody") == {}
    assert catalogue.decoder("nothing") == {}
