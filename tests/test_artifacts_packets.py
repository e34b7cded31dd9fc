"""The packets in a Tracee output directory."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from artifact_support import tracee_event, tracee_folder
from cli_support import lines_of, run

from kcap.readers import tracee_folder_packets
from kcap.readers.tracee_folder_packets import Owner, owner_of

T0 = 1_700_000_000_000_000_001
Packet = tuple[int, bytes]


def datagram(port: int, payload: bytes = b"x") -> bytes:
    """UDP in IPv4 behind Tracee's big-endian family."""
    udp = struct.pack(">HHHH", port, 53, 8 + len(payload), 0) + payload
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, b"\x7f\0\0\1", b"\x7f\0\0\2"
    )
    return struct.pack(">I", 2) + head + udp


def block(kind: int, body: bytes) -> bytes:
    """A block of pcapng."""
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + size + body + size


def pcapng(packets: list[Packet], *, sections: int = 1) -> bytes:
    """As Tracee writes them: link type NULL, ns; in several sections where a file was reopened."""
    made = b""
    for number in range(sections):
        made += block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
        made += block(
            1, struct.pack("<HHI", 0, 0, 0xFFFFFFFF) + struct.pack("<HHBxxxHH", 9, 1, 9, 0, 0)
        )
        for ts, data in packets[number::sections]:
            size = len(data)
            made += block(6, struct.pack("<IIIII", 0, ts >> 32, ts & 0xFFFFFFFF, size, size) + data)
    return made


ALL = [(T0 + i, datagram(1000 + i)) for i in range(6)]
EVENTS = [tracee_event("openat", T0 + 2, {"pathname": "/a"})]
SPLIT = {
    "pcap/processes/host/curl_7_99.pcap": [ALL[0], ALL[1]],
    "pcap/processes/host/a b_c_8_99.pcap": [ALL[1], ALL[2]],
    "pcap/processes/abcdef01234/nc_9_99.pcap": [ALL[3], ALL[4], ALL[5]],
    "pcap/commands/host/curl.pcap": [ALL[0], ALL[1]],
    "pcap/containers/host.pcap": ALL[:3],
    "pcap/containers/abcdef01234.pcap": ALL[3:],
}
NAMES = ["curl", None, "a b_c", "nc", "nc", "nc"]
"""Of the second packet there are two owners: none of them is guessed."""


def folder_of(at: Path, files: dict[str, list[Packet]], events: list[str] = EVENTS) -> Path:
    """A directory with packets."""
    made = {name: pcapng(packets) for name, packets in files.items()}
    return tracee_folder(at, made, events)


def packets_in(path: Path) -> list[dict[str, Any]]:
    """The packets that a directory or file gives, without where they are from."""
    found = [e for e in lines_of("cat", path) if e["event"] == "net_packet"]
    return [
        {n: v for n, v in e.items() if n not in {"origin", "ord", "source", "seq"}} for e in found
    ]


@pytest.mark.parametrize("single", [True, False])
def test_each_packet_comes_once_whatever_files_hold_it(tmp_path: Path, single: bool) -> None:
    """From the one file with all of them, else from the others; owners by the names of files."""
    files = {**SPLIT, **({"pcap/single.pcap": ALL} if single else {})}
    found = packets_in(folder_of(tmp_path, files))

    assert sorted(p["ts"] for p in found) == [ts for ts, _ in ALL]
    by_time = {p["ts"]: p for p in found}
    assert [by_time[ts].get("process_name") for ts, _ in ALL] == NAMES
    assert [by_time[ts].get("tid") for ts, _ in ALL] == [7, None, 8, 9, 9, 9]
    assert {by_time[ts].get("container_id") for ts, _ in ALL[3:]} == {"abcdef01234"}


def test_packets_are_those_of_the_file(tmp_path: Path) -> None:
    """The same events as of the pcapng alone, but for where they come from."""
    folder = folder_of(tmp_path / "t", {"pcap/single.pcap": ALL})
    alone = tmp_path / "alone.pcap"
    alone.write_bytes(pcapng(ALL))

    assert packets_in(folder) == packets_in(alone)
    assert len(packets_in(alone)) == len(ALL)


def test_packets_stand_among_the_events_by_time(tmp_path: Path) -> None:
    """And an import has both, with the artifacts."""
    files = {"pcap/single.pcap": pcapng(ALL), "host/exec.1.a": b"a"}
    folder = tracee_folder(tmp_path / "t", files, EVENTS)
    times = [e["ts"] for e in lines_of("cat", folder)]
    target = tmp_path / "t.kcap"

    assert times == sorted(times)
    assert len(times) == len(ALL) + 1
    assert run("import", folder, "-o", target).exit_code == 0
    assert [e["ts"] for e in lines_of("cat", target)] == times
    assert run("artifacts", "list", target).stdout.count("exec ") == 1


def test_equal_packets_of_one_file_stay_two(tmp_path: Path) -> None:
    """Negative control for leaving out what another file had."""
    twice = [ALL[0], ALL[0], ALL[1]]
    folder = folder_of(
        tmp_path, {"pcap/containers/host.pcap": twice, "pcap/commands/host/a.pcap": twice}
    )

    assert [p["ts"] - T0 for p in packets_in(folder)] == [0, 0, 1]


def test_a_file_of_several_sections_is_whole(tmp_path: Path) -> None:
    """Tracee opens files again."""
    made = {"pcap/single.pcap": pcapng(ALL, sections=3)}

    assert len(packets_in(tracee_folder(tmp_path, made, EVENTS))) == len(ALL)


def test_what_holds_no_packets_is_said(tmp_path: Path) -> None:
    """And a link is no file."""
    folder = folder_of(tmp_path, {"pcap/containers/host.pcap": ALL})
    (folder / "out/pcap/notes.pcap").write_text("hello")
    (folder / "out/pcap/link.pcap").symlink_to("containers/host.pcap")
    result = run("cat", folder)

    assert result.exit_code == 3
    assert "notes.pcap" in result.stderr
    assert "link.pcap" in result.stderr
    assert len(result.stdout.splitlines()) == len(ALL) + 1


@pytest.mark.parametrize("at", range(0, 60, 3))
def test_a_damaged_beginning_is_no_reason_to_refuse_the_rest(tmp_path: Path, at: int) -> None:
    """The events are there, and what is wrong is said; nothing else comes out than that."""
    data = bytearray(pcapng(ALL))
    data[at] ^= 0xFF
    folder = tracee_folder(tmp_path, {"pcap/single.pcap": bytes(data)}, EVENTS)
    result = run("cat", folder, "--lenient")

    assert result.exit_code in {0, 3}, result.output
    assert "openat" in result.stdout


def test_a_cut_file_gives_what_it_has(tmp_path: Path) -> None:
    """Exit code 3, and the whole packets before the cut."""
    folder = tracee_folder(tmp_path, {"pcap/single.pcap": pcapng(ALL)[:-10]}, EVENTS)
    result = run("cat", folder, "--format", "jsonl")

    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == len(ALL)


def test_what_is_remembered_of_owners_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packets come all the same."""
    monkeypatch.setattr(tracee_folder_packets, "KEYS_MAX", 2)
    folder = folder_of(tmp_path, {**SPLIT, "pcap/single.pcap": ALL})
    result = run("cat", folder, "--format", "jsonl")

    assert result.exit_code == 3
    assert "whose packets" in result.stderr
    assert len(result.stdout.splitlines()) == len(ALL) + 1
    assert result.stdout.count('"a b_c"') == 2
    assert '"nc"' not in result.stdout


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("single.pcap", None),
        ("processes/host/sshd_1_2.pcap", Owner("sshd", 1, None)),
        ("processes/abcdef01234/a_b_1_2.pcap", Owner("a_b", 1, "abcdef01234")),
        ("commands/host/sshd.pcap", Owner("sshd", None, None)),
        ("containers/abcdef01234.pcap", Owner(None, None, "abcdef01234")),
        ("abcdef01234/capture.pcap", Owner(None, None, "abcdef01234")),
        ("host/sshd_1_2.pcap", Owner("sshd", 1, None)),
    ],
)
def test_names_of_files_say_whose_packets_they_hold(path: str, expected: Owner | None) -> None:
    """Those of 0.11 and later, and of 0.8 to 0.10."""
    assert owner_of(path.split("/")) == expected
