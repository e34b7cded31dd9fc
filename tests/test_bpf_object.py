"""The kernel program that is shipped is what its source says, and this kernel takes all of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from kcap.errors import PrivilegeError
from kcap.readers.live.bpf import events, loader, system
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.elf import ElfObject
from kcap.readers.live.bpf.program import OBJECT

SOURCE = Path(__file__).parent.parent / "readers" / "live" / "bpf"
COMPILER = "clang version 14."
MAKE = ("make", "--no-print-directory", "-C")


def shipped() -> bytes:
    """The committed object."""
    return resources.files("kcap.readers.live.bpf").joinpath(OBJECT).read_bytes()


def compiler() -> str | None:
    """What the compiler calls itself, None where one of the tools is missing."""
    if not all(shutil.which(tool) for tool in ("clang", "llvm-strip", "llvm-objcopy", "make")):
        return None
    told = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True)
    return told.stdout


@pytest.fixture
def rebuilt(tmp_path: Path) -> Path:
    """A folder with the sources and the Makefile."""
    told = compiler()
    if told is None or COMPILER not in told:
        pytest.skip(f"needs {COMPILER}x, llvm and make")
    folder = tmp_path / "readers" / "live" / "bpf"
    folder.mkdir(parents=True)
    for path in SOURCE.glob("*.[ch]"):
        shutil.copy(path, folder)
    shutil.copy(SOURCE.parents[2] / "Makefile", tmp_path)
    return tmp_path


def test_each_object_is_its_source(rebuilt: Path) -> None:
    """Built anew in another folder they are the same, byte for byte."""
    subprocess.run([*MAKE, str(rebuilt), "bpf"], check=True)
    sources = sorted(SOURCE.glob("*.bpf.c"))
    assert SOURCE / "recorder.bpf.c" in sources
    names = [f"{path.stem}.o" for path in sources]
    assert sorted(path.name for path in SOURCE.glob("*.bpf.o")) == names
    for name in names:
        made = (rebuilt / "readers/live/bpf" / name).read_bytes()
        assert made == (SOURCE / name).read_bytes(), name


def test_another_source_is_another_object(rebuilt: Path) -> None:
    """The control: one changed number shows."""
    path = rebuilt / "readers/live/bpf/record.h"
    text = path.read_text()
    path.write_text(text.replace("#define KCAP_STRING 4096", "#define KCAP_STRING 2048"))
    subprocess.run([*MAKE, str(rebuilt), "bpf"], check=True)
    assert (rebuilt / "readers/live/bpf" / OBJECT).read_bytes() != shipped()


def test_words_of_the_table_are_those_of_the_header() -> None:
    """Handlers and flags of linux_events.tsv have the numbers that record.h gives them."""
    text = (SOURCE / "record.h").read_text()
    flags = dict(re.findall(r"KCAP_(\w+) = (\d+),", text))
    known = {"ok": "ONLY_OK", "failed": "ONLY_FAILED"}
    for word, number in events.FLAGS.items():
        assert int(flags[known.get(word, word.upper())]) == number
    body = re.search(r"enum kcap_handler \{(.*?)\};", text, re.DOTALL)
    assert body is not None
    order = re.findall(r"KCAP_(\w+)", body[1])
    for word, number in events.HANDLERS.items():
        assert order.index(word.upper().replace("EXEC_FAILED", "EXEC")) == number
    numbers = ElfObject(shipped()).btf
    assert numbers.size("kcap_call") == 16


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_this_kernel_takes_every_part_for_artifacts() -> None:
    """Nothing is refused; each field is found under one of its names."""
    cpus = system.possible_cpus()
    content = (SOURCE / "artifacts.bpf.o").read_bytes()
    sizes = {"scratches": cpus, "flows": cpus}
    try:
        loaded = loader.load(content, Btf.of_kernel(), sizes=sizes)
    except PrivilegeError as error:
        pytest.skip(f"BPF is refused here: {error}")
    with loaded:
        assert loaded.refused == {}
        assert loaded.unavailable == ()
        assert not {"rare", "hot"} & loaded.maps.keys(), "maps of the recorder are made in vain"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("typed", [0, 1])
def test_this_kernel_takes_every_part(typed: int) -> None:
    """Nothing is refused, with either way to read; each field is found under one of its names."""
    try:
        types = Btf.of_kernel()
        if typed and "BPF_FUNC_task_pt_regs" not in types.enum("bpf_func_id"):
            pytest.skip("this kernel gives no types to what the program reads")
        loaded = loader.load(
            shipped(),
            types,
            constants={"typed": typed},
            sizes={"scratches": system.possible_cpus()},
        )
    except PrivilegeError as error:
        pytest.skip(f"BPF is refused here: {error}")
    with loaded:
        assert loaded.refused == {}
        assert loaded.unavailable == ()
