"""What PE and ELF files say of themselves: files made here, those of this host, hostile ones."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from binaries_support import BLACKWATER, COMPANY, Section, imports, pe
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.binaries import describe, elf, parts, signature
from kcap.binaries import pe as pe_
from kcap.errors import KcapError, MissingExtraError

LIBRARIES = {"KERNEL32.dll": ["CreateFileW", "WriteFile"], "ws2_32.dll": ["connect"]}
LIMIT_S = 10.0
"""What a hostile file may take, on a machine that has much else to do."""


def said(content: bytes) -> dict[str, Any]:
    """What a PE says."""
    found = describe(content)
    assert found["format"] == "pe", found
    facts: dict[str, Any] = found["pe"]
    return facts


def test_a_pe_says_what_was_put_into_it() -> None:
    found = said(pe(COMPANY, LIBRARIES, link_s=1_234_567_890, base=0x400000))
    assert found["resources"] == COMPANY
    assert found["imports"] == list(LIBRARIES)
    assert found["symbols"] == ["CreateFileW", "WriteFile", "connect"]
    assert (found["nsections"], found["nsymbols"]) == (3, 3)
    assert (found["address.base"], found["address.entrypoint"]) == (0x400000, 0x1000)
    assert found["link_time"] == 1_234_567_890 * 10**9
    text = found["sections"][0]
    content = (b"\xc3" * 100).ljust(0x200, b"\0")
    assert (text["name"], text["size"]) == (".text", 0x200)
    assert text["md5"] == hashlib.md5(content).hexdigest()
    names = "kernel32.createfilew,kernel32.writefile,ws2_32.connect"
    assert found["imphash"] == hashlib.md5(names.encode()).hexdigest()
    assert "anomalies" not in found


@pytest.mark.parametrize(
    ("made", "fact", "expected"),
    [
        (pe(characteristics=0x2022), "is_dll", True),
        (pe(characteristics=0x2022), "is_exec", False),
        (pe(), "is_dll", False),
        (pe(), "is_exec", True),
        (pe(dotnet=True), "is_dotnet", True),
        (pe(), "is_dotnet", False),
        (pe(None, {"ntoskrnl.exe": ["IoCreateDevice"]}, subsystem=1), "is_driver", True),
        (pe(None, {"ntdll.dll": ["NtClose"]}, subsystem=1), "is_driver", False),
        (pe(None, {"ntoskrnl.exe": ["IoCreateDevice"]}), "is_driver", False),
        (pe(signature=b"junk"), "is_signed", True),
        (pe(), "is_signed", False),
    ],
)
def test_kinds(made: bytes, fact: str, expected: bool) -> None:
    assert said(made)[fact] is expected


@pytest.mark.parametrize(
    ("made", "anomaly"),
    [
        (pe(link_s=0), "no link time"),
        (pe(base=0x400123), "image base not a multiple of 64 KiB"),
        (pe(extra=[Section(b".x", b"x", 0xE000_0020)]), "section both writable and executable"),
        (pe(extra=[Section(b".text", b"x")]), "sections of the same name"),
        (pe(extra=[Section(b"\x01\x02", b"x")]), "section without a printable name"),
        (pe(extra=[Section(b".z", b"x" * 0x400)])[:-0x200], "section beyond the end of the file"),
    ],
)
def test_anomalies(made: bytes, anomaly: str) -> None:
    assert anomaly in said(made)["anomalies"]


@given(st.binary(max_size=4096))
def test_entropy_is_shannon_s(data: bytes) -> None:
    shares = [n / len(data) for n in Counter(data).values()]
    assert parts.entropy(data) == pytest.approx(-sum(s * math.log2(s) for s in shares), abs=1e-6)


def test_other_content_has_no_format() -> None:
    for content in (b"", b"MZ", b"MZ" + bytes(200), b"\x7fEL", b"#!/bin/sh\n"):
        assert describe(content)["format"] is None


# signatures


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """PKCS #7 as openssl makes it, with the certificate of another between."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("signed")
    for name, subject in (("one", "/C=US/O=Blackwater/CN=Evil Signer"), ("two", "/CN=Other")):
        words = f"req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem -days 30"
        call = ["openssl", *words.split(), "-subj", subject, "-set_serial", "0x1234"]
        subprocess.run(call, cwd=folder, check=True, capture_output=True)
    (folder / "x").write_bytes(b"content")
    words = "smime -sign -in x -signer one.pem -inkey one.key -certfile two.pem -outform DER"
    call = ["openssl", *words.split(), "-nodetach", "-out", "x.p7"]
    subprocess.run(call, cwd=folder, check=True, capture_output=True)
    return (folder / "x.p7").read_bytes()


def test_the_signer_is_named(signed: bytes) -> None:
    found = said(pe(COMPANY, signature=signed))
    assert found["is_signed"] is True
    assert found["cert.subject"] == found["cert.issuer"] == "US, Blackwater, Evil Signer"
    assert found["cert.serial"] == "1234"
    assert found["cert.after"] - found["cert.before"] == 30 * 86_400 * 10**9


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_signature_is_no_error(signed: bytes, data: st.DataObject) -> None:
    made = bytearray(signed)
    for _ in range(3):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    head = struct.pack("<IHH", len(made) + 8, 0x200, 2)
    assert isinstance(signature.signer(head + bytes(made)), dict)


# hostile files


def survives(content: bytes) -> None:
    """Facts or a refusal, never anything else."""
    try:
        found = describe(content)
    except KcapError as e:
        raise AssertionError(content[:64]) from e
    assert "pe" in found or "elf" in found or "damaged" in found or found["format"] is None


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_flips_and_cuts_of_a_pe(data: st.DataObject) -> None:
    made = bytearray(BLACKWATER)
    for _ in range(data.draw(st.integers(0, 4))):
        made[data.draw(st.integers(0, len(made) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    survives(bytes(made[: data.draw(st.integers(0, len(made)))]))


@pytest.mark.skipif(sys.platform != "linux", reason="an ELF of this host")
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_flips_and_cuts_of_an_elf(data: st.DataObject) -> None:
    made = bytearray(Path("/bin/true").read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, 1024) | st.integers(0, len(made) - 1))
        made[at] = data.draw(st.integers(0, 255))
    survives(bytes(made[: data.draw(st.integers(0, len(made)))]))


def test_a_parser_s_own_error_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the two above: what escapes a parser would be seen."""
    import pefile

    def fail(*_: Any, **__: Any) -> Any:
        raise struct.error("torn")

    monkeypatch.setattr(pefile, "PE", fail)
    assert "torn" in describe(BLACKWATER)["damaged"]
    monkeypatch.setattr(pe_, "facts", fail)
    with pytest.raises(struct.error):
        survives(BLACKWATER)


def bounded(content: bytes) -> dict[str, Any]:
    """What a hostile file says, in time."""
    begin = time.monotonic()
    found = describe(content)
    assert time.monotonic() - begin < LIMIT_S
    return found


def patched(content: bytes, at: int, raw: bytes) -> bytes:
    return content[:at] + raw + content[at + len(raw) :]


COFF = 0x44
OPTIONAL = COFF + 20
TABLE = OPTIONAL + 240


def test_many_sections_that_are_all_the_whole_file() -> None:
    size = 32 << 20
    one = struct.pack("<8sIIIIIIHHI", b".s", size, 0x1000, size, 0, 0, 0, 0, 0, 0x6000_0020)
    head = patched(pe(), COFF + 2, struct.pack("<H", 0xFFFF))
    found = bounded((head[:TABLE] + one * 0xFFFF).ljust(size, b"\x5a"))
    sections = found["pe"]["sections"]
    assert len(sections) == parts.SECTIONS
    assert "md5" in sections[0]
    assert "md5" not in sections[-1]
    assert "more than 96 sections" in found["pe"]["anomalies"]


def test_very_many_imports() -> None:
    libraries = {f"l{i}.dll": [f"f{i}_{j}" for j in range(400)] for i in range(200)}
    found = bounded(pe(None, libraries))["pe"]
    assert len(found["symbols"]) <= parts.IMPORTS
    assert found["imports"][0] == "l0.dll"


def test_an_import_table_that_goes_on_forever() -> None:
    """Each descriptor leads to the same table of names."""
    names = imports(0x2000, {"a.dll": [f"f{i}" for i in range(200)]})
    first = names[:20]
    made = pe(None, None, extra=[Section(b".idata", first * 40_000 + names, 0x4000_0040)])
    made = patched(made, OPTIONAL + 112 + 8, struct.pack("<II", 0x2000, 20 * 40_000))
    assert bounded(made)["format"] == "pe"


def test_a_resource_directory_that_leads_to_itself() -> None:
    loop = struct.pack("<IIHHHH", 0, 0, 0, 0, 0, 200)
    loop += b"".join(struct.pack("<II", i, 0x8000_0000) for i in range(200))
    made = pe(None, None, extra=[Section(b".rsrc", loop, 0x4000_0040)])
    made = patched(made, OPTIONAL + 112 + 16, struct.pack("<II", 0x2000, len(loop)))
    assert bounded(made)["format"] == "pe"


def test_an_elf_whose_sections_are_all_the_whole_file() -> None:
    size = 32 << 20
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 64, 0, 64, 56, 0xFFFF, 64, 0xFFFF, 0)
    section = struct.pack("<IIQQQQIIQQ", 0, 7, 0, 0, 0, size, 0, 0, 1, 0)
    found = bounded((head + section * 0xFFFF).ljust(size, b"\0"))["elf"]
    assert len(found["sections"]) == parts.SECTIONS
    assert found["nsections"] == 0xFFFF


def test_what_is_longer_is_looked_at_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = said(BLACKWATER)
    monkeypatch.setattr(parts, "CONTENT_BYTES", 0x600)
    cut = said(BLACKWATER)
    assert cut["sections"][0] == whole["sections"][0]
    assert "resources" not in cut


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pefile", None)
    with pytest.raises(MissingExtraError) as caught:
        describe(BLACKWATER)
    assert "kcap[binaries]" in str(caught.value.hint)


# ELF against another reader


def elves() -> list[Path]:
    """Programs and libraries of this host, and our own object for the kernel."""
    folders = ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu")
    found = [p for f in folders if Path(f).is_dir() for p in sorted(Path(f).iterdir())]
    chosen = [p for p in found if p.is_file() and p.stat().st_size < 4 << 20]
    random.Random(5).shuffle(chosen)
    own = sorted((Path(__file__).parent.parent / "readers/live/bpf").glob("*.o"))
    return own + [p for p in chosen if p.read_bytes()[:4] == b"\x7fELF"][:60]


@pytest.mark.skipif(sys.platform != "linux", reason="ELF files of this host")
def test_elf_files_say_what_pyelftools_reads() -> None:
    elffile = pytest.importorskip("elftools.elf.elffile")
    checked = 0
    for path in elves():
        content = path.read_bytes()
        found = elf.facts(content)
        with path.open("rb") as stream:
            oracle = elffile.ELFFile(stream)
            sections = list(oracle.iter_sections())
            names = [s.name for s in sections[1 : parts.SECTIONS + 1]]
            assert [s["name"] for s in found["sections"]] == names, path
            assert found["machine"] == oracle["e_machine"].removeprefix("EM_").lower()
            assert found["entrypoint"] == oracle["e_entry"]
            dynamic = oracle.get_section_by_name(".dynamic")
            tags = list(dynamic.iter_tags()) if dynamic is not None else []
            needed = [t.needed for t in tags if t.entry.d_tag == "DT_NEEDED"]
            assert found.get("needed", []) == needed, path
            interpreters = [
                s.get_interp_name() for s in oracle.iter_segments() if s["p_type"] == "PT_INTERP"
            ]
            assert [found[n] for n in ("interpreter",) if n in found] == interpreters, path
            assert found["is_stripped"] is (oracle.get_section_by_name(".symtab") is None)
            note = oracle.get_section_by_name(".note.gnu.build-id")
            builds = [n["n_desc"] for n in note.iter_notes()] if note is not None else []
            assert [found[n] for n in ("build_id",) if n in found] == builds, path
            checked += 1
    assert checked
