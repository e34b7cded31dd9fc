"""Folders of packets that kcap has written, read again as the directories they look like."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_support import lines_of, run
from pcap_support import MAC, enhanced, interface, ipv4, section, udp

from kcap.readers import tracee_folder_files as files
from kcap.readers.tracee_folder_packets import Owner, owner_of

ARP = b"\xff" * 6 + MAC[:6] + b"\x08\x06" + bytes(28)
NOBODYS = b"Provenance: pid:unowned"
WITHOUT = {"origin", "ord", "source", "seq"}
FORMAT = ("--format", "pcapng")


def recorded(at: Path) -> Path:
    """Packets of two processes, of nobody, and an ARP whose owner is not known."""
    owners = [b"PID: 7\nTID: 7\nName: a b\nStartTime: 5", b"PID: 8\nTID: 8\nName: cc", NOBODYS]
    blocks = [section("<", (4, b"kcap 0")), interface("<", 101), interface("<", 1)]
    for number in range(9):
        packet = ipv4(udp(1, number), 17)
        blocks.append(enhanced("<", number, packet, (1, owners[number % 3])))
    blocks.append(enhanced("<", 9, ARP, of=1))
    at.write_bytes(b"".join(blocks))
    return at


def told(path: Path) -> list[dict[str, Any]]:
    """What events say, but for where they are from."""
    rows = [{n: v for n, v in e.items() if n not in WITHOUT} for e in lines_of("cat", path)]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


@pytest.mark.parametrize("modes", ["single", "single,process,container,command", "process"])
@pytest.mark.parametrize("tracee", [True, False])
def test_a_folder_is_read_again(tmp_path: Path, modes: str, tracee: bool) -> None:
    """All that was exported comes back, in order of time, and nothing is passed over."""
    made = recorded(tmp_path / "all.pcapng")
    folder = tmp_path / "out"
    assert run("export", made, "-o", folder, *FORMAT, "--split", modes).exit_code == 0
    if tracee:
        # As a recording is laid out: Tracee's names, and the list beside them.
        (folder / "packets.json").rename(folder / "pcap/packets.json")
        for path in folder.rglob("*.pcapng"):
            path.rename(path.with_suffix(".pcap"))
    result = run("cat", folder, "--format", "jsonl")

    assert (result.exit_code, result.stderr) == (0, "")
    assert told(folder) == told(made)
    if "single" in modes:
        times = [json.loads(line)["ts"] for line in result.stdout.splitlines()]
        assert times == sorted(times)


def test_what_a_classic_file_of_nobodys_packets_holds_is_told(tmp_path: Path) -> None:
    """It can't say whether `single` has them, too; the control: alone it is read."""
    made = recorded(tmp_path / "all.pcapng")
    folder = tmp_path / "out"
    options = ("--split", "single", "--format", "pcap")
    assert run("export", made, "-o", folder, *options).exit_code == 0
    result = run("cat", folder)
    assert result.exit_code == 3
    assert "unowned.pcap (it can't say" in result.stderr
    assert len(result.stdout.splitlines()) == 7

    for path in (folder / "pcap").glob("single*"):
        path.unlink()
    result = run("cat", folder)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beside it comes, and it is told."""
    made = recorded(tmp_path / "all.pcapng")
    folder = tmp_path / "out"
    assert run("export", made, "-o", folder, *FORMAT, "--split", "process").exit_code == 0
    (folder / "pcap/secret").mkdir()
    listed = files._entries

    def entries(root: str, parts: Any) -> list[tuple[str, int]]:
        if tuple(parts)[-1:] == ("secret",):
            raise PermissionError(13, os.strerror(13))
        return listed(root, parts)

    monkeypatch.setattr(files, "_entries", entries)
    result = run("cat", folder)
    assert result.exit_code == 3
    assert "pcap/secret" in result.stderr
    assert len(result.stdout.splitlines()) == 10


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_names_have_either_suffix(suffix: str) -> None:
    """Whatever kcap or Tracee call them."""
    assert owner_of(("processes", "host", f"a b_7_5{suffix}")) == Owner("a b", 7, None)
    assert owner_of(("containers", f"abcdef01234{suffix}")) == Owner(None, None, "abcdef01234")
