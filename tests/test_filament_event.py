"""What a filament is given: the documented dictionary, of Windows and of Linux events."""

from __future__ import annotations

import ast
import ipaddress
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from derived_support import recording
from fibratus_support import OLD, PROCESS, Form, plain, read, record, state
from hypothesis import given, settings
from live_support import recording as live_recording
from support import RECORDS, batch_of

import kcap
from kcap.filament import describe, dicts, event
from kcap.model import catalogue, naming
from kcap.model.arrow import from_arrow
from kcap.model.batch import Batch, Column, concat, constant
from kcap.model.classes import TypeClass
from kcap.model.side import SourceInfo
from kcap.replay.resolved import Resolved
from kcap.state.kin import Kin

ALWAYS: dict[str, type] = {
    "seq": int, "pid": int, "tid": int, "cpu": int, "name": str, "category": str,
    "timestamp": str, "host": str, "description": str, "kparams": dict, "params": dict,
}  # fmt: skip
OF_A_PROCESS: dict[str, type] = {
    "ppid": int, "cwd": str, "exe": str, "comm": str, "cmdline": str, "sid": str,
}  # fmt: skip
OPENED = [
    ("file_name", "unicode", "C:\\WINDOWS\\system32\\config\\"),
    ("file_object", "hex64", 0xFFFFA88C7EA077D0),
    ("irp", "hex64", 0xFFFFA88C746B2A88),
    ("operation", "enum", 0),
    ("share_mask", "enum", 3),
    ("type", "ansi", "directory"),
    ("status", "unicode", "success"),
]


def made(*batches: Batch) -> list[dict[str, Any]]:
    """The events of one stream as a filament gets them."""
    pack = event.EventColumns().pack
    return [found for batch in batches for found in dicts.dicts(pack(batch))]


KNOWN = record(
    [
        ("pid", "pid", 100), ("ppid", "pid", 4), ("name", "ansi", "a.exe"),
        ("exe", "unicode", "C:\\a.exe"), ("comm", "unicode", "a.exe -a b"),
        ("sid", "wbemsid", "HOST\\ann"), ("session_id", "u32", 1),
    ],
    name="N/A", category="unknown", provider=PROCESS, number=3, process=state(),
)  # fmt: skip
"""Tells of the process of the events that follow."""


def windows(*records: bytes, form: Form = OLD) -> list[Batch]:
    """An import of a Windows capture, with what the state knows."""
    kin = Kin(event.STATE_COLUMNS)
    source = Resolved(_Given(read(plain(records, form))))
    return [kin.update(batch) for batch in source.batches()]


class _Given:
    """Batches as a source."""

    info: Any = None

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def batches(self) -> Any:
        return iter(self._batches)

    def close(self) -> None:
        pass


def typed(found: dict[str, Any], keys: dict[str, type]) -> dict[str, type]:
    """The types of some keys."""
    return {key: type(found[key]) for key in keys if key in found}


def documented() -> dict[str, type]:
    """The keys and types of the seed document's literal, which is no Python."""
    path = Path(__file__).resolve().parents[2] / "shared" / "seeds" / "001_a4253650b4ed94cd.txt"
    if not path.exists():
        pytest.skip("the document that shows the dictionary is not at hand")
    literal = re.search(r"^\{\n.*?^\}", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert literal is not None
    with pytest.raises(SyntaxError):
        ast.literal_eval(literal[0])
    pairs = re.findall(r"^ {2}'(\w+)': (['{\d])", literal[0], re.MULTILINE)
    return {key: {"'": str, "{": dict}.get(begin, int) for key, begin in pairs}


def test_the_documented_keys_are_there_on_windows() -> None:
    """Every key of the document's literal is in the dictionary of a Windows import, so typed."""
    batches = windows(KNOWN, record(OPENED))

    found = made(*batches)[1]

    assert typed(found, ALWAYS | OF_A_PROCESS) == ALWAYS | OF_A_PROCESS
    literal = documented()
    assert len(literal) == 15
    assert typed(found, literal) == literal


def test_a_windows_event_is_as_the_document_shows_it() -> None:
    """Flags, enumerations and addresses are texts, of the spelling of Fibratus 1.x."""
    found = made(*windows(KNOWN, record(OPENED)))[1]

    assert found["name"] == "CreateFile"
    assert found["exe"] == "a.exe"
    assert found["exe_path"] == "C:\\a.exe"
    assert found["comm"] == found["cmdline"] == "a.exe -a b"
    assert (found["cwd"], found["sid"], found["ppid"]) == ("C:\\work\\", "HOST\\ann", 4)
    assert found["timestamp"] == "2022-08-15 21:56:28.3433744"
    assert found["category"] == "file"
    assert found["host"] == "WIN"
    assert found["description"] == "Opens or creates a file"
    assert found["kparams"] == {
        "file_name": "C:\\WINDOWS\\system32\\config\\",
        "file_object": "ffffa88c7ea077d0",
        "irp": "ffffa88c746b2a88",
        "operation": "supersede",
        "share_mask": "rw-",
        "status": "success",
        "type": "directory",
    }
    assert list(found["params"]) == sorted(found["params"])


@pytest.mark.parametrize("form", [Form("2.0", 18, 2, major=2), Form("2.2", 18, 2, major=3)])
def test_later_releases_have_addresses_and_flags_as_text(form: Form) -> None:
    """What 2.x and 3.x store as numbers is text, as their own filaments have it."""
    more = [
        ("base_address", "address", 0x7FFD0000),
        ("create_disposition", "enum", 1),
        ("share_mask", "flags", 3),
        ("status", "status", 0xC0000034),
        ("io_size", "u32", 16),
    ]

    found = made(*windows(record(more, form), form=form))[0]

    assert found["params"] == {
        "base_address": "7ffd0000",
        "create_disposition": "OPEN",
        "io_size": 16,
        "share_mask": "READ|WRITE",
        "status": found["status"],
    }
    assert isinstance(found["status"], str)


def test_addresses_and_times_of_windows_are_objects() -> None:
    """An IP address and a time have the types that Fibratus gives them."""
    sent = [
        ("dip", "ipv4", bytes([10, 0, 0, 1])),
        ("sip", "ipv6", bytes(15) + b"\1"),
        ("dport", "port", 443),
        ("l4_proto", "enum", 1),
        ("start_time", "time", "2022-08-15T21:35:37.5Z"),
    ]

    found = made(*windows(record(sent, name="Send", category="net")))[0]

    assert found["params"] == {
        "dip": ipaddress.IPv4Address("10.0.0.1"),
        "dport": 443,
        "l4_proto": "TCP",
        "sip": ipaddress.IPv6Address("::1"),
        "start_time": datetime(2022, 8, 15, 21, 35, 37, 500_000, UTC),
    }
    assert found["category"] == "net"


def test_a_process_that_is_not_known_has_no_keys() -> None:
    """Of an event whose process nobody told of, the keys of the process are not there."""
    found = made(*windows(record(OPENED)))[0]

    assert typed(found, ALWAYS) == ALWAYS
    assert not found.keys() & OF_A_PROCESS.keys()


def test_the_documented_keys_are_there_on_linux(fixtures: Path) -> None:
    """Every key of the document's literal is in the dictionary of a Linux recording, so typed."""
    kin = Kin(event.STATE_COLUMNS)
    with kcap.open(fixtures / "first.kcap") as capture:
        batches = [kin.update(batch) for batch in capture.batches()]

    found = made(*batches)

    keys = {k: v for k, v in (ALWAYS | OF_A_PROCESS).items() if k != "cpu"}
    assert len(found) == sum(batch.rows for batch in batches) == 61
    for each in found:
        assert typed(each, keys) == keys
        assert each["cpu"] is None or isinstance(each["cpu"], int)
    literal = {k: v for k, v in documented().items() if k != "cpu"}
    assert all(typed(each, literal) == literal for each in found)
    execs = [each for each in found if each["name"] == "exec"]
    assert execs[0]["exe"] == "session.sh"
    assert execs[0]["cmdline"] == execs[0]["comm"] == "/bin/sh ./session.sh"


def test_linux_parameters_have_texts_for_numbers() -> None:
    """Flags have names, addresses hexadecimal digits, structures are structures of the event."""
    peer = {"sa_family": "AF_INET", "sin_addr": "10.0.0.1", "sin_port": "443"}
    calls = [
        ("openat", {"pathname": "/etc/shadow", "flags": 0o2000000, "$process_name": "cat"}),
        ("connect", {"sockfd": 3, "remote_addr": peer, "$retval": -111, "$category": "network"}),
        ("connect", {"sockfd": 4, "remote_addr": peer, "$retval": 0}),
        ("mmap", {"addr": 0x7FFD0000, "prot": 5, "argv": ["a", "b"], "$category": "memory"}),
    ]

    opened, first, second, mapped = made(recording(calls))

    assert opened["params"] == {"flags": "O_RDONLY|O_CLOEXEC", "pathname": "/etc/shadow"}
    assert (opened["exe"], opened["ppid"], opened["cmdline"]) == ("cat", None, "")
    assert first["params"] == {"remote_addr": peer, "sockfd": 3}
    assert (first["retval"], second["retval"]) == (-111, 0)
    assert (first["category"], mapped["category"]) == ("net", "mem")
    assert mapped["params"] == {
        "addr": "0x7ffd0000",
        "argv": ["a", "b"],
        "prot": "PROT_READ|PROT_EXEC",
    }
    first["params"]["remote_addr"]["sin_port"] = "1"
    assert second["params"]["remote_addr"] == peer


def test_a_source_that_was_told_earlier_counts() -> None:
    """What numbers mean depends on the source, which stands before the first batch only."""
    batch = recording([("fcntl", {"cmd": 1030}), ("fcntl", {"cmd": 1})])
    alone = made(batch.slice(0, 1), batch.slice(1, 2).with_before(()))

    assert [found["params"] for found in alone] == [{"cmd": "F_DUPFD_CLOEXEC"}, {"cmd": "F_GETFD"}]


def test_types_of_others_are_not_taken_for_those_of_fibratus() -> None:
    """Tracee calls some numbers pointers: they are spelled as on Linux."""
    table = {
        "event": ["x"],
        "shape": ["addr:pointer,p:hex64"],
        "arg_addr": [255],
        "arg_p__i64": [255],
    }
    sources = [SourceInfo("tracee"), SourceInfo("fibratus"), SourceInfo("arrow")]
    found = []
    for info in sources:
        batch = from_arrow(pa.table({**table, "source": [info.id]}), [info])
        found.append(made(batch)[0]["params"])

    assert found[0] == {"addr": "0xff", "p": "0xff"}
    assert found[1] == found[2] == {"addr": "ff", "p": "ff"}


def test_keys_that_every_event_has_are_none_where_nobody_says() -> None:
    """Without process, processor, time and host the keys are there all the same."""
    batch = from_arrow(pa.table({"event": ["x"], "ord": [7]}))

    (found,) = made(batch)

    assert found == {
        "seq": 7, "pid": None, "tid": None, "cpu": None, "name": "x", "category": "unknown",
        "timestamp": "", "host": "", "description": "", "ord": 7, "kparams": {}, "params": {},
    }  # fmt: skip


def test_times_are_texts_in_utc() -> None:
    """A timestamp has nine digits, without the zeros at its end; other times are the source's."""
    table = {
        "ts": [0, 1_377_274_513_432_300_000, 1_377_274_513_000_000_001, None, None],
        "ts_raw": [None, None, None, "yesterday", None],
    }

    found = [each["timestamp"] for each in made(from_arrow(pa.table(table)))]

    assert found == [
        "1970-01-01 00:00:00", "2013-08-23 16:15:13.4323", "2013-08-23 16:15:13.000000001",
        "yesterday", "",
    ]  # fmt: skip


def slowly(batch: Batch) -> list[tuple[Any, dict[str, Any]]]:
    """The times and parameters of a batch, row by row."""
    import json

    found = []
    for row in batch.to_pylist():
        parameters: dict[str, Any] = {}
        for name, value in row.items():
            base, suffixes = naming.parts(name)
            if base.partition("_")[0] != "arg" or {"raw", "size"} & {*suffixes}:
                continue
            column = batch.columns[name]
            again = [s for s in suffixes if s.isdecimal()]
            key = "__".join([naming.source_name(base), *again])
            parameters[key] = json.loads(value) if column.cls is TypeClass.JSON else value
            table = catalogue.decoder_of("", "", naming.source_name(base))
            if table and isinstance(value, int) and not isinstance(value, bool):
                from kcap.model import decode

                parameters[key] = decode.text_of(table, value)
        found.append((row.get("ts"), parameters))
    return found


@given(RECORDS)
def test_parameters_are_those_of_the_rows(records: list[tuple[int, dict[str, Any]]]) -> None:
    """Whatever columns a batch has, each event has its own values and no other."""
    batch = batch_of(records)

    found = [(each.get("ts"), each["params"]) for each in made(batch)]

    assert repr(found) == repr([(ts, dict(sorted(of.items()))) for ts, of in slowly(batch)])


@settings(max_examples=40)
@given(RECORDS, RECORDS)
def test_the_cut_into_batches_does_not_matter(
    first: list[tuple[int, dict[str, Any]]], second: list[tuple[int, dict[str, Any]]]
) -> None:
    """Two batches and both as one give the same dictionaries."""
    parts = [batch_of(first), batch_of(second)]

    assert repr(made(*parts)) == repr(made(concat(parts)))


def test_hundreds_of_sparse_columns_are_told_apart() -> None:
    """More columns than a machine word has bits: each event has those of its own row."""
    count = 300
    columns = {
        f"arg_a{n}__i64": Column(TypeClass.I64, pa.array([n]), pa.array([n], pa.int32()).to_numpy())
        for n in range(count)
    }
    batch = Batch(count, {"event": constant(TypeClass.STR, "x", count), **columns})

    assert [found["params"] for found in made(batch)] == [{f"a{n}": n} for n in range(count)]


def test_a_column_that_runs_short_is_no_silent_end() -> None:
    """Values that don't suffice are an error, not events that are missing."""
    import marshal

    packed = marshal.loads(event.columns(batch_of([(1, {"a": 1}), (2, {"a": 2})])))
    of_row, table, keys, names, data = packed
    assert len(list(dicts.dicts(marshal.dumps(packed)))) == 2
    broken = [
        (form, values[:8] if form == "numbers" else values, more) for form, values, more in data
    ]

    with pytest.raises(ValueError, match="shorter"):
        list(dicts.dicts(marshal.dumps((of_row, table, keys, names, broken))))


def test_the_workers_half_needs_the_standard_library_alone(root: Path) -> None:
    """A worker that makes dictionaries has loaded none of what is installed beside Python."""
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); import kcap.filament.dicts;"
        "print(sorted({'numpy', 'pyarrow', 'click', 'rich', 'yaml'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


def test_every_event_of_fibratus_and_every_action_has_a_description() -> None:
    """No event of Fibratus or of our recorders, and no action, is without a sentence."""
    for family in ("fibratus", "kcap-bpf", "proc"):
        lacking = [
            name
            for name, info in catalogue.events(family).items()
            if not describe.description(name, info.action or "") and not name.endswith("Internal")
        ]
        assert lacking == []
    assert [a for a in catalogue.actions() if not describe.description("", a)] == []
    assert describe.description("no such event", "") == ""


def test_categories_are_those_of_the_release_that_has_the_event() -> None:
    """Modules are images in 1.x, the network is net, and what has no category is unknown."""
    assert describe.fibratus_category("LoadImage", "module") == "image"
    assert describe.fibratus_category("LoadModule", "module") == "module"
    assert describe.fibratus_category("connect", "network") == "net"
    assert describe.fibratus_category("prctl", "") == "unknown"


def test_real_windows_events_have_the_documented_types(data: Callable[[str], Path]) -> None:
    """Events of a real capture have the documented keys, and params of the types that count."""
    kin = Kin(event.STATE_COLUMNS)
    batches = []
    with kcap.open(data("fibratus/v1.6.0-test.kcap")) as capture:
        for batch in capture.batches():
            batches.append(kin.update(batch))
            if sum(each.rows for each in batches) > 25_000:  # what was there takes 15,000
                break
    found = made(*batches)

    kinds = {key: {type(each[key]) for each in found if key in each} for key in ALWAYS}
    assert kinds == {
        **{key: {kind} for key, kind in ALWAYS.items()},
        **{key: {int, type(None)} for key in ("pid", "tid")},
    }
    process = [each for each in found if "exe" in each]
    assert len(process) > 8_000
    assert all(typed(each, OF_A_PROCESS).keys() == OF_A_PROCESS.keys() for each in process)
    values = {type(value) for each in found for value in each["params"].values()}
    assert values <= {int, str, list, ipaddress.IPv4Address, datetime}
    assert all(re.fullmatch("[0-9a-f]+", each["params"].get("file_object", "0")) for each in found)


@pytest.mark.root
def test_a_recording_of_this_host_has_the_documented_types(tmp_path: Path) -> None:
    """All that the kernel tells of a program has the documented keys, so typed."""
    path, made_path = tmp_path / "host.kcap", tmp_path / "made.txt"
    command = f"open({str(made_path)!r}, 'w').write('x');"
    words = (
        "--source",
        "bpf",
        "--events",
        "all",
        "--scope",
        "follow",
        "--scope",
        f"pid={os.getpid()}",
    )
    with live_recording(path, *words):
        subprocess.run([sys.executable, "-c", command], check=True)
    kin = Kin(event.STATE_COLUMNS)

    with kcap.open(path) as capture:
        found = made(*(kin.update(batch) for batch in capture.batches()))

    told = [each for each in found if each["pid"] is not None]
    assert len(told) > 100
    keys = ALWAYS | OF_A_PROCESS
    for each in told:
        assert typed(each, keys) == keys
        assert each["description"]
    opened = [each for each in told if each["params"].get("pathname") == str(made_path)]
    assert "O_CREAT" in opened[0]["params"]["flags"]
    assert opened[0]["cmdline"].endswith(command)
    mapped = next(each for each in told if each["name"] == "mmap")
    assert re.fullmatch("0x[0-9a-f]+", mapped["params"]["addr"])


def test_the_page_names_every_key(read_text: Callable[[str], str]) -> None:
    """Every key that an event may have stands in a table of the documentation, and no other."""
    page = read_text("docs/filament-events.md").partition("## Parameters")[0]
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE)
    named = {key for cell in cells for key in re.findall(r"\w+", cell)}

    assert named == ALWAYS.keys() | OF_A_PROCESS.keys() | event.FURTHER_KEYS


def test_sources_are_remembered_by_their_ids() -> None:
    """A source that is only noted, not packed, counts as well."""
    columns = event.EventColumns()
    columns.note([SourceInfo("scap"), SourceInfo("tracee")])

    assert list(dicts.dicts(columns.pack(Batch(0, {})))) == []
