"""Records of Fibratus captures in every dialect: what is written is what is read."""

from __future__ import annotations

import json
import struct
from typing import Any

import fibratus_support as fs
import pytest
from fibratus_support import FORMS, OLD, Form, record
from hypothesis import given
from hypothesis import strategies as st

from kcap.model import catalogue, naming
from kcap.model.classes import TypeClass
from kcap.readers.fibratus_records import Decoder, Dialect, candidates, choose
from kcap.readers.fibratus_state import PIECE_BYTES, StateReader
from kcap.readers.fibratus_values import DIALECTS, BadRecordError, Clock, order, sid_text

SYSTEM = bytes.fromhex("010100000000000512000000")
TELLING: dict[str, list[fs.Parameter]] = {
    "1": [("a", "hex64", 1), ("b", "enum", 2), ("c", "time", "2022-08-15T21:35:37Z")],
    "2.0": [("a", "hex64", 1), ("b", "enum", 2), ("c", "address", 3), ("d", "status", 4)],
    "2.2": [("a", "address", 1), ("b", "enum", 2), ("c", "flags64", 3), ("d", "path", "C:")],
}
"""Parameters that only one dialect reads to the end, and that a real record has."""


def columns(row: dict[str, Any]) -> dict[str, Any]:
    """A row's arguments by the source's own names."""
    return {
        naming.source_name(naming.parts(name)[0]): value
        for name, value in row.items()
        if name.startswith("arg_")
    }


def only(form: Form, *records: bytes) -> list[dict[str, Any]]:
    return fs.rows(fs.read(fs.plain([record(TELLING[form.types], form), *records], form)))[1:]


# Values


@pytest.mark.parametrize("form", FORMS)
def test_values_of_every_type(form: Form) -> None:
    """Each type of each dialect, in both byte orders, comes back as what it means."""
    old = form.types == "1"
    said: list[tuple[str, Any, Any]] = [
        ("unicode", "Grüße", "Grüße"),
        ("ansi", "", ""),
        ("i8", -8, -8),
        ("u8", 200, 200),
        ("i16", -300, -300),
        ("u16", 65535, 65535),
        ("i32", -1, -1),
        ("u32", 1 << 31, 1 << 31),
        ("i64", -(1 << 63), -(1 << 63)),
        ("u64", (1 << 64) - 1, (1 << 64) - 1),
        ("float", 0.1, 0.1),
        ("double", 0.5, 0.5),
        ("bool", 1, True),
        ("binary" if not old else "port", b"\0\xff" if not old else 443, None),
        ("pid", 4, 4),
        ("tid", 8, 8),
        ("port", 53, 53),
        ("ipv4", bytes([10, 0, 0, 1]), "10.0.0.1"),
        ("ipv6", bytes(15) + b"\1", "::1"),
        ("time", "2022-08-15T21:35:37.7Z", 1_660_599_337_700_000_000),
        ("slice", ["a", "", "c"], ["a", "", "c"]),
        ("slice", [1, 1 << 63], [1, 1 << 63]),
        ("enum", 7, 7),
    ]
    if old:
        said += [("sid", "NT AUTHORITY\\SYSTEM", "NT AUTHORITY\\SYSTEM")]
    else:
        said += [
            ("sid", SYSTEM, "S-1-5-18"),
            ("wbemsid", bytes(16) + SYSTEM, "S-1-5-18"),
            ("status", 0xC0000022, 0xC0000022),
            ("flags", 0x1000, 0x1000),
            ("flags64", 1 << 40, 1 << 40),
            ("address", 1 << 63, 1 << 63),
            *((kind, "C:\\x", "C:\\x") for kind in ("path", "dospath", "key", "handletype")),
        ]
    names = [f"p{i:02}" for i in range(len(said))]
    found = [(name, kind, value) for name, (kind, value, _) in zip(names, said, strict=True)]

    (row,) = only(form, record(found, form))

    want = [(v if meant is None else meant) for _, v, meant in said]
    assert [columns(row)[name] for name in names] == want
    assert row["shape"] == ",".join(f"{n}:{k}" for n, k, _ in found)


@given(st.sampled_from(FORMS), st.data())
def test_any_parameters_come_back(form: Form, data: st.DataObject) -> None:
    """Names and values of any record, whatever is in them."""
    kinds = {
        "unicode": st.text(max_size=20),
        "u64": st.integers(0, (1 << 64) - 1),
        "i32": st.integers(-(1 << 31), (1 << 31) - 1),
        "slice": st.lists(st.text(max_size=5), max_size=4),
        "float": st.floats(allow_nan=False),
        "port": st.integers(0, 65535),
    }
    names = data.draw(st.lists(st.text(max_size=6), max_size=6, unique=True))
    found = []
    for name in names:
        kind = data.draw(st.sampled_from(sorted(kinds)))
        found.append((name, kind, data.draw(kinds[kind])))

    (row,) = only(form, record(found, form, seq=data.draw(st.integers(0, (1 << 64) - 1))))

    for name, _, value in found:
        base = naming.argument(name)
        (stored,) = [v for n, v in row.items() if naming.parts(n)[0] == base]
        assert stored == value


def test_parameters_that_come_twice_are_both_kept() -> None:
    """The writer's hash table can't do it; a forged record can."""
    (row,) = only(OLD, record([("x", "u8", 1), ("y", "u8", 2), ("x", "u8", 3)]))

    assert [row[n] for n in ("arg_x__i64", "arg_y__i64", "arg_x__i64__2")] == [1, 2, 3]


def test_text_that_is_not_utf8_is_kept() -> None:
    """It is escaped, the exact bytes stand beside it, of known and of unknown parameters."""
    (row,) = only(OLD, record([("file_name", "unicode", b"C:\\\xff"), ("odd", "ansi", b"\xfe")]))

    assert row["arg_file_name"] == "C:\\\\xff"
    assert row["arg_file_name__raw"] == b"C:\\\xff"
    assert row["arg_odd__str"] == "\\xfe"
    assert row["arg_odd__str__raw"] == b"\xfe"


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        (SYSTEM, "S-1-5-18"),
        (b"\1\0" + bytes(5) + b"\5", "S-1-5"),
        (b"\1\0\xff" + bytes(5), "S-1-0xff0000000000"),
        (b"", None),
        (SYSTEM[:-1], None),
        (SYSTEM + b"\0", None),
        (b"\2" + SYSTEM[1:], None),
        (b"\1\x10" + bytes(70), None),
    ],
)
def test_security_identifiers(raw: bytes, want: str | None) -> None:
    """Only what is exactly one is spelled as one."""
    assert sid_text(raw) == want


def test_an_identifier_that_is_none_is_told_from_one() -> None:
    """Bytes that are no SID are not made up to be one, and nothing of them is lost."""
    (row,) = only(FORMS[5], record([("sid", "wbemsid", b"junk")], FORMS[5]))

    assert row["arg_sid"] == "0x6a756e6b"


# Times


@pytest.mark.parametrize(
    ("text", "ns", "raw"),
    [
        (b"2022-08-15T21:56:28.3433744Z", 1_660_600_588_343_374_400, False),
        (b"2022-08-15T21:56:28Z", 1_660_600_588_000_000_000, False),
        (b"2022-08-15T23:56:28.5+02:00", 1_660_600_588_500_000_000, True),
        (b"2022-08-15T21:56:28.50Z", 1_660_600_588_500_000_000, True),
        (b"2022-08-15T21:56:28.0Z", 1_660_600_588_000_000_000, True),
        (b"0001-01-01T00:00:00Z", None, True),
        (b"2922-08-15T21:56:28Z", None, True),
        (b"2022-08-15T21:56:28.1234567891Z", 1_660_600_588_123_456_789, True),
        (b"yesterday", None, True),
        (b"\xff", None, True),
        (b"", None, True),
    ],
)
def test_times(text: bytes, ns: int | None, raw: bool) -> None:
    """Exact ns; what they don't give back stays as text, also right after another time."""
    for before in (b"2022-08-15T21:56:28.1Z", b"2022-08-15T21:56:28.1+02:00", b"1999"):
        clock = Clock()
        clock.read(before)
        found, kept = clock.read(text)
        assert found == ns
        assert (kept is not None) == raw


def test_a_time_that_is_none_is_null() -> None:
    """The row has no ts, and the text as it was."""
    (row,) = only(OLD, record(time="0001-01-01T00:00:00Z"))

    assert "ts" not in row
    assert row["ts_raw"] == "0001-01-01T00:00:00Z"


# Dialects


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("plain_first", [0, 1, 50])
def test_the_dialect_is_found(form: Form, plain_first: int) -> None:
    """No version tells it: the records do, also where the first ones fit several dialects."""
    records = [record([("file_name", "unicode", "C:")], form)] * plain_first
    records.append(record(TELLING[form.types], form))
    found = choose(candidates(order(form.sign), form.major, form.version), records)

    assert found.dialect == Dialect(form.width, form.types)


def test_the_dialect_survives_damage() -> None:
    """A few bad records at the start don't make another dialect of the rest."""
    form = FORMS[5]
    records = [b"x" * 60, record(TELLING["2.2"], form)[:-1]] + [record(TELLING["2.2"], form)] * 3

    found = choose(candidates(order("<"), 2, 2), records)

    assert found.dialect.types == "2.2"


@pytest.mark.parametrize("form", FORMS)
def test_other_dialects_do_not_fit(form: Form) -> None:
    """Negative control: what tells a dialect is refused by all others."""
    raw = record(TELLING[form.types], form)
    fit = []
    for width in (17, 18):
        for types in DIALECTS:
            decoder = Decoder(order(form.sign), Dialect(width, types))
            try:
                decoder.event(raw)
            except BadRecordError:
                continue
            fit.append((width, types))

    assert fit == [(form.width, form.types)]


def test_names_of_state_records() -> None:
    """A record without a name has that of its type in its release; a named one keeps its own."""
    rundown = {"provider": fs.PROCESS, "number": 3, "category": "unknown"}
    old = only(OLD, record(name="N/A", **rundown))[0]  # type: ignore[arg-type]
    new = only(FORMS[5], record(form=FORMS[5], name="", **rundown))[0]  # type: ignore[arg-type]
    named = only(OLD, record(name="EnumProcess", **rundown))[0]  # type: ignore[arg-type]
    unknown = only(OLD, record(name="N/A", number=99))[0]

    assert [(r["event"], r["kind"]) for r in (old, new, named, unknown)] == [
        ("EnumProcess", "state"),
        ("ProcessRundown", "state"),
        ("EnumProcess", "state"),
        ("N/A", "state"),
    ]
    assert (old["action"], old["category"], old["event_id"]) == ("process_rundown", "process", 3)


def test_an_unknown_event_is_carried() -> None:
    """Its name, number and category stay; it has no action."""
    (row,) = only(OLD, record(name="Teleport", category="mem", number=200))

    assert (row["event"], row["category"], row["event_id"]) == ("Teleport", "memory", 200)
    assert row["kind"] == "event"
    assert "action" not in row


def test_nobody_is_no_process() -> None:
    """The id that stands for none is null."""
    (row,) = only(OLD, record(pid=fs.NOBODY, tid=fs.NOBODY))

    assert "pid" not in row
    assert "tid" not in row


@pytest.mark.parametrize(
    ("name", "kind", "value", "action"),
    [
        ("operation", "enum", 2, "file_create"),
        ("operation", "enum", 1, "file_open"),
        ("operation", "enum", 0, "file_open"),
        ("operation", "ansi", "create", "file_create"),
        ("operation", "slice", ["create"], "file_open"),
        ("create_disposition", "enum", 2, "file_create"),
        ("disposition", "enum", 2, "file_open"),
    ],
)
def test_creating_is_told_from_opening(name: str, kind: str, value: Any, action: str) -> None:
    """A file that was made is file_create; what may have been there before is file_open."""
    (row,) = only(OLD, record([(name, kind, value)]))

    assert row["action"] == action


@pytest.mark.parametrize(
    ("form", "kind", "value", "category", "want"),
    [
        (OLD, "unicode", "key not found", "registry", "key not found"),
        (OLD, "u32", 0, "registry", "success"),
        (FORMS[5], "status", 0, "file", "success"),
        (FORMS[5], "status", 0xC0000022, "file", "access is denied."),
        (FORMS[5], "status", 0xC0000034, "file", "file not found"),
        (FORMS[5], "status", 0xC0000034, "registry", "key not found"),
        (FORMS[5], "status", 0xDEADBEEF, "file", "0xdeadbeef"),
    ],
)
def test_status_has_one_spelling(
    form: Form, kind: str, value: Any, category: str, want: str
) -> None:
    """Text of 1.x and numbers of later releases say the same."""
    name = "RegOpenKey" if category == "registry" else "ReadFile"
    (row,) = only(form, record([("status", kind, value)], form, name=name))

    assert row["status"] == want
    assert want in catalogue.decoder("ntstatus").values() or value not in (0, 0xC0000022)


def test_access_masks_are_numbers() -> None:
    """1.x stores them as hexadecimal text; other text stays text."""
    masks = ["0x1000", "0x0010", "0x", "all"]
    found = [only(OLD, record([("desired_access", "ansi", m)]))[0] for m in masks]

    assert [r.get("arg_desired_access") for r in found] == [4096, None, None, None]
    assert [r.get("arg_desired_access__str") for r in found] == [None, *masks[1:]]
    assert catalogue.home("arg_desired_access") is TypeClass.I64


# What comes beside the parameters


def states(row: dict[str, Any]) -> dict[str, list[Any]]:
    """The fields beside the parameters, all their pieces."""
    found: dict[str, list[Any]] = {}
    for name in sorted(row, key=lambda n: (len(n), n)):  # the tenth piece after the second
        if name.startswith("ext_"):
            base, suffixes = naming.parts(name)
            value = json.loads(row[name]) if suffixes[0] == "json" else row[name]
            found.setdefault(naming.source_name(base), []).append(value)
    return found


@pytest.mark.parametrize("form", [OLD, FORMS[6]])
@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_process_states(form: Form, version: int) -> None:
    """Every version of the process state, with nested handles, in both byte orders."""
    handles = [
        fs.handle(form, pid=100, number=4, address=0, name=""),
        fs.handle(form, tag=1, details=form.pack("IIQ", 1, 2, 3)),
        fs.handle(form, tag=2, details=form.pack("iB", -1, 1)),
        fs.handle(form, tag=3, details=b"\1"),
        fs.handle(form, tag=4),
    ]
    raw = fs.state(form, version, handles=handles, variables=[("B", "2"), ("A", "1")])
    (row,) = only(form, record(form=form, process=raw, metadata=[("k", "v")]))
    found = states(row)

    assert found["meta"] == [{"k": "v"}]
    assert found["ps.pid"] == [100]
    assert found["ps.args"] == [["-a", "b"]]
    assert found["ps.envs"] == [{"A": "1", "B": "2"}]
    assert found["ps.sessionid"] == [1]
    near, *others = found["ps.handles"][0]
    assert near == {"handle": 4, "type": "File"}
    assert [h.get("details") for h in others] == [
        {"flags": 1, "seqno": 2, "context": 3},
        {"count": -1, "abandoned": True},
        {"directory": True},
        None,
    ]
    assert ("ps.uuid" in found) == (version >= 2)
    assert ("ps.username" in found) == (version >= 3)
    assert found.get("ps.is_protected") == ([True] if version >= 4 else None)


def executable(form: Form, version: int, symbols: int = 2) -> bytes:
    """The description of an executable."""
    raw = form.pack("HI", 1, symbols)
    for text in ("0x140000000", "0x1000", "2021-01-01T00:00:00Z"):
        raw += form.text(text)
    raw += form.pack("HId", 1, 512, 6.5) + form.text(".text") + form.text("00ff")
    raw += form.texts([f"symbol{i}" for i in range(symbols)])
    raw += form.texts(["kernel32.dll"])
    raw += form.pairs([("CompanyName", "Us")])
    if version >= 2:
        certificate = b"".join(map(form.text, ("before", "after", "01", "subject", "issuer")))
        raw += b"\1\0" + form.pack("I", len(certificate)) + certificate
        raw += b"\0\1\0\1" + form.text("hash") + form.texts(["odd"])
    return raw


@pytest.mark.parametrize("form", [OLD, FORMS[6]])
@pytest.mark.parametrize("version", [1, 2])
def test_executables(form: Form, version: int) -> None:
    """The PE description in both versions and byte orders, everything in it."""
    raw = fs.state(form, 4, pe=executable(form, version), pe_version=version)
    found = states(only(form, record(form=form, process=raw))[0])

    assert found["pe.nsections"] == [1]
    assert found["pe.address.entrypoint"] == ["0x1000"]
    assert found["pe.sections"] == [[{"name": ".text", "size": 512, "entropy": 6.5, "md5": "00ff"}]]
    assert found["pe.symbols"] == [["symbol0", "symbol1"]]
    assert found["pe.imports"] == [["kernel32.dll"]]
    assert found["pe.resources"] == [{"CompanyName": "Us"}]
    if version == 2:
        assert found["pe.is_signed"] == [True]
        assert found["pe.is_trusted"] == [False]
        assert found["pe.cert.subject"] == ["subject"]
        assert (found["pe.is_dll"], found["pe.is_driver"]) == ([True], [False])
        assert found["pe.anomalies"] == [["odd"]]
    assert found["ps.is_wow64"] == [True]  # what follows the PE is found


def test_long_lists_are_not_cut() -> None:
    """More than a value can hold comes in pieces, none of them too long."""
    handles = [fs.handle(pid=100, number=i, name=f"C:\\{i:0200}") for i in range(1000)]
    names = [(f"V{i}", "x" * 300) for i in range(500)]
    raw = fs.state(handles=handles, variables=names, pe=executable(OLD, 1, 9000))
    batches = fs.read(fs.plain([record(TELLING["1"]), record(process=raw)]))
    row = fs.rows(batches)[1]
    found = states(row)

    assert fs.losses(batches) == []
    assert [h["handle"] for piece in found["ps.handles"] for h in piece] == list(range(1000))
    assert {k: v for piece in found["ps.envs"] for k, v in piece.items()} == dict(names)
    assert sum(map(len, found["pe.symbols"])) == 9000
    longest = max(len(v) for n, v in row.items() if n.startswith("ext_ps") and isinstance(v, str))
    assert PIECE_BYTES / 2 < longest <= PIECE_BYTES + 64


@given(st.binary(max_size=200), st.integers(0, 5))
def test_states_that_are_none(raw: bytes, version: int) -> None:
    """Any bytes where a handle, a process or an executable belongs."""
    reader = StateReader(order("<"))
    for read in (
        lambda: reader.process(raw, version),
        lambda: reader.handle(raw),
        lambda: reader.executable(raw, version),
    ):
        try:
            read()
        except (BadRecordError, struct.error, IndexError):
            continue


@pytest.mark.parametrize("sign", ["<", ">"])
@given(data=st.data())
def test_records_that_are_none(sign: str, data: st.DataObject) -> None:
    """Records with accidents: a decoder gives an event or says what is wrong."""
    form = FORMS[1 if sign == ">" else 0]
    process = fs.state(form, 1, handles=[fs.handle(form)], pe=executable(form, 1))
    raw = bytearray(record(TELLING["1"], form, process=process, metadata=[("a", "b")]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    for types in DIALECTS:
        for width in (17, 18):
            try:
                event = Decoder(order(sign), Dialect(width, types)).event(cut)
            except BadRecordError:
                continue
            assert len(event.parameters) == 2 * len(event.values)
