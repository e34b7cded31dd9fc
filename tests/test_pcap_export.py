"""Exports of packets: what other programs read in them, and what comes back."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcap_support import MAC, ipv4, ipv6, read, tcp, udp

from kcap.errors import OutputError
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.packets import encode
from kcap.packets.decode import columns
from kcap.packets.frames import NOBODY, NONE, Frames, Owner
from kcap.packets.identity import PacketIds
from kcap.tools.folder import written
from kcap.writers import pcap_split
from kcap.writers.pcap import Pcap
from kcap.writers.pcap_split import MANIFEST, MODES, PacketFolder, component
from kcap.writers.pcapng import Pcapng

S = 1_700_000_000 * 10**9
ARP = b"\xff" * 6 + MAC[:6] + b"\x08\x06" + bytes(28)
CLIENT = Owner(pid=10, tid=11, name="curl", start_ns=5, thread_start_ns=6, exe="/bin/curl", uid=0)
SERVER = Owner(pid=20, tid=20, name="nginx", start_ns=7, container_id="0123456789abcdef")
PAIR = [ipv4(tcp(40000, 80, bytes([n])), 6) for n in range(6)]


def batch_of(frames: Frames, ids: PacketIds | None = None) -> Batch:
    return Batch(len(frames), columns(frames, ids or PacketIds()))


def loopback(*, arp: bool = True) -> Frames:
    """Packets of a client and a server, each seen twice; one that nobody owns, and an ARP."""
    sent = [raw for raw in PAIR for _ in range(2)]
    raws = [*sent, ipv4(udp(9, 9), 17), *([ARP] if arp else [])]
    more = len(raws) - len(sent)
    return Frames(
        data=np.frombuffer(b"".join(raws), np.uint8),
        offsets=np.cumsum([0, *map(len, raws)][:-1]).astype(np.int64),
        captured=np.array([len(r) for r in raws], np.int32),
        length=np.array([len(r) + (100 if n == 0 else 0) for n, r in enumerate(raws)], np.int64),
        ts_ns=np.array([S + n * 1000 + 1 for n in range(len(raws))], np.int64),
        link_type=np.array([*[101] * (len(sent) + 1), *[1] * arp], np.uint16),
        direction=np.array([2, 1] * len(PAIR) + [0] * more, np.uint8),
        owner=np.array([0, 1] * len(PAIR) + [2] * more, np.int32),
        owners=[CLIENT, SERVER, NOBODY],
        interface=np.zeros(len(raws), np.int32),
        interfaces=["lo"],
    )


def exported(batch: Batch, kind: type[Pcap | Pcapng]) -> bytes:
    stream = io.BytesIO()
    sink = kind(stream)
    sink.write(batch)
    sink.close()
    return stream.getvalue()


def told(rows: list[dict[str, Any]], *without: str) -> list[dict[str, Any]]:
    """Events without what depends on the file that they came in."""
    leave = {"origin", "source", "ord", "seq", "arg_link_header", *without}
    return [{k: v for k, v in row.items() if k not in leave} for row in rows]


def split(batch: Batch, folder: Path, form: str = "pcapng", modes: tuple[str, ...] = MODES) -> Path:
    with written(str(folder), force=False, mark=MANIFEST) as made:
        sink = PacketFolder(made.create, made.append, modes, form)
        sink.write(batch)
        sink.close()
    return folder / "pcap"


# one file


def test_what_is_exported_comes_back() -> None:
    """Bytes, times, lengths, directions, ids and owners of pcapng."""
    batch = batch_of(loopback(arp=False))
    rows, _ = read(exported(batch, Pcapng))
    assert told(rows) == told(batch.to_pylist())
    assert told(read(exported(batch, Pcapng))[0])[0]["arg_length"] == len(PAIR[0]) + 100


def test_what_an_event_cannot_hold_is_as_if_it_was_not_captured() -> None:
    """Of 70,000 bytes 64 KiB are there, and said to be; so an export gives an equal event."""
    # As segments that the kernel passes on in one piece: the header's own length is 0.
    raws = [b"\x45\0\0\0" + ipv4(b"", 6)[4:20] + tcp(1, 2, bytes(n)) for n in (65_496, 69_960)]
    batch = batch_of(Frames.of(raws, [S, S], 101))
    rows = batch.to_pylist()
    sizes = [(r["arg_length"], r["arg_captured"], len(r["arg_data__bin"])) for r in rows]
    assert sizes == [(65_536, 65_536, 65_536), (70_000, 65_536, 65_536)]
    names = ("arg_direction", "arg_interface")
    assert told(read(exported(batch, Pcapng))[0], *names) == told(rows, *names)


def test_a_classic_export_has_no_owners() -> None:
    """Of a pcap the packets come back, and a frame that is not IP is a loss that is told."""
    batch = batch_of(loopback(arp=False))
    rows, _ = read(exported(batch, Pcap))
    names = ("arg_data__bin", "ts", "arg_length", "arg_captured", "arg_src_port")
    assert [[r.get(n) for n in names] for r in rows] == [
        [r.get(n) for n in names] for r in batch.to_pylist()
    ]
    sink = Pcap(io.BytesIO())
    sink.write(batch_of(loopback()))
    sink.close()
    assert [(loss.kind, loss.count) for loss in sink.losses] == [("skipped", 1)]


@given(
    st.lists(
        st.tuples(
            st.integers(0, (1 << 62)),
            st.binary(max_size=50),
            st.integers(0, 2),
            st.integers(-1, 2),
            st.integers(0, 100_000),
        ),
        min_size=1,
        max_size=20,
    ),
    st.text(max_size=20),
    st.text(min_size=1, max_size=20),
)
def test_any_packets_come_back(
    packets: list[tuple[int, bytes, int, int, int]], name: str, remark: str
) -> None:
    """Whatever the packets are, and whatever a process is called."""
    owners = [
        Owner(pid=1, name=name or None, cmdline=remark),
        Owner(pid=4_000_000_000, tid=3, name="a\nPID: 7", start_ns=(1 << 63) - 1),
        Owner(pid=2),
    ]
    frames = Frames.of(
        [ipv4(body, 17) for _, body, *_ in packets],
        [ts for ts, *_ in packets],
        101,
        direction=np.array([way for _, _, way, _, _ in packets], np.uint8),
        owner=np.array([who for *_, who, _ in packets], np.int32),
        owners=owners,
        length=np.array([20 + len(b) + more for _, b, _, _, more in packets], np.int64),
    )
    batch = batch_of(frames)
    rows, _ = read(exported(batch, Pcapng))
    # Trailing NULs end a text of pcapng, and the interface has a name now.
    if "\0" not in name + remark and not any("\ud800" <= c <= "\udfff" for c in name + remark):
        assert told(rows, "arg_interface") == told(batch.to_pylist(), "arg_interface")


# a folder


def other(name: str) -> str:
    """The file of ARP beside another."""
    return name.replace(".", ".link-1.")


def ids_in(path: Path) -> list[int]:
    return [row["arg_packet_id"] for row in read(path.read_bytes())[0]]


def test_files_of_owners(tmp_path: Path) -> None:
    """A packet is in the file of its client and of its server; all of them together are single."""
    made = split(batch_of(loopback()), tmp_path / "out")
    found = {str(p.relative_to(made)): ids_in(p) for p in made.rglob("*.pcapng")}
    assert set(found) == {
        "single.pcapng",
        "unowned.pcapng",
        "unowned.link-1.pcapng",
        "processes/host/curl_11_6.pcapng",
        "processes/0123456789a/nginx_20_7.pcapng",
        "containers/host.pcapng",
        "containers/0123456789a.pcapng",
        "commands/host/curl.pcapng",
        "commands/0123456789a/nginx.pcapng",
    }
    single = found["single.pcapng"]
    assert len(single) == len(set(single)) == len(PAIR)
    for folder in ("processes", "containers", "commands"):
        mine = [ids for name, ids in found.items() if name.startswith(folder)]
        assert set().union(*mine) == set(single)
        assert all(len(ids) == len(set(ids)) == len(PAIR) for ids in mine)
    assert len(found["unowned.pcapng"]) == len(found["unowned.link-1.pcapng"]) == 1
    said = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert sum(f["packets"] for f in said["files"]) == sum(map(len, found.values()))


def test_a_second_sighting_may_have_the_owner(tmp_path: Path) -> None:
    """A packet that one of its sightings has an owner of is not unowned."""
    frames = loopback(arp=False)
    owner = frames.owner
    assert owner is not None
    owner[0] = 2  # nobody has it as it leaves
    made = split(batch_of(frames), tmp_path / "out", modes=("single",))
    single, rest = ids_in(made / "single.pcapng"), ids_in(made / "unowned.pcapng")
    assert len(single) == len(PAIR)
    assert len(rest) == 1
    assert not set(single) & set(rest)


def anonymous() -> Frames:
    """The same packets as tcpdump has them: it does not know whose they are."""
    return replace(loopback(), owner=None, owners=())


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_packets_that_may_be_anybodys_are_in_single(tmp_path: Path, form: str) -> None:
    """A capture that knows no owners is all in single: nobody said that they are nobody's."""
    made = split(batch_of(anonymous()), tmp_path / "out", form, ("single",))
    names = {p.name for p in made.iterdir()}
    assert names == {f"single.{form}", f"single.link-1.{form}"}
    count = sum(len(read((made / name).read_bytes())[0]) for name in names)
    assert count == len(PAIR) + 2


def test_packets_of_no_known_owner_are_in_no_owners_file(tmp_path: Path) -> None:
    """Where files of owners were asked for, unowned has what they can't have, each packet once."""
    made = split(batch_of(anonymous()), tmp_path / "out")
    names = ["single.pcapng", "unowned.pcapng"]
    assert {str(p.relative_to(made)) for p in made.rglob("*.*")} == {*names, *map(other, names)}
    single, rest = (ids_in(made / name) + ids_in(made / other(name)) for name in names)
    assert sorted(single) == sorted(rest)
    assert len(set(single)) == len(single) == len(PAIR) + 2


def test_some_owners_are_known(tmp_path: Path) -> None:
    """Of one capture: owned, nobody's, and of an unknown owner, with all files and with single."""
    frames = loopback()
    owner = frames.owner
    assert owner is not None
    owner[:2] = NONE
    modes: tuple[tuple[str, ...], ...] = (("single",), ("process",), MODES)
    found = {}
    for number, asked in enumerate(modes):
        made = split(batch_of(frames), tmp_path / str(number), modes=asked)
        found[asked] = {p.name: len(ids_in(p)) for p in made.rglob("*.pcapng")}
    arp = {"unowned.link-1.pcapng": 1}
    assert found[modes[0]] == {"single.pcapng": len(PAIR), "unowned.pcapng": 1} | arp
    kept = {"curl_11_6.pcapng": len(PAIR) - 1, "nginx_20_7.pcapng": len(PAIR) - 1}
    assert found[modes[1]] == {**kept, "unowned.pcapng": 2} | arp
    assert found[MODES].items() >= {"single.pcapng": len(PAIR), "unowned.pcapng": 2}.items()
    # The control: whoever does not know is not taken for somebody who says that it is nobody's.
    frames = replace(frames, owner=np.full(len(frames), 2, np.int32))
    made = split(batch_of(frames), tmp_path / "nobody")
    assert {p.name: len(ids_in(p)) for p in made.rglob("*.pcapng")} == {
        "single.pcapng": 0,
        "unowned.pcapng": len(PAIR) + 1,
        "unowned.link-1.pcapng": 1,
    }


HOSTILE = [
    *("../../x", "/etc/passwd", "..", ".", "", "a\nb", "a b", "\x1b[2J", "con", "nul.txt"),
    *("\u00fc", "%2F", "x" * 999, "A", "a"),
]


def test_hostile_names(tmp_path: Path) -> None:
    """No name leads out of the folder, and no two share a file."""
    owners = [Owner(pid=n + 1, name=name, container_id=name) for n, name in enumerate(HOSTILE)]
    # Containers that begin alike are others all the same.
    owners += [Owner(pid=90, name="z", container_id=f"0123456789a{n}") for n in range(2)]
    raws = [ipv4(udp(n + 1, 9), 17) for n in range(len(owners))]
    frames = Frames.of(
        raws, list(range(len(raws))), 101,
        owner=np.arange(len(owners), dtype=np.int32), owners=owners,
    )  # fmt: skip
    made = split(batch_of(frames), tmp_path / "out")
    files = [p for p in made.rglob("*") if p.is_file()]
    assert all(made in p.resolve().parents for p in files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    count: dict[str, int] = defaultdict(int)
    for path in files:
        count[path.relative_to(made).parts[0]] += len(ids_in(path))
        assert all(part.isascii() and part.isprintable() for part in path.parts[-3:])
    assert count == dict.fromkeys(
        ("single.pcapng", "processes", "containers", "commands"), len(raws)
    )
    assert len([p for p in files if p.parts[-3:-2] == ("processes",)]) == len(owners)


@given(st.text(), st.text())
def test_different_names_have_different_files(one: str, other: str) -> None:
    """A part of a path is safe, short, and says what it stands for."""
    assert (component(one) == component(other)) == (one == other)
    for name in (component(one), component(other)):
        assert "/" not in name
        assert name not in {"", ".", ".."}
        assert len(name) <= pcap_split.COMPONENT_BYTES


def test_pcap_files_of_other_link_types(tmp_path: Path) -> None:
    """Frames that are not IP have a file of their own link type."""
    made = split(batch_of(loopback()), tmp_path / "out", "pcap", ("single",))
    assert {p.name for p in made.iterdir()} == {
        "single.pcap",
        "unowned.pcap",
        "unowned.link-1.pcap",
    }


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """A folder that is there stays as it is."""
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        split(batch_of(loopback()), tmp_path / "out")
    with written(str(tmp_path / "new"), force=False, mark=MANIFEST) as made:
        with made.create("a") as stream:
            stream.write(b"1")
        with pytest.raises(OutputError):
            made.create("a")
        with pytest.raises(OutputError, match="not made here"):
            made.append("b")
        with made.append("a") as stream:
            stream.write(b"2")
        (tmp_path / "new.partial" / MANIFEST).write_text("{}")
    assert (tmp_path / "new" / "a").read_bytes() == b"12"


def test_many_batches_are_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files do not depend on how the stream is cut, nor on when they are flushed."""
    frames, ids = loopback(), PacketIds()
    whole = split(batch_of(frames), tmp_path / "whole")
    monkeypatch.setattr(pcap_split, "_BUFFERED_BYTES", 10)
    with written(str(tmp_path / "parts"), force=False, mark=MANIFEST) as made:
        sink = PacketFolder(made.create, made.append, MODES, "pcapng")
        for at in range(len(frames)):
            sink.write(batch_of(frames.take(np.array([at])), ids))
        sink.close()
    parts = tmp_path / "parts" / "pcap"
    for path in whole.rglob("*.pcapng"):
        assert path.read_bytes() == (parts / path.relative_to(whole)).read_bytes()


@pytest.mark.parametrize("kind", [Pcap, Pcapng])
def test_what_many_packets_have_in_common_is_written_in_portions(
    kind: type[Pcap | Pcapng], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of a few kB may be GB of packets: of one command line, one comment, one content."""
    count, long = 200, "x" * 10_000
    frames = replace(
        Frames.of([ipv4(bytes(1000), 17)] * count, range(S, S + count), 101),
        owner=np.zeros(count, np.int32),
        owners=[Owner(pid=1, cmdline=long)],
        comment=np.where(np.arange(count) < 50, 0, NONE).astype(np.int32),
        comments=[long],
    )
    batch = batch_of(frames)
    whole = exported(batch, kind)
    assert (len(whole) > count * len(long)) == (kind is Pcapng)
    monkeypatch.setattr(encode, "PORTION_BYTES", 50_000)
    written: list[int] = []

    class Stream(io.BytesIO):
        def write(self, data: Any, /) -> int:
            written.append(len(data))
            return super().write(data)

    stream = Stream()
    sink = kind(stream)
    sink.write(batch)
    sink.close()
    assert stream.getvalue() == whole
    assert max(written) < 70_000
    assert sink.packets == count


def test_a_length_of_more_than_32_bits() -> None:
    """It is the longest that a capture can say, not what is left of it."""
    batch = batch_of(loopback())
    lengths = pa.array([(1 << 32) + 5] * batch.rows)
    batch = batch.adding({"arg_length": Column(TypeClass.I64, lengths)})
    for kind in (Pcap, Pcapng):
        rows, _ = read(exported(batch, kind))
        assert {row["arg_length"] for row in rows} == {(1 << 32) - 1}


def test_long_segments_keep_their_length() -> None:
    """What a snap length cut off is told by the length, through an export and back."""
    raw = ipv4(tcp(1, 2, bytes(65_000)), 6)
    frames = Frames.of(
        [raw[:96], ipv6(udp(1, 2), 17)], [S, S + 1], 101, length=np.array([len(raw), 48])
    )
    batch = batch_of(frames)
    for kind in (Pcap, Pcapng):
        rows, _ = read(exported(batch, kind))
        assert [(r["arg_length"], r["arg_captured"]) for r in rows] == [(65_040, 96), (48, 48)]
