"""Against sysdig: what the numbers of flags, enums, signals and calls in a .scap file mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import scap_support as made
from scap_oracle import oracle, parameter_counts, sysdig_of
from scap_render import FLAGS, words

from kcap.model import catalogue
from kcap.readers.scap_table import EventType, event_types

Program = Callable[[str], str]

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8, "SIGTYPE": 1, "SYSCALLID": 2}
SIZES |= {"UID": 4, "GID": 4, "MODE": 4, "FD": 8, "PID": 8, "ERRNO": 8, "RELTIME": 8}
"""Bytes of a parameter, by its kind or the end of that."""

LAST_EVENT, LAST_CALL = 329, 328
"""sysdig 0.29.3 knows more events of its own time, but not to print what is made up of them."""

NEWER = {("socket_family", n) for n in (27, 28, 40, 41, 42, 43, 44, 45)} | {
    ("futex_op_flags", 13),
    ("seek_whence", 3),
    ("scap_fcntl_cmd", 30),
    ("scap_fcntl_cmd", 31),
}
"""Members of enums that came later: sysdig takes them apart as if they were flags."""

WORDLESS = {
    *(("at_flags", n) for n in (0x100, 0x800)),
    *(("file_mode_flags", n << 12) for n in (1, 2, 4, 6, 8, 10, 12)),
    ("mount_flags", 0x100),
    ("scap_quotactl_cmd_flags", 0x8000),
    *(("scap_exe_flags", n) for n in (2, 4, 8)),
    *(("scap_open_flags", 1 << n) for n in (14, 15, 16)),
    ("seek_whence", 4),
}
"""Numbers that came later: sysdig has no words for them."""

OTHER_WORDS = {"_newselect": "newselect", "_llseek": "llseek", "rt_sigreturn": "sigreturn"}
"""Calls that sysdig has another name for, besides those whose ``32`` it leaves out."""


class Case(NamedTuple):
    """A number to give as words."""

    type: EventType
    parameter: str
    table: str
    number: int


def size_of(kind: str) -> int:
    """Bytes of a parameter, 0 for text."""
    return next((size for end, size in SIZES.items() if kind.endswith(end)), 0)


def cases(sysdig: str) -> Iterator[tuple[Case, bytes]]:
    """Every number of every table of an event that sysdig knows, and an event that has it."""
    counts = parameter_counts(sysdig)
    for type_ in event_types().values():
        known = counts.get(("<" if type_.is_exit else ">", type_.name))
        if known is None or type_.number > LAST_EVENT:
            continue
        parameters = type_.parameters[:known]
        for at, (name, kind, _) in enumerate(parameters):
            table = catalogue.decoder_of("scap", type_.name, name)
            if not FLAGS.fullmatch(kind) or not table:
                continue
            for number in catalogue.decoder(table):
                if 0 <= number < 1 << 8 * size_of(kind):
                    values = [bytes(size_of(p.kind)) or b"x\0" for p in parameters]
                    values[at] = number.to_bytes(size_of(kind), "little")
                    yield (
                        Case(type_, name, table, number),
                        made.event(type_.number, *values, tid=1),
                    )


def said(sysdig: str, blocks: list[bytes], folder: Path) -> list[tuple[str, str]]:
    """The type and arguments that sysdig prints of events of a process."""
    path = folder / "made.scap"
    path.write_bytes(made.scap(made.process_list(9, made.process(9)), *blocks))
    events = oracle(sysdig, path).events
    assert sorted(events) == list(range(1, len(blocks) + 1))
    return [(events[n].type, events[n].args) for n in sorted(events)]


def test_flags_and_enums_have_sysdig_s_words(program: Program, tmp_path: Path) -> None:
    """A number of any table is given in the words that sysdig has for it, if it has some."""
    sysdig = sysdig_of(program)
    asked = list(cases(sysdig))
    printed = said(sysdig, [block for _, block in asked], tmp_path)
    same, silent, wrong = set(), set(), []
    for (case, _), (kind, args) in zip(asked, printed, strict=True):
        found = re.search(rf"(?:^| ){case.parameter}=\w+(?:\(([^)]*)\))?", args)
        theirs = sorted(((found and found[1]) or "").split("|"))
        ours = sorted(words(case.type.name, case.parameter, case.number).split("|"))
        member = case.table, case.number
        assert kind == case.type.name
        if theirs == ours:
            same.add(member)
        elif theirs == [""]:
            silent.add(member)
        elif member not in NEWER:
            wrong.append((case, theirs, ours))

    assert wrong == []
    assert len(same) > 400
    assert silent - same == WORDLESS


def test_calls_have_sysdig_s_names(program: Program, tmp_path: Path) -> None:
    """A call without an event of its own has the name that sysdig gives it."""
    names = {n: name for n, name in catalogue.decoder("scap_syscall").items() if n <= LAST_CALL}
    blocks = [made.event(0, n.to_bytes(2, "little"), bytes(2), tid=1) for n in names]
    printed = said(sysdig_of(program), blocks, tmp_path)
    expected = [OTHER_WORDS.get(name, name) for name in names.values()]

    assert [kind for kind, _ in printed] == [
        name.removesuffix("32") if number > 300 else name
        for number, name in zip(names, expected, strict=True)
    ]


def test_a_wrong_word_is_noticed(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a table whose numbers are those of Linux has other words."""
    sysdig = sysdig_of(program)
    case, block = next(
        c for c in cases(sysdig) if c[0].table == "scap_open_flags" and c[0].number == 64
    )
    [(_, args)] = said(sysdig, [block], tmp_path)

    assert words(case.type.name, case.parameter, case.number) in args
    monkeypatch.setattr(catalogue, "decoder_of", lambda *_: "open_flags")
    assert words(case.type.name, case.parameter, case.number) not in args
