"""Exports that are read and written again: nothing is gained or lost, whatever stands in them."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pcap_support import MAC, ipv4, ipv6, read, tcp, udp

from kcap.model.batch import Batch
from kcap.packets import comments
from kcap.packets.decode import columns
from kcap.packets.frames import NOBODY, Frames, Owner
from kcap.packets.identity import PacketIds
from kcap.readers.pcapng import PcapngReader
from kcap.tools.folder import written
from kcap.writers.pcap_sink import KINDS_MAX
from kcap.writers.pcap_split import MANIFEST, MODES, PacketFolder
from kcap.writers.pcapng import Pcapng

S = 1_700_000_000 * 10**9
OF_THE_FILE = {"origin", "source", "ord", "seq"}

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
HOSTILE = st.sampled_from(
    [
        *("a\nPID: 7", "CaptureInterface: x", "x\nCaptureInterface: y", "\\", "\\n", "a\\\n"),
        *(
            "PID: 7",
            "Name: x",
            "Provenance: pid:unowned",
            "\n",
            "\r\n",
            ": ",
            "lo",
            "Pod",
            "x" * 300,
        ),
        *("Interface: z", "\x1b[2J", "CaptureInterface:", "CaptureInterface: "),
    ]
)
LINES = TEXT | HOSTILE
NAMES = LINES | st.text(max_size=5).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))


def said(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str | None]:
    return st.none() | texts.filter(len)


@st.composite
def owned(draw: st.DrawFn) -> Owner:
    """Any process, of which not everything is known."""
    return Owner(
        pid=draw(st.integers(0, (1 << 32) - 1)),
        tid=draw(st.none() | st.integers(1, (1 << 32) - 1)),
        name=draw(said(NAMES)),
        exe=draw(said(NAMES)),
        cmdline=draw(said(NAMES)),
        start_ns=draw(st.none() | st.integers(1, (1 << 63) - 1)),
        uid=draw(st.none() | st.integers(0, (1 << 32) - 1)),
        container_id=draw(said(NAMES)),
        provenance=draw(st.sampled_from([None, "pid:procfs", "pid:a\nPID: 3"])),
    )


OWNERS = owned() | st.just(NOBODY)

PACKETS = st.binary(max_size=40).flatmap(
    lambda body: st.sampled_from(
        [
            (101, ipv4(tcp(1, 2, body), 6)),
            (101, ipv4(udp(1, 53, body), 17)),
            (101, ipv6(udp(1, 2, body), 17)),
            (101, ipv4(body, 1)),
            (1, MAC + b"\x08\x06" + body),
            (105, body),
        ]
    )
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Packets of any owners and interfaces, with any remarks."""
    packets = draw(st.lists(PACKETS, min_size=1, max_size=16))
    count = len(packets)
    owners = draw(st.lists(OWNERS, min_size=1, max_size=3, unique=True))
    interfaces = draw(st.lists(LINES.filter(len), min_size=1, max_size=3, unique=True))
    remarks = draw(st.lists(LINES.filter(len), min_size=1, max_size=3, unique=True))

    def some(of: list[Any]) -> np.ndarray[Any, Any]:
        numbers = st.lists(st.integers(-1, len(of) - 1), min_size=count, max_size=count)
        return np.array(draw(numbers), np.int32)

    raws = [raw for _, raw in packets]
    frames = Frames(
        data=np.frombuffer(b"".join(raws), np.uint8),
        offsets=np.cumsum([0, *map(len, raws)][:-1]).astype(np.int64),
        captured=np.array([*map(len, raws)], np.int32),
        length=np.array([len(r) + draw(st.sampled_from([0, 9])) for r in raws], np.int64),
        ts_ns=np.array([S + n for n in range(count)], np.int64),
        link_type=np.array([link for link, _ in packets], np.uint16),
        direction=np.array([draw(st.integers(0, 2)) for _ in raws], np.uint8),
        owner=some(owners),
        owners=owners,
        interface=some(interfaces),
        interfaces=interfaces,
        comment=some(remarks),
        comments=remarks,
    )
    return Batch(count, columns(frames, PacketIds()))


def exported(batches: list[Batch]) -> dict[int, bytes]:
    """The captures of one export by link type."""
    beside: dict[int, io.BytesIO] = {}

    def opened(link_type: int) -> BinaryIO:
        return beside.setdefault(link_type, io.BytesIO())

    sink = Pcapng(opened(101), opened)
    for batch in batches:
        sink.write(batch)
    sink.close()
    assert not sink.losses
    return {kind: stream.getvalue() for kind, stream in beside.items()}


def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what depends on the file that they came in."""
    return [{k: v for k, v in row.items() if k not in OF_THE_FILE} for row in rows]


def of_kind(batch: Batch, link_type: int) -> list[dict[str, Any]]:
    return [row for row in told(batch.to_pylist()) if row["arg_link_type"] == link_type]


@given(batches())
def test_what_was_exported_is_exported_again(batch: Batch) -> None:
    """Equal events of each link type come back, and their export is the same bytes."""
    first = exported([batch])
    for kind, raw in first.items():
        assert told(read(raw)[0]) == of_kind(batch, kind)
        again = [b for b in PcapngReader(io.BytesIO(raw), "x").batches() if b.rows]
        assert exported(again).get(kind) == raw


@given(batches(), st.data())
def test_an_export_does_not_depend_on_batches(batch: Batch, data: st.DataObject) -> None:
    """However the events are cut, the files are the same."""
    cuts = data.draw(st.sets(st.integers(0, batch.rows), max_size=4))
    edges = [0, *sorted(cuts), batch.rows]
    parts = [batch.take(np.arange(a, b, dtype=np.int32)) for a, b in itertools.pairwise(edges)]
    assert exported(parts) == exported([batch])


@given(batches())
def test_one_interface_for_each_file(batch: Batch) -> None:
    """Every capture describes one interface, before all packets: libpcap wants one, and no more."""
    for raw in exported([batch]).values():
        if len(raw) == 0:
            continue
        assert kinds_of_blocks(raw)[1:].index(1) == 0
        assert kinds_of_blocks(raw).count(1) == 1


def kinds_of_blocks(raw: bytes) -> list[int]:
    """The types of the blocks, in order."""
    found, at = [], 0
    while at < len(raw):
        found.append(int.from_bytes(raw[at : at + 4], "little"))
        at += int.from_bytes(raw[at + 4 : at + 8], "little")
    return found


@given(batches())
def test_files_of_a_split_together_are_single(batch: Batch) -> None:
    """Each packet is in `single` or `unowned`, once; the owners' files hold what they own."""
    with TemporaryDirectory() as name:
        with written(f"{name}/out", force=False, mark=MANIFEST) as made:
            sink = PacketFolder(made.create, made.append, MODES, "pcapng")
            sink.write(batch)
            sink.close()
        ids = {
            path.relative_to(f"{name}/out/pcap").as_posix(): [
                row["arg_packet_id"] for row in read(path.read_bytes())[0]
            ]
            for path in Path(name).rglob("*.pcapng")
        }
    assert all(len(found) == len(set(found)) for found in ids.values())

    def together(start: str) -> Counter[int]:
        return Counter(n for path, found in ids.items() if path.startswith(start) for n in found)

    rows = batch.to_pylist()
    owned = {r["arg_packet_id"] for r in rows if "pid" in r}
    # (It is nobody's where all who saw it say so.)
    others = {r["arg_packet_id"] for r in rows if r.get("provenance") != NOBODY.provenance}
    single, rest = together("single"), together("unowned")
    assert set(single) == others
    assert set(single) | set(rest) == {r["arg_packet_id"] for r in rows}
    for folder in ("processes", "containers", "commands"):
        assert set(together(folder)) == owned
    assert set(rest) == {r["arg_packet_id"] for r in rows} - owned


@given(st.none() | OWNERS, st.none() | NAMES, st.lists(LINES, max_size=2))
def test_comments_come_back(owner: Owner | None, interface: str | None, others: list[str]) -> None:
    """What kcap says is told from what others say, whatever both are."""
    text = comments.comment(owner, interface)
    found = comments.read([text, *others], escaped=True)
    assert found.interface == interface
    assert found.rest == "\n".join(text for text in others if text)
    expected = owner
    assert found.owner == expected


def test_comments_of_others_name_no_interface() -> None:
    """The control: in a file of kcap's a later comment is just a remark; elsewhere it is read."""
    ours, theirs = "PID: 1", "CaptureInterface: x\nName: y"
    assert comments.read([ours, theirs], escaped=True) == (Owner(pid=1), None, theirs)
    assert comments.read([ours, theirs], escaped=False) == (Owner(pid=1, name="y"), "x", "")
    assert comments.read(["", "PID: 1"], escaped=True) == (None, None, "PID: 1")
    assert comments.read(["seen at noon"], escaped=True) == (None, None, "seen at noon")


def test_frames_without_a_place_are_told() -> None:
    """What is no IP packet is counted where no file can be made for it, or too many would."""
    raws = [bytes(20)] * (KINDS_MAX + 3)
    frames = Frames.of(raws, [S] * len(raws), 1)
    frames.link_type[:] = np.arange(1000, 1000 + len(raws))
    batch = Batch(len(frames), columns(frames, PacketIds()))
    sink = Pcapng(io.BytesIO())
    sink.write(batch)
    sink.close()
    assert [(loss.kind, loss.count) for loss in sink.losses] == [("skipped", len(raws))]
    opened: dict[int, io.BytesIO] = {}
    sink = Pcapng(io.BytesIO(), lambda kind: opened.setdefault(kind, io.BytesIO()))
    sink.write(batch)
    sink.close()
    assert len(opened) == KINDS_MAX
    assert [(loss.kind, loss.count) for loss in sink.losses] == [("skipped", 3)]


def test_what_is_too_long_to_be_said_is_told() -> None:
    """A command line that no comment holds is cut, counted, and costs nothing else."""
    owner = Owner(pid=1, name="a", cmdline="x" * 65_536, user="u", provenance="pid:procfs")
    frames = Frames.of([ipv4(udp(1, 2), 17)] * 3, [S, S + 1, S + 2], 101,
                       owner=np.array([0, -1, 0], np.int32), owners=[owner])  # fmt: skip
    batch = Batch(3, columns(frames, PacketIds()))
    stream = io.BytesIO()
    sink = Pcapng(stream)
    sink.write(batch)
    sink.close()
    assert [(loss.kind, loss.count) for loss in sink.losses] == [("cut", 2)]
    first, _, last = read(stream.getvalue())[0]
    for row in (first, last):
        assert (row["process_name"], row["user"], row["provenance"]) == ("a", "u", "pid:procfs")
        assert 65_000 < len(row["cmdline"]) < 65_536
    with TemporaryDirectory() as name, written(f"{name}/o", force=False, mark=MANIFEST) as made:
        folder = PacketFolder(made.create, made.append, ("process",), "pcapng")
        folder.write(batch)
        folder.close()
        assert [(loss.kind, loss.count) for loss in folder.losses] == [("cut", 2)]
