"""Numbers become text and text becomes numbers, exactly."""

from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.model import catalogue, decode
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import I64_MIN, U64_MAX
from kcap.model.side import SourceInfo
from kcap.writers.line import ConsoleLines

TABLES = sorted({r[0] for r in catalogue._rows("decoders.tsv")})
OWN = [t for t in TABLES if decode.SPELLING not in t] + [decode.HEX, decode.DECIMAL]
SPELLINGS = [t for t in TABLES if decode.SPELLING in t]
NUMBERS = st.one_of(
    st.integers(-5, 300), st.integers(0, 2**32), st.integers(I64_MIN, 2**63 - 1), st.just(U64_MAX)
)
WORDS = st.sampled_from(
    ["O_RDONLY", "O_CREAT", "0x1", "0x01", "7", "-1", "", "PROT_EXEC", "CLONE_VM"]
)


@pytest.mark.parametrize("table", OWN)
@given(numbers=st.lists(NUMBERS, max_size=20), picks=st.lists(st.integers(0, 10**6), max_size=4))
def test_every_number_comes_back_from_its_text(
    table: str, numbers: list[int], picks: list[int]
) -> None:
    """Whatever a number is, known flags, unknown bits, negative: its text leads back to it."""
    named = list(catalogue.decoder(table))
    mixed = 0
    for pick in picks:
        mixed |= max(named[pick % len(named)], 0) if named else pick
    for number in [*numbers, *named, mixed]:
        if table == decode.HEX and number < 0:
            continue  # addresses are unsigned
        text = decode.text_of(table, number)
        shared = list(catalogue.decoder(table).values()).count(text) > 1
        assert decode.number_of(table, text) == (None if shared else number)


@pytest.mark.parametrize("table", TABLES)
@given(words=st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=4))
def test_a_text_that_is_read_is_written_again(table: str, words: list[str]) -> None:
    """`number_of` takes no text that `text_of` would not give, in any spelling."""
    names = list(catalogue.decoder(table).values())
    for text in ["|".join(words), "|".join([*words, names[0]]), "|".join(reversed(names[:5]))]:
        number = decode.number_of(table, text)
        assert number is None or decode.text_of(table, number) == text


@pytest.mark.parametrize(
    ("decoder", "number", "text"),
    [
        ("open_flags", 0, "O_RDONLY"),
        ("open_flags", 0x8000, "O_RDONLY|O_LARGEFILE"),
        ("open_flags", 0x101002, "O_RDWR|O_SYNC"),
        ("open_flags", 3, "0x3"),
        ("open_flags", 1 << 40, "O_RDONLY|0x10000000000"),
        ("open_flags@tracee", 0x101002, "O_RDWR|O_DSYNC|O_SYNC"),
        ("open_flags@tracee_old", 0x84000, "O_RDONLY|O_CLOEXEC|O_DIRECT"),
        ("access_flags", 0, "F_OK"),
        ("access_flags@tracee_old", 6, "R_OK|W_OK"),
        ("mmap_prot", 0, "PROT_NONE"),
        ("mmap_prot", 7, "PROT_READ|PROT_WRITE|PROT_EXEC"),
        ("socket_type", 0x80801, "SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC"),
        ("file_mode_flags@tracee", 0o100750, "S_IFREG|S_IRWXU|S_IRGRP|S_IXGRP"),
        ("clone_flags", 0x1200011, "CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|0x11"),
        ("vm_flags@tracee", 0x805, "VM_READ|VM_EXEC|UNKNOWN_FLAG_0X800"),
        ("vm_flags@tracee", 1 << 34, "VM_PKEY_BIT3"),
        ("fsnotify_flags@tracee", 0x21, "FS_ACCESS|FS_CLOSE_OPEN"),
        ("capability", 21, "CAP_SYS_ADMIN"),
        ("capability", 77, "77"),
        ("ptrace_request", 0x4206, "PTRACE_SEIZE"),
        ("bpf_prog_type", 32, "BPF_PROG_TYPE_NETFILTER"),
        ("socket_level", 286, "SOL_SMC"),
        ("socket_option@tracee", 74, "SO_TXREHASH"),
        ("io_uring_op", 48, "IORING_OP_SENDMSG_ZC"),
        ("dir_fd", -100, "AT_FDCWD"),
        ("hex", 0x7FD7CE0D3A10, "0x7fd7ce0d3a10"),
        ("hex", U64_MAX, "0xffffffffffffffff"),
        ("decimal", 17, "17"),
    ],
)
def test_known_numbers(decoder: str, number: int, text: str) -> None:
    """Flags, enums, masks, choices among flags and unknown bits, in kcap's and Tracee's words."""
    assert decode.text_of(decoder, number) == text
    assert decode.number_of(decoder, text) == number


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        ("open_flags", ""),
        ("open_flags", "O_CREAT"),  # an open has an access mode
        ("open_flags", "O_CREAT|O_RDONLY"),
        ("open_flags", "O_RDONLY|O_RDONLY"),
        ("open_flags", "O_RDONLY|"),
        ("open_flags", "o_rdwr"),
        ("open_flags", "O_RDONLY|0x0"),
        ("open_flags", "7"),
        ("capability", "CAP_SYS_ADMIN|CAP_BPF"),
        ("capability", "021"),
        ("capability", "21"),  # it has a name
        ("hex", "0x00"),
        ("hex", "0xAB"),
        ("hex", "0x1ffffffffffffffff"),
        ("decimal", "18446744073709551616"),
        ("no such table", "x"),
        ("open_flags", "O_RDONLY|" * 1000),
    ],
)
def test_texts_that_lead_nowhere(decoder: str, text: str) -> None:
    """Negative control: another order, another case, doubled or unknown words are no number."""
    assert decode.number_of(decoder, text) is None


def test_the_first_spelling_that_gives_the_text_is_found() -> None:
    """Of several spellings the one that leads back exactly is told, with its number."""
    both = ("open_flags@tracee", "open_flags@tracee_old")

    assert decode.spelled(both, "O_RDONLY|O_DSYNC|O_SYNC") == (both[0], 0x101000)
    assert decode.spelled(both, "O_RDONLY|O_CLOEXEC|O_DIRECT") == (both[1], 0x84000)
    assert decode.spelled(both, "no flags") is None


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_agree_on_what_the_numbers_are(spelling: str) -> None:
    """A name that a table and its spelling both have stands for one number, but for known slips."""
    slips = {"VM_PKEY_BIT3", "O_TMPFILE"}  # Tracee's pkey bits skip 2; its O_TMPFILE is one bit
    own = {text: number for number, text in catalogue.decoder(spelling.partition("@")[0]).items()}
    for number, text in catalogue.decoder(spelling).items():
        assert text in slips or own.get(text, number) == number


def test_columns_are_decoded_once_for_each_distinct_value() -> None:
    """Arrays of numbers and of texts, plain and dictionary-coded, with nulls."""
    numbers = pa.array([0x8000, None, 3, 0x8000])
    texts = ["O_RDONLY|O_LARGEFILE", None, "0x3", "O_RDONLY|O_LARGEFILE"]

    assert decode.texts_of("open_flags", numbers).to_pylist() == texts
    assert decode.numbers_of("open_flags", pa.array(texts)) == numbers.to_pylist()
    assert decode.numbers_of("open_flags", pa.array([*texts, "?"]).dictionary_encode())[-1] is None


def test_every_decoder_that_is_named_is_known(read_text: Callable[[str], str]) -> None:
    """decoded.tsv and arguments.tsv name no table that is not there."""
    rows = [r.split("\t") for r in read_text("kcap/model/data/decoded.tsv").splitlines()[1:]]
    named = {r[3] for r in rows} | {a.decoder for a in catalogue.arguments().values()} - {""}

    assert all(map(decode.known, named))
    assert not decode.known("no_such_flags")


def events_of(*events: dict[str, object]) -> Batch:
    """A batch with one row an event: column to value."""
    builder = RecordBuilder()
    for event in events:
        fields = [Field(name, catalogue.home(name)) for name in event]
        builder.add(builder.layout(fields), list(event.values()))
    return builder.finish()


def lines_of(batch: Batch, template: str) -> str:
    """A batch as console lines."""
    stream = io.BytesIO()
    ConsoleLines(stream, template=template).write(batch)
    return stream.getvalue().decode()


def test_a_number_means_what_its_event_says() -> None:
    """One column holds flags of many events and two sources; each is read as its own."""
    tracee, scap = SourceInfo("tracee", "a"), SourceInfo("scap", "b")
    rows = [
        (tracee.id, "openat", 0x80000, "O_RDONLY|O_CLOEXEC"),
        (scap.id, "openat", 0x1002, "O_WRONLY|O_CLOEXEC"),
        (tracee.id, "clone", 0x100, "CLONE_VM"),
        (tracee.id, "never_heard_of", 0x100, "256"),
        (tracee.id, "openat", 0x80000, "O_RDONLY|O_CLOEXEC"),
        ("not announced", "openat", 0x80000, "524288"),
        (tracee.id, None, 0x80000, "524288"),
    ]
    batch = events_of(*({"source": s, "event": e, "arg_flags": n} for s, e, n, _ in rows))

    printed = lines_of(batch.with_before((tracee, scap)), template="{{ .arg_flags }}")

    assert printed.splitlines() == [text for *_, text in rows]
    assert lines_of(batch, template="{{ .arg_flags }}").splitlines() == [str(r[2]) for r in rows]


def test_other_programs_spellings_are_not_shown() -> None:
    """Tracee calls TCP_NODELAY SO_DEBUG; that is good for reading its text and for no more."""
    source = SourceInfo("tracee")
    setsockopt = {"source": source.id, "event": "setsockopt", "arg_optname": 1, "arg_level": 6}
    batch = events_of(setsockopt)

    printed = lines_of(batch.with_before((source,)), template="{{ .Params }}")

    assert catalogue.decoder_of("tracee", "setsockopt", "optname") == "socket_option@tracee"
    assert printed == "level➜ SOL_TCP, optname➜ 1\n"
