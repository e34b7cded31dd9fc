"""BTF: places of fields are the compiler's, damage is an error of ours."""

from __future__ import annotations

import ctypes
import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from btf_support import (
    CONST,
    DATASEC,
    ENUM,
    ENUM64,
    PTR,
    STRUCT,
    TYPEDEF,
    UNION,
    VOLATILE,
    Maker,
    probe,
)
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import (
    DamagedError,
    KcapError,
    LimitError,
    NotACaptureError,
    TruncatedError,
)
from kcap.readers.live.bpf import btf
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.elf import ElfObject
from kcap.readers.live.bpf.offsets import NOWHERE, field_path, resolve

C_TYPES = (ctypes.c_uint8, ctypes.c_int16, ctypes.c_uint32, ctypes.c_int64, ctypes.c_void_p)

Shape = Any  # an index of C_TYPES, ("array", shape, count), or (kind, named, [shape, ...])
SHAPES: st.SearchStrategy[Shape] = st.recursive(
    st.integers(0, len(C_TYPES) - 1),
    lambda inner: (
        st.tuples(st.just("array"), inner, st.integers(1, 5))
        | st.tuples(
            st.sampled_from(("struct", "union")),
            st.booleans(),
            st.lists(inner, min_size=1, max_size=4),
        )
    ),
    max_leaves=12,
)


class Pair:
    """The same types as ctypes lays them out, and as BTF."""

    def __init__(self) -> None:
        self.maker = Maker()
        self.basic = [
            self.maker.integer("u8", 1),
            self.maker.integer("s16", 2, signed=True),
            self.maker.integer("u32", 4),
            self.maker.integer("s64", 8, signed=True),
            self.maker.add(PTR),
        ]
        self.names = 0

    def name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def made(self, shape: Shape) -> tuple[Any, int, list[tuple[str, int]], bool]:
        """Of a shape: ctypes type, BTF type, fields with their places, whether they are inlined."""
        if isinstance(shape, int):
            number = self.basic[shape]
            return C_TYPES[shape], self.maker.add(CONST, "", number), [], False
        if shape[0] == "array":
            item, number, _, _ = self.made(shape[1])
            return item * shape[2], self.maker.array(number, shape[2]), [], False
        kind, named, shapes = shape
        fields, members, places = [], [], []
        for inner in shapes:
            of, number, below, inlined = self.made(inner)
            name = "" if inlined else self.name()
            fields.append((name or self.name(), of))
            members.append((name, number))
            places.append((name, below))
        base = ctypes.Structure if kind == "struct" else ctypes.Union
        made = type("Made", (base,), {"_fields_": fields})
        at = [getattr(made, field).offset for field, _ in fields]
        found: list[tuple[str, int]] = []
        for (name, below), offset in zip(places, at, strict=True):
            found += [(name, offset)] if name else []
            found += [(f"{name}.{path}" if name else path, offset + o) for path, o in below]
        bits = [(name, of, offset * 8) for (name, of), offset in zip(members, at, strict=True)]
        own = STRUCT if kind == "struct" else UNION
        number = self.maker.struct("", ctypes.sizeof(made), *bits, kind=own)
        if named:
            number = self.maker.add(TYPEDEF, self.name(), self.maker.add(VOLATILE, "", number))
        return made, number, found, not named


@given(st.lists(SHAPES, min_size=1, max_size=4), st.integers(1, 64))
def test_fields_are_where_the_compiler_puts_them(shapes: list[Shape], shift: int) -> None:
    """Every path leads to the offset of ctypes; negative control: moved by bytes, it does not."""
    pair = Pair()
    made, number, places, _ = pair.made(("struct", True, shapes))
    inner = Btf(pair.maker.made()).strip(number)
    members = Btf(pair.maker.made()).members(inner)
    size = ctypes.sizeof(made)
    pair.maker.struct("top", size, *((n, of, bits) for n, of, bits, _ in members))
    pair.maker.struct("moved", size, *((n, of, bits + 8 * shift) for n, of, bits, _ in members))
    types = Btf(pair.maker.made())

    assert [(path, types.offset(f"top.{path}")) for path, _ in places] == places
    assert all(types.offset(f"moved.{path}") == at + shift for path, at in places)
    assert types.size("top") == size
    assert {m.name: m.offset for m in types.struct("top").members} == {
        path: at for path, at in places if "." not in path
    }


def test_a_member_is_described_as_numpy_needs_it() -> None:
    """Kind, sign, items and width come from the types behind typedefs."""
    make = Maker()
    small, letter = make.integer("short", 2, signed=True), make.integer("char", 1)
    alias = make.add(TYPEDEF, "s16", small)
    color = make.add(ENUM, "color", 4, make.text("RED"), 0, entries=1)
    pair = make.struct("pair", 4, ("a", alias, 0), ("b", alias, 16))
    grid = make.array(make.array(letter, 8), 3)
    members = [("pairs", make.array(pair, 2), 0), ("color", color, 64), ("text", grid, 96)]
    make.struct("top", 36, *members)
    bits = [make.text("low"), letter, 3 << 24, make.text("rest"), letter, 3 | 5 << 24]
    make.add(STRUCT, "bits", 1, *bits, entries=2, flag=1)
    types = Btf(make.made())

    pairs, shade, text = types.struct("top").members
    assert (pairs.kind, pairs.size, pairs.item_size, pairs.counts) == ("struct", 8, 4, (2,))
    assert (pairs.type_name, shade.kind, shade.offset, shade.signed) == ("pair", "enum", 8, False)
    assert (text.size, text.counts, text.item_size, text.kind) == (24, (3, 8), 1, "int")
    assert [m.signed for m in types.struct("pair").members] == [True, True]
    assert [(m.name, m.bits) for m in types.struct("bits").members] == [("low", 3), ("rest", 5)]
    assert types.offset("bits.rest") is None, "a bit field has no place in bytes"
    assert types.offset("pair.b") == 2


def test_what_is_not_there_is_none() -> None:
    """Types, fields and fields of what has none are not found, and that is no error."""
    make = Maker()
    number = make.integer("int", 4, signed=True)
    make.struct("top", 8, ("a", number, 0))
    types = Btf(make.made())

    assert types.offset("top.a") == 0
    for path in ("top.b", "nothing.a", "top.a.b", "int.a", "", "top.", ".a"):
        assert types.offset(path) is None, path
    assert types.has_type("int")
    assert not types.has_type("in")
    assert not types.has_type("")
    assert types.size("int") is None
    assert types.enum("int") == {}
    with pytest.raises(KcapError, match="no structure int"):
        types.struct("int")


def test_values_of_enumerations() -> None:
    """Signed ones, unsigned ones, and those of 64 bits."""
    make = Maker()
    make.add(ENUM, "plain", 4, make.text("A"), 1, make.text("B"), 0xFFFFFFFF, entries=2)
    make.add(ENUM, "signed", 4, make.text("C"), -2, entries=1, flag=1)
    make.add(ENUM64, "wide", 8, make.text("D"), 5, 1, entries=1)
    make.add(ENUM64, "deep", 8, make.text("E"), -2, -1, entries=1, flag=1)
    types = Btf(make.made())

    assert types.enum("plain") == {"A": 1, "B": 0xFFFFFFFF}
    assert types.enum("signed") == {"C": -2}
    assert types.enum("wide") == {"D": (1 << 32) + 5}
    assert types.enum("deep") == {"E": -2}


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda d: d[:0], TruncatedError, "no BTF header"),
        (lambda d: b"\xeb\x9f" + d[2:], NotACaptureError, "big-endian"),
        (lambda d: b"\x7fELF" + d[4:], NotACaptureError, "no BTF"),
        (lambda d: d[:2] + b"\2" + d[3:], NotACaptureError, "version 2"),
        (lambda d: d[:-1], TruncatedError, "cut off"),
        (lambda d: d[:-1] + b"x", DamagedError, "end with a zero"),
        (lambda d: d[:31] + b"\x1f" + d[32:], DamagedError, "unknown kind"),
        (lambda d: d + bytes(btf.FILE_BYTES), LimitError, "more types"),
    ],
)
def test_what_is_wrong_is_said(
    spoil: Callable[[bytes], bytes], error: type[KcapError], said: str
) -> None:
    """Each way to be no BTF has its own error."""
    make = Maker()
    make.integer("int", 4)
    good = make.made()
    Btf(good)

    with pytest.raises(error, match=said):
        Btf(spoil(good), file="types")


def test_circles_end() -> None:
    """Types that refer to themselves are damage, however they do it."""
    make = Maker()
    loop = make.count + 1
    make.add(TYPEDEF, "loop", loop)
    array = make.count + 1
    make.array(array, 2)
    inside = make.count + 1
    make.struct("", 8, ("", inside, 0), ("", inside, 0))
    make.struct("a", 8, ("x", loop, 0))
    make.struct("b", 8, ("x", array, 0))
    make.struct("c", 8, ("", inside, 0))
    make.struct("d", 8, ("x", 999, 0))
    types = Btf(make.made())

    for name in "abcd":
        with pytest.raises((DamagedError, LimitError)):
            types.struct(name)
    with pytest.raises((DamagedError, LimitError)):
        types.offset("c.x")


def everything(data: bytes) -> None:
    """Ask for all that a damaged file could answer wrongly."""
    types = Btf(data)
    for name in ("top", "record", "n1", "n5", "count", "color"):
        types.offset(f"{name}.n1")
        types.enum(name)
        types.size(name)
        if types.has_type(name):
            types.struct(name)


@given(st.integers(0, 1 << 32))
def test_damage_is_an_error_of_ours(seed: int) -> None:
    """Cut or changed anywhere, nothing but a KcapError comes out."""
    rng = random.Random(seed)
    pair = Pair()
    _, number, _, _ = pair.made(("struct", False, [0, ("array", ("union", True, [2, 3]), 4)]))
    pair.maker.struct("top", 64, ("n1", number, 0), ("color", number, 64))
    pair.maker.add(DATASEC, ".maps", 0, number, 0, 8, entries=1)
    data = bytearray(pair.maker.made())
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    try:
        everything(bytes(data))
    except KcapError as error:
        assert str(error)  # noqa: PT017


def test_the_object_of_the_tests_is_as_bpftool_reads_it(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    """All members of all structures of a compiled object are where bpftool sees them."""
    path = tmp_path / "probe.o"
    path.write_bytes(probe())
    compared = same_as_bpftool(ElfObject(probe()).btf, str(path), program("bpftool"))

    assert compared >= 7


def same_as_bpftool(types: Btf, path: str, bpftool: str) -> int:
    """Compare named structures; how many members there were."""
    done = subprocess.run(
        [bpftool, "-j", "btf", "dump", "file", path], capture_output=True, check=True
    )
    compared, seen = 0, set()
    for entry in json.loads(done.stdout)["types"]:
        name = entry["name"]
        if entry["kind"] not in ("STRUCT", "UNION") or name == "(anon)" or name in seen:
            continue
        seen.add(name)
        for member in entry["members"]:
            if member["name"] != "(anon)" and not member.get("bitfield_size"):
                found = types.offset(f"{name}.{member['name']}")
                assert found == member["bits_offset"] // 8, f"{name}.{member['name']}"
                compared += 1
    return compared


@pytest.fixture(scope="module")
def kernel() -> Btf:
    """The types of this machine's kernel."""
    try:
        return Btf.of_kernel()
    except KcapError as error:
        pytest.skip(str(error))


@pytest.mark.long
def test_the_kernel_is_as_bpftool_reads_it(kernel: Btf, program: Callable[[str], str]) -> None:
    """All members of all the kernel's structures are where bpftool sees them."""
    assert same_as_bpftool(kernel, btf.KERNEL, program("bpftool")) > 20_000


def test_the_kernel_is_read_quickly(kernel: Btf) -> None:
    """All of it and a hundred fields cost less than counting its bytes five times."""
    data = Path(btf.KERNEL).read_bytes()
    begin_s = time.process_time()
    types = Btf(data)
    for _ in range(25):
        for path in ("task_struct.tgid", "mm_struct.arg_start", "file.f_inode", "inode.i_ino"):
            assert types.offset(path) == kernel.offset(path) is not None

    took_s = time.process_time() - begin_s
    begin_s = time.process_time()
    Counter(data)
    assert took_s < 5 * (time.process_time() - begin_s)
    assert types.has_type("btf_trace_sched_process_exec")
    assert types.enum("bpf_map_type")["BPF_MAP_TYPE_RINGBUF"] == 27


def test_no_types_is_an_error_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BTF, the error says what else can be done; the variable names another file."""
    monkeypatch.setenv(btf.PATH_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(KcapError, match="none: the kernel's types cannot be read") as caught:
        Btf.of_kernel()
    assert "--source proc" in str(caught.value.hint)

    make = Maker()
    make.struct("mine", 12)
    (tmp_path / "none").write_bytes(make.made())
    assert Btf.of_kernel().size("mine") == 12


@given(st.lists(st.from_regex(r"(__)?[a-z][a-z0-9]*(_[a-z0-9]+)*", fullmatch=True), min_size=2))
def test_constants_name_their_field(parts: list[str]) -> None:
    """Dots become two underscores, and back."""
    assert field_path("o_" + "__".join(parts)) == ".".join(parts)


def test_a_missing_field_is_nowhere_and_listed() -> None:
    """What the kernel lacks gets the number that says so; other constants are left alone."""
    make = Maker()
    make.struct("inode", 16, ("__i_count", make.integer("int", 4), 64))
    found = resolve(["o_inode____i_count", "o_inode__i_count", "other"], Btf(make.made()))

    assert found.constants == {"o_inode____i_count": 8, "o_inode__i_count": NOWHERE}
    assert found.unavailable == ("inode.i_count",)


@pytest.mark.parametrize(
    ("fields", "lacking"),
    [
        (["i_ctime_sec"], ()),
        (["i_ctime"], ()),
        ([], ("inode.i_ctime_sec",)),
    ],
)
def test_a_field_of_another_name_is_not_missing(fields: list[str], lacking: object) -> None:
    """Of the names that kernels gave a field one is enough; without any, one is listed."""
    make = Maker()
    time = make.struct("timespec64", 16, ("tv_sec", make.integer("s64", 8, signed=True), 0))
    make.struct("inode", 16, *((name, time, 0) for name in fields))
    asked = ["o_inode__i_ctime__tv_sec", "o_inode____i_ctime__tv_sec", "o_inode__i_ctime_sec"]
    found = resolve(asked, Btf(make.made()))

    assert found.unavailable == lacking
    assert sum(place == 0 for place in found.constants.values()) == len(fields)
