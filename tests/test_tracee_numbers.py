"""Tracee's numbers are numbers, whether parse-arguments made text of them or not."""

from __future__ import annotations

import csv
import functools
import json
import operator
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tracee_support import DNS, DOCS, DUMP, OPENED, V1BETA1, lines, read, rebuilt, same, unpacked

from kcap.model import catalogue, decode
from kcap.model.batch import Batch, concat, constant
from kcap.model.builder import RecordBuilder
from kcap.model.classes import TypeClass
from kcap.readers.tracee_records import Records
from kcap.writers.tracee_json import objects

VERSIONS = ("v0.8.3", "v0.15.0", "v0.24.1", "main")
DECODED = sorted(
    (event if event != "*" else "openat", argument, table)
    for (family, event, argument), table in catalogue._decoded().items()
    if family == "tracee" and table != decode.HEX
)


def event(name: str, argument: str, kind: str, value: object) -> dict[str, Any]:
    """An event of one argument."""
    return OPENED | {
        "eventName": name,
        "args": [{"name": argument, "type": kind, "value": value}],
    }


def columns(batch: Batch) -> dict[str, list[Any]]:
    """The values of a batch's arguments by column and row."""
    rows: list[dict[str, Any]] = batch.to_pylist()
    names = sorted(name for name in batch.columns if name.startswith("arg"))
    return {name: [row.get(name) for row in rows] for name in names}


def spellings(table: str) -> list[str]:
    """The ways in which Tracee wrote the numbers of a table."""
    base = table.partition(decode.SPELLING)[0]
    own = [f"{base}@{version}" for version in ("tracee", "tracee_old")]
    flags = base.endswith("_flags") and decode.known(own[0])
    return list(filter(decode.known, own if flags else [base, *own]))


@pytest.mark.parametrize(("name", "argument", "table"), DECODED)
def test_text_and_number_meet_in_one_column(name: str, argument: str, table: str) -> None:
    """Events with and without parse-arguments: the same values in the same column, both back."""
    draw = random.Random(f"{name} {argument}")
    plain, parsed, values = [], [], []
    for spelling in spellings(table):
        named = list(catalogue.decoder(spelling))
        mixed = [draw.sample(named, min(len(named), draw.randint(1, 5))) for _ in range(30)]
        joined = [functools.reduce(operator.or_, (max(n, 0) for n in some)) for some in mixed]
        for value in {*named, *joined}:
            text = decode.text_of(spelling, value)
            if decode.number_of(spelling, text) == value:  # else the spelling leaves bits out
                values.append(value)
                plain.append(event(name, argument, "int", value))
                parsed.append(event(name, argument, "string", text))
    assert values
    (one,), (other,) = read(lines(plain)), read(lines(parsed))

    assert columns(one) == columns(other)
    assert columns(one)[f"arg_{argument}"] == values
    assert same(list(objects(one)), plain)
    assert same(list(objects(other)), parsed)


@pytest.mark.parametrize(
    ("name", "argument", "kind", "text", "number"),
    [
        ("openat", "flags", "string", "O_RDONLY|O_LARGEFILE", 0x8000),
        ("security_file_open", "flags", "int", "O_WRONLY|O_CREAT|O_TRUNC|O_LARGEFILE", 0x8241),
        ("open", "flags", "string", "O_RDWR|O_DSYNC|O_SYNC", 0x101002),
        ("open", "flags", "string", "O_RDWR|O_SYNC|O_CLOEXEC|O_DIRECT", 0x185002),
        ("clone", "stack", "void*", "0x0", 0),
        ("clone", "child_tid", "int*", "0x7fd7ce0d3a10", 0x7FD7CE0D3A10),
        ("futex", "timeout", "trace.Pointer", "0xffff", 0xFFFF),
        ("clone", "flags", "string", "17", 17),
        ("mmap", "prot", "string", "PROT_READ|PROT_EXEC", 5),
        ("mem_prot_alert", "alert", "string", "Protection changed from W+E to E!", 4),
        ("mem_prot_alert", "alert", "string", "Protection changed from W to E!", 4),
        ("socket", "domain", "string", "AF_INET6", 10),
        ("socket", "type", "string", "SOCK_STREAM|SOCK_CLOEXEC", 0x80001),
        ("ptrace", "request", "string", "PTRACE_POKETEXT", 4),
        ("prctl", "option", "string", "PR_SET_NAME", 15),
        ("access", "mode", "string", "R_OK|W_OK", 6),
        ("chmod", "mode", "string", "S_IRWXU|S_IRGRP", 0o740),
        ("sched_process_exec", "stdin_type", "string", "S_IFCHR", 0o20000),
        ("cap_capable", "cap", "string", "CAP_SYS_ADMIN", 21),
        ("bpf", "cmd", "string", "BPF_PROG_LOAD", 5),
        ("bpf", "cmd", "string", "99", 99),
        ("unlinkat", "dirfd", "string", "AT_FDCWD", -100),
        ("getsockopt", "optname", "string", "SO_GET_FILTER", 26),
        ("security_kernel_read_file", "type", "string", "kernel-module", 2),
        ("io_uring_create", "flags", "string", "IORING_SETUP_CLAMP|UNKNOWN_FLAG_0X10000", 0x10010),
    ],
)
def test_texts_of_tracee_s_versions(
    name: str, argument: str, kind: str, text: str, number: int
) -> None:
    """What releases old and new print, and the number that it is."""
    parsed = event(name, argument, kind, text)
    (batch,) = read(lines([parsed]))
    found = columns(batch)
    found.pop("args_count")

    assert [v for values in found.values() for v in values] == [number]
    assert same(next(objects(batch)), parsed)


@pytest.mark.parametrize(
    ("name", "argument", "text"),
    [
        ("openat", "flags", "SOMEFLAGS"),
        ("openat", "flags", "o_rdwr"),
        ("openat", "flags", ""),
        ("openat", "flags", "O_LARGEFILE|O_RDONLY"),
        ("clone", "stack", "0x00"),
        ("clone", "stack", "0xABC"),
        ("read", "fd", "3=/etc/passwd"),
        ("security_file_open", "syscall", "execve"),
        ("never_heard_of", "flags", "O_RDONLY"),
        ("openat", "flags", "O_CREAT|" * 1000),
    ],
)
def test_text_that_does_not_lead_back_stays_text(name: str, argument: str, text: str) -> None:
    """Negative control: only what comes out again as it was becomes a number."""
    found = event(name, argument, "string", text)
    (batch,) = read(lines([found]))

    assert batch.columns[f"arg_{argument}__str"].values.to_pylist() == [text]
    assert same(next(objects(batch)), found)


def test_text_with_its_own_home_is_never_a_number() -> None:
    """A path that looks like an address is a path."""
    found = event("openat", "pathname", "const char*", "0x7f00")
    (batch,) = read(lines([found]))

    assert batch.columns["arg_pathname"].values.to_pylist() == ["0x7f00"]


def test_the_shape_is_what_says_how_a_number_was_spelled() -> None:
    """Negative control: with the shape of a plain number the text does not come back."""
    parsed = event("openat", "flags", "string", "O_RDWR")
    (batch,) = read(lines([parsed]))
    (other,) = read(lines([event("openat", "flags", "string", 2)]))

    assert "open_flags" in batch.columns["shape"].values.to_pylist()[0]
    mixed = next(objects(batch.adding({"shape": other.columns["shape"]})))
    assert mixed["args"][0]["value"] == 2
    assert not same(mixed, parsed)


def test_a_shape_that_names_no_decoder_gives_digits() -> None:
    """A shape is data from a file: one with a decoder that nobody knows is no accident."""
    (batch,) = read(lines([event("openat", "flags", "string", "O_RDWR")]))
    (spelled,) = batch.columns["shape"].values.to_pylist()
    odd = constant(TypeClass.STR, spelled.replace("open_flags@tracee", "nobody_knows"), 1)

    assert odd.values.to_pylist() != [spelled]
    assert next(objects(batch.adding({"shape": odd})))["args"][0]["value"] == "2"


def test_ever_other_spellings_are_counted_as_what_is_kept() -> None:
    """Events of one layout whose texts are numbers here and words there: memory is bounded."""
    records = Records(RecordBuilder())
    wide = [{"name": "flags", "type": "string", "value": ""} for _ in range(10)]
    for number in range(200):
        for place, arg in enumerate(wide):
            arg["value"] = "O_RDWR" if number >> place & 1 else "words"
        before = len(records)
        records.add(OPENED | {"args": [dict(arg) for arg in wide]})
        assert len(records) - before >= len(wide)
    records.add(OPENED | {"args": [dict(arg) for arg in wide]})
    assert len(records) - before < 2 * (len(OPENED) + len(wide))


def test_new_messages_spell_numbers_too() -> None:
    """The entry of a v1beta1 event whose value became text is read the same way."""
    data = [{"name": "flags", "str": "O_RDONLY|O_CLOEXEC"}, {"name": "flags", "int32": 0x80000}]
    events = [V1BETA1 | {"name": "openat", "data": [entry]} for entry in data]
    (batch,) = read(lines(events))

    assert columns(batch)["arg_flags"] == [0x80000, 0x80000]
    assert same(list(objects(batch)), events)


def test_the_dump_with_its_flags_as_text(data: Callable[[str], Path]) -> None:
    """10,534 real events, as parse-arguments would have printed them: the same columns."""
    plain = [json.loads(line) for line in unpacked(data(DUMP)).splitlines()]
    parsed = json.loads(json.dumps(plain))
    changed = 0
    for found in parsed:
        for arg in found["args"] or ():
            table = catalogue.decoder_of("tracee", found["eventName"], arg["name"])
            newest = f"{table.partition('@')[0]}@tracee"
            spelling = newest if decode.known(newest) else table
            if type(arg["value"]) is int and table:
                text = decode.text_of(spelling, arg["value"])
                if decode.number_of(spelling, text) == arg["value"]:
                    arg["type"], arg["value"] = "string", text
                    changed += 1
    assert changed > 5000
    for one, other in zip(read(lines(plain)), read(lines(parsed)), strict=True):
        assert columns(one) == columns(other)
        assert one.columns.keys() == other.columns.keys()
        assert one.columns["shape"].values != other.columns["shape"].values
    assert all(map(same, rebuilt(lines(parsed)), parsed))


def test_the_documentation_s_events_have_no_flags_left_as_text(
    data: Callable[[str], Path],
) -> None:
    """All that stays text is what holds more than a number, or no number of this machine."""
    left = set()
    for batch in read(unpacked(data(DOCS))):
        names = (name.partition("__") for name in batch.columns if name.startswith("arg_"))
        left |= {base for base, _, rest in names if rest == "str"}

    assert left == {"arg_fd", "arg_syscall"}


C_TYPES = {
    "[]string": "const char*const*",
    "int32": "int",
    "string": "const char*",
    "uint16": "u16",
    "uint32": "unsigned int",
    "uint64": "unsigned long",
    "uint8": "u8",
}


def in_c(found: dict[str, Any]) -> dict[str, Any]:
    """An event with the type spellings of releases before v0.24."""
    args = [arg | {"type": C_TYPES.get(arg["type"], arg["type"])} for arg in found["args"]]
    return found | {"args": args}


def test_old_and_new_type_spellings_mean_one_thing(data: Callable[[str], Path]) -> None:
    """The same 24,010 events in Go's and in C's types: all columns but the shape are equal."""
    go = [json.loads(line) for line in unpacked(data(DNS)).splitlines()]
    assert {arg["type"] for found in go for arg in found["args"]} & C_TYPES.keys()

    one, other = concat(read(lines(go))), concat(read(lines(map(in_c, go))))
    unlike = {
        name for name in one.columns if one.columns[name].values != other.columns[name].values
    }

    assert one.rows == other.rows == len(go)
    assert one.columns.keys() == other.columns.keys()
    assert unlike == {"shape", "origin", "source"}  # the last two are hashes of the input


def definitions(data: Callable[[str], Path]) -> Iterator[tuple[str, str, str]]:
    """Event, argument and type of all four releases."""
    for version in VERSIONS:
        with data(f"tracee/events/events_{version}.tsv").open() as stream:
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
                for part in filter(None, (row["args(name:type)"] or "").split("; ")):
                    name, _, kind = part.partition(":")
                    yield row["event"], name, kind


def test_every_event_and_argument_of_four_releases_has_its_place(
    data: Callable[[str], Path],
) -> None:
    """The catalogue knows all 598 events, and every argument has a home class."""
    found = set(definitions(data))
    known = catalogue.events("tracee")

    assert {event for event, _, _ in found} <= known.keys()
    assert len(known) >= 589
    assert {name for _, name, _ in found} <= catalogue.arguments().keys()
    assert "no_such_argument" not in catalogue.arguments()


def test_numbers_of_the_releases_are_at_home_as_numbers(data: Callable[[str], Path]) -> None:
    """Integers in C's and in Go's spelling both live in the i64 column, text in the str column."""
    integers = {"int", "int32", "long", "int64", "u16", "uint16", "u32", "uint32", "u64", "uint64"}
    unlike = {"timeout", "invoked_from_kernel", "request", "times"}  # number or structure, by event
    for _, name, kind in definitions(data):
        cls = catalogue.arguments()[name].cls
        if kind in integers and name not in unlike:
            assert cls is TypeClass.I64, (name, kind)
        if kind in {"[]string", "const char*const*"}:
            assert cls is TypeClass.LIST, (name, kind)


def test_what_is_decoded_is_there(data: Callable[[str], Path]) -> None:
    """Every event and argument that has a decoder is one of the releases', but for a few."""
    defined = {(event, name) for event, name, _ in definitions(data)}
    newer = {"security_post_read_file", "fileless_execution", "io_uring_create", "io_issue_sqe"}
    older = {("bpf_attach", "perf_type")}
    rows = [key for key in catalogue._decoded() if key[0] == "tracee" and key[1] != "*"]

    assert {r[1:] for r in rows if r[1] not in newer} - defined == older
    assert not {r[1] for r in rows} & {"no_such_event"}


def test_the_peers_test_events_are_rebuilt_exactly(data: Callable[[str], Path]) -> None:
    """Events of Tracee's own signature tests, both dialects, come back as they were."""
    events: list[dict[str, Any]] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict) and (
            ("eventName" in value and "args" in value)
            or (type(value.get("name")) is str and "workload" in value)
        ):
            events.append(value)
        elif isinstance(value, (dict, list)):
            for inner in value.values() if isinstance(value, dict) else value:
                collect(inner)

    for path in sorted(data("tracee/sigtests").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            collect(json.loads(line))
    source = lines(events)

    assert len(events) > 200
    assert all(map(same, rebuilt(source), map(json.loads, source.splitlines())))
