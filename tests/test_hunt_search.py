"""A search finds what each indicator alone would find, whatever the columns and the index."""

from __future__ import annotations

import ipaddress
import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import batch_of, capture, opened

from kcap import limits
from kcap.format import writer
from kcap.format.bloom import Bloom, distinct, hashes
from kcap.format.chunk_index import ChunkIndex
from kcap.hunt import search
from kcap.hunt.indicators import Indicator, Kind, is_pattern, is_windows, parse
from kcap.hunt.matcher import Matcher
from kcap.hunt.search import Searcher
from kcap.hunt.source import Searched
from kcap.model.batch import Batch, Column, concat
from kcap.model.classes import TypeClass

MD5 = "0123456789abcdef" * 2

GIVEN = [
    *(MD5, "F" * 40, "a1" * 32, "192.0.2.7", "192.0.2.0/24", "2001:db8::7", "2001:db8::/32"),
    *("0.0.0.0/0", "10.1.2.3", "evil.example", "c2.evil.example", "münchen.example", "a.test"),
    *("/tmp/x", "/tmp/a b", "/tmp/*.sh", "/opt/?/run", "C:\\Temp\\x.exe", "C:\\*\\y.dll"),
    *("x.exe", "evil*.dll", "path:run.sh", "path:?x", "path:*x*", "/a'b\"c"),
]


def indicators(*texts: str) -> list[Indicator]:
    """Indicators out of their texts."""
    return [Indicator(*meaning) for text in texts for meaning in parse(text)]


ALL = indicators(*GIVEN)

PARTS = st.sampled_from(
    [
        *(MD5, MD5.upper(), "f" * 40, "A1" * 32, "192.0.2.7", "192.0.2.77", "2001:db8::7"),
        *("10.1.2.3", "::ffff:10.1.2.3", "2001:DB8:0::7", "evil.example", "EVIL.Example.", "not"),
        *("c2.evil.example", "MÜNCHEN.example", "xn--mnchen-3ya.example", "a.test", "/tmp/x"),
        *(
            "/tmp/a b",
            "/tmp/z.sh",
            "/opt/1/run",
            "c:/temp/X.EXE",
            "C:\\w\\y.DLL",
            "x.exe",
            "run.sh",
        ),
        *("->", ":", ":443", "/", "\\", " ", ".", "-", "=", '"', "'", ",", "[", "]", "%eth0", "@"),
        *("0", "f", "é", "\n", "evil1.dll", "/a'b\"c"),
    ]
)
TEXTS = st.lists(PARTS, max_size=5).map("".join)


def holds(indicator: Indicator, text: str) -> bool:
    """Whether a text holds one indicator: what the help says, without tables and without haste."""
    if indicator.kind in (Kind.MD5, Kind.SHA1, Kind.SHA256):
        return indicator.value in re.split("[^0-9a-z]", text.lower())
    if indicator.kind is Kind.DOMAIN:
        # No domain here has another one's label within it, so that both spellings can be replaced.
        plain = [t.lower().replace("xn--mnchen-3ya", "münchen") for t in (text, indicator.value)]
        names, wanted = re.split(r"[^\w.-]", plain[0]), plain[1]
        names = [part for name in names for part in re.split(r"\.\.+", name.strip("."))]
        return any(name == wanted or name.endswith(f".{wanted}") for name in names)
    if indicator.kind is Kind.NETWORK:
        return any(a in ipaddress.ip_network(indicator.value) for a in addresses(text))
    subject, value = text, indicator.value
    if is_windows(value):
        subject, value = (t.lower().replace("/", "\\") for t in (text, value))
    if indicator.kind is Kind.FILENAME:
        subject = re.split(r"[/\\]", subject)[-1]
    return (
        fnmatchcase(subject, value.replace("[", "[[]")) if is_pattern(value) else subject == value
    )


def addresses(text: str) -> list[Any]:
    """The addresses in a text: every piece of it that is one, and stands by itself."""
    found: list[Any] = []
    for at in range(len(text)):
        for end in range(at + 2, min(len(text), at + 45) + 1):
            piece = text[at:end]
            if not re.fullmatch(r"[0-9A-Fa-f:.]+", piece):
                break
            try:
                address: Any = ipaddress.ip_address(piece)
            except ValueError:
                continue
            before, behind = text[:at], text[end:]
            if address.version == 4:
                alone = not re.search(r"[\w.-]\Z", before)
                alone &= not re.match(r"\w|\.\w|-(?!>)", behind)
            else:
                alone = not re.search(r"[\w:.%]\Z", before)
                alone &= not re.match(r"[\w:]|\.[\w:.]", re.sub(r"^:\d{1,5}(?![\w:.])", "", behind))
                address = address.ipv4_mapped or address
            if alone:
                found.append(address)
    return found


def expected(texts: Sequence[str], wanted: Sequence[Indicator] = ALL) -> dict[str, list[int]]:
    """What each text holds, one indicator after the other."""
    found = {t: [n for n, i in enumerate(wanted) if holds(i, t)] for t in texts}
    return {text: numbers for text, numbers in found.items() if numbers}


def given_by(made: Matcher, texts: Sequence[str]) -> dict[str, list[int]]:
    """What a matcher finds, without the parts."""
    return {t: [m.number for m in matches] for t, matches in made.find(texts).items()}


EXAMPLES = [
    (MD5, f"MD5={MD5.upper()},SHA256=00", True),
    (MD5, f"0{MD5}", False),
    (MD5, f"{MD5}0", False),
    ("a1" * 32, f"image@sha256:{'a1' * 32}", True),
    ("192.0.2.7", "10.0.0.5:4711->192.0.2.7:443", True),
    ("192.0.2.7", "192.0.2.7:443->10.0.0.5:4711", True),
    ("192.0.2.7", "192.0.2.77", False),
    ("192.0.2.7", "1192.0.2.7", False),
    ("192.0.2.7", "192.0.2.7.8", False),
    ("192.0.2.7", "lib-192.0.2.7", False),
    ("192.0.2.7", "http://192.0.2.7/a", True),
    ("192.0.2.7", "at 192.0.2.7.", True),
    ("192.0.2.7", "::ffff:192.0.2.7:80", True),
    ("192.0.2.7", "::ffff:c000:207", True),
    ("192.0.2.0/24", "192.0.2.255", True),
    ("192.0.2.0/24", "192.0.3.0", False),
    ("2001:db8::7", "[2001:0DB8::7]:443", True),
    ("2001:db8::7", "2001:db8::1:9->2001:db8::7:443", True),
    ("2001:db8::7", "2001:db8::7%eth0", True),
    ("2001:db8::7", "12001:db8::7", False),
    ("2001:db8::/32", "std::db8", False),
    ("::/0", "10:20:30", False),
    ("evil.example", "EVIL.example.", True),
    ("evil.example", "https://a.b.evil.example:443/", True),
    ("evil.example", "notevil.example", False),
    ("evil.example", "evil.example.org", False),
    ("evil.example", "user@evil.example", True),
    ("xn--mnchen-3ya.example", "www.münchen.example", True),
    ("/tmp/x", "/tmp/x", True),
    ("/tmp/x", "/TMP/x", False),
    ("/tmp/x", "sh /tmp/x", False),
    ("C:\\Temp\\X", "c:/temp/x", True),
    ("/tmp/*.sh", "/tmp/a/b.sh", True),
    ("/tmp/[a]*", "/tmp/[a]b", True),
    ("/tmp/[a]*", "/tmp/ab", False),
    ("x.exe", "C:\\a\\X.EXE", True),
    ("x.exe", "C:\\a\\xx.exe", False),
    ("path:run.sh", "/a/run.sh", True),
    ("path:run.sh", "/a/RUN.sh", False),
]


@pytest.mark.parametrize(("indicator", "text", "found"), EXAMPLES)
def test_examples(indicator: str, text: str, found: bool) -> None:
    """Each kind is found where the help says, and not next to it."""
    wanted = indicators(indicator)
    assert bool(Matcher(wanted).find([text])) is found
    assert bool(expected([text], wanted)) is found


@given(st.lists(TEXTS, unique=True, max_size=12))
def test_all_at_once(texts: list[str]) -> None:
    """A matcher of all indicators finds what each of them alone is said to find."""
    assert given_by(Matcher(ALL), texts) == expected(texts)


@given(st.lists(TEXTS, unique=True, max_size=8), st.sets(st.sampled_from(ALL)))
def test_one_kind_does_not_need_another(texts: list[str], some: set[Indicator]) -> None:
    """Which indicators are found does not depend on what else is looked for."""
    wanted = [i for i in ALL if i in some]
    assert given_by(Matcher(wanted), texts) == expected(texts, wanted)


def test_the_comparison_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Arrow sorts out too much, or a table is not asked, the comparison fails."""
    texts = ["192.0.2.7", "evil.example", "C:\\Temp\\x.exe", MD5]
    whole = given_by(Matcher(ALL), texts)
    assert whole == expected(texts)
    kinds = Matcher._kinds
    for kind, needed in (("ipv4", "192.0.2.7"), ("hash", MD5), ("domain", "evil.example")):
        with monkeypatch.context() as patch:
            patch.setattr(Matcher, "_kinds", lambda m, k=kind: {**kinds(m), k: "x{9}"})
            assert given_by(Matcher(ALL), texts) != whole, needed


def test_any_number_of_words() -> None:
    """Lists too long for one pattern, and names beyond ASCII, are found all the same."""
    names = [f"x{i}.tld{i}" for i in range(3000)] + ["ЛЕС.рф", "домен.рф"]
    files = [f"/opt/{i}/{'é' * (i % 3)}{i}.sh" for i in range(3000)] + ["path:ДЖ*.Лс?", "É.exe"]
    texts = ["a.X7.tld7", "http://лес.рф/", "ДОМЕН.РФ.", "/opt/1/é1.sh", "/a/ДЖ1.Лсю", "é.EXE"]
    batch = events_of([{"nested": {"k": text}} for text in texts])
    for wanted, held in ((names, texts[:3]), (files, texts[3:]), (names + files, texts)):
        searcher = Searcher(Matcher(indicators(*wanted)))
        plain = given_by(searcher.matcher, texts)
        assert sorted(plain) == sorted(held)
        assert {f.value: [m.number for m in f.matches] for f in searcher.findings(batch)} == plain


RECORDS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "pathname": TEXTS,
            "argv": st.lists(TEXTS, max_size=3),
            "nested": st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS, max_size=2), max_size=2),
            "fd": st.integers(0, 3),
        },
    ),
    max_size=8,
)


def by_row(records: list[dict[str, Any]], wanted: Sequence[Indicator]) -> set[tuple[int, str, int]]:
    """Row, text and indicator of every hit in events, looked for value by value."""
    found = set()
    for row, record in enumerate(records):
        texts = {t for value in record.values() for t in texts_of(value)}
        found |= {
            (row, t, n) for t, numbers in expected(list(texts), wanted).items() for n in numbers
        }
    return found


def texts_of(value: Any) -> list[str]:
    """All texts within a value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *texts_of(list(value.values()))]
    return [t for item in value for t in texts_of(item)] if isinstance(value, list) else []


def hits_in(batch: Batch, wanted: Sequence[Indicator]) -> set[tuple[int, str, int]]:
    """The same by a search."""
    found = Searcher(Matcher(wanted)).findings(batch)
    return {(r, f.value, m.number) for f in found for m in f.matches for r in f.rows.tolist()}


def events_of(records: list[dict[str, Any]]) -> Batch:
    return batch_of([(1000 + i, record) for i, record in enumerate(records)])


@given(RECORDS, st.sets(st.sampled_from(ALL), max_size=6), st.integers(0, 4))
def test_columns(records: list[dict[str, Any]], some: set[Indicator], start: int) -> None:
    """Text, lists and JSON are looked into wherever they stand, also in a slice of a batch."""
    wanted = [i for i in ALL if i in some]
    batch = events_of(records)
    assert hits_in(batch, wanted) == by_row(records, wanted)
    part = batch.slice(start, start + 3)
    assert hits_in(part, wanted) == by_row(records[start : start + 3], wanted)


def test_escaped_json() -> None:
    """What JSON escapes is found: quotes, backslashes, characters spelled by their numbers."""
    texts = ["C:\\Temp\\x.exe", "a\tevil.example\n", "/a'b\"c", "\x01", "10.1.2.3"]
    batch = events_of([{"nested": {"k": [text]}} for text in texts])
    assert {row for row, _, _ in hits_in(batch, ALL)} >= {0, 1, 2, 4}
    column = batch.columns["arg_nested__json"]
    spelled = pa.array(
        ['{"k":"\\u0065vil.\\u0065xample"}', '{"k":"\\/tmp\\/x"}', '"\\ud800 a.test"']
    )
    raw = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), spelled)
    batch = Batch(3, {"arg_nested__json": type(column)(column.cls, raw)})
    assert {
        row for row, _, _ in hits_in(batch, indicators("evil.example", "/tmp/x", "a.test"))
    } == {*range(3)}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of texts is dropped when it is too much, and nothing is lost by that."""
    monkeypatch.setattr(search, "_KNOWN_TEXTS", 3)
    searcher = Searcher(Matcher(ALL))
    for turn in range(6):
        records = [{"pathname": t} for t in ("/tmp/x", "a.test", f"n{turn}", f"m{turn}")]
        assert {f.value for f in searcher.findings(events_of(records))} == {"/tmp/x", "a.test"}
        assert len(searcher._known) <= 3 + len(records)


WORDS = st.sampled_from(
    ["/tmp/x", "/tmp/y", "/bin/z", "a.test", "A.TEST", "x a.test", MD5, "", "é"]
)
CHUNKS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "pathname": WORDS,
            "argv": st.lists(WORDS, max_size=2),
            "nested": st.dictionaries(st.just("k"), WORDS, min_size=1),
        },
    ),
    min_size=1,
    max_size=24,
)
FEW = indicators("/tmp/x", "/bin/z", "/bin/none", "a.test", MD5)


def hunted(
    data: bytes, wanted: Sequence[Indicator], *, prune: bool, exact: bool
) -> tuple[list[tuple[int, str, int]], int]:
    """The hits in a capture by the position of their event, and how many chunks were passed by."""
    searcher = Searcher(Matcher(wanted, exact=exact))
    source = Searched(opened(data), searcher, prune=prune)
    hits = []
    for batch in source.batches():
        ords = batch.numpy("ord", -1)
        hits += [(int(ords[row]), text, n) for row, text, n in hits_by(searcher, batch)]
    return sorted(hits), source.pruned


def hits_by(searcher: Searcher, batch: Batch) -> list[tuple[int, str, int]]:
    found = searcher.findings(batch)
    return [(r, f.value, m.number) for f in found for m in f.matches for r in f.rows.tolist()]


@given(CHUNKS, st.sets(st.sampled_from(FEW), min_size=1), st.booleans(), st.integers(1, 5))
def test_pruning(
    records: list[dict[str, Any]], some: set[Indicator], exact: bool, chunk_rows: int
) -> None:
    """A search that lets the index choose chunks finds what a search of everything finds."""
    wanted = [i for i in FEW if i in some]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BLOOM_SHARE", 1)  # so that small chunks have filters, too
        data = capture([events_of(records)], chunk_rows=chunk_rows)
    everything, _ = hunted(data, wanted, prune=False, exact=exact)
    assert hunted(data, wanted, prune=True, exact=exact)[0] == everything
    searcher = Searcher(Matcher(wanted, exact=exact))
    whole = hits_by(searcher, concat(list(opened(data).batches())))
    assert sorted(whole) == everything


def wide(count: int, places: int) -> list[dict[str, Any]]:
    """Events whose chunks are large beside the filters of their strings."""
    rng = random.Random(1)
    return [
        {"pathname": f"/tmp/{'x' if i == places else i}", "data": rng.randbytes(300), "fd": i}
        for i in range(count)
    ]


def test_pruning_prunes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks without a wanted path are not read; an index that denies what is there is noticed."""
    data = capture([events_of(wide(240, 133))], chunk_rows=20)
    wanted = indicators("/tmp/x")
    found, pruned = hunted(data, wanted, prune=True, exact=False)
    assert (found, pruned) == ([(133, "/tmp/x", 0)], 11)
    # An address may stand within a text, so that no chunk can be told apart by whole texts.
    assert hunted(data, indicators("192.0.2.7"), prune=True, exact=False) == ([], 0)
    assert hunted(data, indicators("192.0.2.7"), prune=True, exact=True) == ([], 12)
    assert hunted(data, indicators("192.0.2.0/24"), prune=True, exact=True) == ([], 0)
    assert hunted(data, indicators("/tmp/x*"), prune=True, exact=True)[1] == 0
    monkeypatch.setattr(Bloom, "may_hold_any", lambda *_: False)
    assert hunted(data, wanted, prune=True, exact=False)[0] != found


def test_little_is_read() -> None:
    """Of a capture without hits only columns of text are read, of a pruned one not even those."""
    data = capture([events_of(wide(240, -1))], chunk_rows=20)
    for prune, chunks in ((False, 12), (True, 0)):
        reader = opened(data)
        source = Searched(reader, Searcher(Matcher(indicators("/tmp/x"))), prune=prune)
        assert not sum(batch.rows for batch in source.batches())
        assert (reader.work.chunks, reader.work.frames) == (chunks, chunks)


def test_no_index_no_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the index of a chunk is missing or says nothing of strings, the chunk is read."""
    records = [{"pathname": "/tmp/x"}] * 4
    data = capture([events_of(records)], chunk_rows=2)
    wanted = indicators("/tmp/x")
    full = hunted(data, wanted, prune=True, exact=False)[0]
    assert len(full) == 4
    monkeypatch.setattr(ChunkIndex, "unpack", _silent)
    assert hunted(data, wanted, prune=True, exact=False) == (full, 0)
    still_open = capture([events_of(records)], chunk_rows=2, closed=False)
    assert hunted(still_open, wanted, prune=True, exact=False)[0] == full


_UNPACK = ChunkIndex.unpack


def _silent(raw: bytes) -> ChunkIndex:
    return replace(_UNPACK(raw), strings=None)


@given(st.lists(st.text(max_size=4), min_size=1), st.lists(st.text(max_size=4)))
def test_any_of_some_strings(held: list[str], asked: list[str]) -> None:
    """A filter never denies all of some strings while it holds one of them."""
    made = Bloom.of(distinct([pa.array(held, pa.utf8())]), 1 << 16)
    assert made is not None
    given_hashes = hashes(pa.array(asked, pa.utf8()))
    singles = [made.may_hold(text) for text in asked]
    assert made.may_hold_any(given_hashes) is any(singles)
    assert made.may_hold_all(given_hashes) is all(singles)
    assert all(made.may_hold(text) for text in held)
    empty = Bloom(b"")
    assert not empty.may_hold_any(given_hashes)
    assert empty.may_hold_all(given_hashes) is (not asked)


def hostile() -> list[str]:
    """Long texts that patterns without care take minutes for."""
    units = ["a", ".", ":", "a.", "a:", "1.", "-", "0", '\\"', '"', "\\", "/", "x.exe", "%", "é."]
    most = limits.VALUE_BYTES
    made = [unit * (most // len(unit.encode())) for unit in units]
    return [*made, *(f"{text[: most - 40]} .example 1.2.3 :: .test {'f' * 9}" for text in made)]


def test_long_texts_are_quick() -> None:
    """What a host can put into a value does not stall a search, in text and in JSON."""
    texts = hostile()
    entries = pa.array([*texts, *(f'"{text}' for text in texts)])
    codes = pa.array(range(len(entries)), pa.int32())
    raw = pa.DictionaryArray.from_arrays(codes, entries)
    columns = {n: Column(c, raw) for n, c in (("exe", TypeClass.STR), ("arg_j", TypeClass.JSON))}
    start = time.process_time()
    Searcher(Matcher(ALL)).findings(Batch(len(entries), columns))
    assert time.process_time() - start < 10  # 0.5 s; a careless pattern takes 40 s for one text


def test_exact_is_whole_values() -> None:
    """With exact, only a value that is an indicator counts, as given or in upper or lower case."""
    made = Matcher(indicators("evil.example", "192.0.2.7", MD5, "x.exe", "10.0.0.0/8"), exact=True)
    texts = ["EVIL.EXAMPLE", "evil.example.", "a.evil.example", "192.0.2.7", "192.0.2.7:80"]
    texts += [MD5.upper(), f"MD5={MD5}", "X.EXE", "C:\\x.exe", "10.1.2.3", "10.1.2.3:80"]
    found = ["EVIL.EXAMPLE", "evil.example.", "192.0.2.7", MD5.upper(), "X.EXE", "10.1.2.3"]
    assert sorted(made.find(texts)) == sorted(found)
    assert set(Matcher(indicators("192.0.2.7"), exact=True).whole_texts() or ()) == {"192.0.2.7"}


def test_words_of_the_format_are_not_searched() -> None:
    """Columns that kcap itself fills can't hold an indicator, whatever they look like."""
    searched = {n: search.is_searched(n, c.cls) for n, c in events_of([{"a": "x"}]).columns.items()}
    assert searched == {"arg_a__str": True, "ord": False, "shape": False, "ts": False}


def test_patterns_without_words() -> None:
    """Patterns of paths that name no whole word are found as well as those that do."""
    made = Matcher(indicators("path:?x", "path:*x*", "/a/*"))
    assert [m.number for m in made.find(["/a/xx"])["/a/xx"]] == [0, 1, 2]
    assert not made.find(["/b/yy"])
