"""A virtual machine with another kernel: a Debian cloud kernel under QEMU, nothing installed.

QEMU emulates (TCG), so this works where there is no KVM. The kernel comes out of Debian's package;
the first disk holds this Python, the libraries that kcap needs and their shared objects; the second
brings in an archive, the third takes one out. What can be kept is kept below ``build/kernels``.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple
from unittest import SkipTest

ROOT: Final = Path(__file__).resolve().parent.parent.parent
CACHE: Final = ROOT / "build" / "kernels"
OUTPUT_BYTES: Final = 512 << 20
"""Room for what the machine hands out."""

_MODULES: Final = ("virtio_pci", "virtio_blk")
"""What the first disk needs and may not be built in."""

_KEPT: Final = ("dummy",)
"""Modules that tests load: those that need no other."""

_LEFT_OUT: Final = shutil.ignore_patterns(
    "__pycache__", "test", "tests", "site-packages", "include", "idlelib", "ensurepip", "config-*",
    "*.a", "turtledemo", "lib2to3", "pydoc_data",
)  # fmt: skip

_INIT: Final = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module; done
/bin/busybox mount -t ext4 /dev/vda /root || /bin/busybox poweroff -f
exec /bin/busybox switch_root /root /sbin/init
"""

_SECOND_INIT: Final = """#!/bin/busybox sh
export PATH=/bin:/sbin HOME=/tmp
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mkdir -p /dev/shm
busybox mount -t tmpfs shm /dev/shm
busybox mount -t tmpfs tmp /tmp
busybox mount -t cgroup2 cgroup /sys/fs/cgroup
busybox ifconfig lo 127.0.0.1 up
cd /tmp && busybox tar -xf /dev/vdb
busybox sh ./run; echo "exit code $?"
busybox tar -cf /dev/vdc -C /tmp out; busybox sync
busybox poweroff -f
"""


class Image(NamedTuple):
    """What a machine boots."""

    version: str
    kernel: Path
    initramfs: Path
    modules: Path
    """A folder of modules that a test may load, as ``dummy.ko``."""


def program(name: str, package: str) -> str:
    """Find a program of the host.

    Args:
        name: Its name.
        package: Debian's package of it.

    Returns:
        Its path.

    Raises:
        SkipTest: It is not installed.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise SkipTest(f"{name} is not installed; on Debian: apt-get install {package}")
    return path


def output(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program of the host.

    Args:
        command: Its path and arguments.
        cwd: Where.

    Returns:
        What it printed.
    """
    return subprocess.run(
        command, cwd=cwd, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ).stdout.decode()


def _package(series: str) -> str:
    """The newest cloud kernel of a series that apt knows."""
    names = output(program("apt-cache", "apt"), "pkgnames", f"linux-image-{series}.").split()
    kernels = [name for name in names if re.search(r"\d[^-]*(-\d+)?-cloud-amd64$", name)]
    if not kernels:
        raise SkipTest(f"apt knows no cloud kernel of {series}; apt-get update may help")
    return max(kernels, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def _depends(module: bytes) -> list[str]:
    """The modules that one needs, out of its own description."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def _modules(tree: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Modules and those that they need, in the order of loading."""
    paths = {path.name.split(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    done: set[str] = set()

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in paths:  # not there: built in
            return
        done.add(name)
        content = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            content = lzma.decompress(content)
        for other in _depends(content):
            yield from load(other)
        yield name, content

    for name in names:
        yield from load(name)


def _entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """A file of a cpio archive as the kernel reads it (format newc)."""
    path = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0]
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _initramfs(modules: Iterable[tuple[str, bytes]]) -> bytes:
    busybox = Path(program("busybox", "busybox-static")).read_bytes()
    folders = [_entry(name, 0o40755) for name in ("bin", "dev", "modules", "root")]
    files = [
        _entry("init", 0o100755, _INIT.encode()),
        _entry("bin/busybox", 0o100755, busybox),
        *(_entry(f"modules/{i}-{name}.ko", 0o100644, c) for i, (name, c) in enumerate(modules)),
    ]
    return b"".join([*folders, *files, _entry("TRAILER!!!", 0)])


def image(series: str) -> Image:
    """Get a kernel.

    Args:
        series: As ``6.1``.

    Returns:
        The newest of the series that apt offers, unpacked.

    Raises:
        SkipTest: There is none, or no program to unpack it.
    """
    package = _package(series)
    folder = CACHE / package
    initramfs, modules = folder / "initramfs", folder / "modules"
    if not (initramfs.exists() and modules.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        output(program("apt-get", "apt"), "download", "-qq", package, cwd=folder)
        [archive] = folder.glob("*.deb")
        output(program("dpkg", "dpkg"), "-x", archive, folder / "tree")
        [kernel] = folder.glob("tree/boot/vmlinuz-*")
        kernel.rename(folder / "vmlinuz")
        initramfs.write_bytes(_initramfs(_modules(folder / "tree", _MODULES)))
        modules.mkdir(exist_ok=True)
        for name, content in _modules(folder / "tree", _KEPT):
            (modules / f"{name}.ko").write_bytes(content)
        shutil.rmtree(folder / "tree")
        archive.unlink()
    version = package.removeprefix("linux-image-")
    return Image(version, folder / "vmlinuz", initramfs, modules)


def needed() -> list[str]:
    """The libraries that kcap names."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return list(table["project"]["dependencies"])


def _shared(tree: Path) -> Iterator[str]:
    """The host's shared objects that the programs in a folder are linked with."""
    objects = [path for path in tree.rglob("*") if path.is_file() and ".so" in path.name]
    python = tree / "bin/python3"
    for start in range(0, len(objects), 50):
        command = ["ldd", str(python), *map(str, objects[start : start + 50])]
        listing = subprocess.run(command, capture_output=True, check=False).stdout.decode()
        yield from re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE)


def fill(tree: Path) -> None:
    """Lay out the first disk.

    Args:
        tree: A folder that is not there yet, or empty.
    """
    for name in ("bin", "sbin", "dev", "proc", "sys", "tmp", "etc", "packages", "root"):
        (tree / name).mkdir(parents=True)
    python = Path(sys.executable).resolve()
    shutil.copy(python, tree / "bin/python3")
    shutil.copy(program("busybox", "busybox-static"), tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    stdlib = Path(sysconfig.get_path("stdlib"))
    home = tree / str(stdlib).lstrip("/")
    shutil.copytree(stdlib, home, ignore=_LEFT_OUT)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    output(*pip, "--target", tree / "packages", *needed())
    # Not by a variable: as root, kcap takes no code from where PYTHONPATH says.
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    libraries = tree / sysconfig.get_path("purelib", vars=base).lstrip("/")
    libraries.mkdir(parents=True, exist_ok=True)
    (libraries / "packages.pth").write_text("/packages\n")
    for extra in ("pyarrow/include", "pyarrow/tests", "numpy/f2py"):
        shutil.rmtree(tree / "packages" / extra, ignore_errors=True)
    for shared in sorted(set(_shared(tree))):
        if not Path(shared).is_relative_to(tree):
            target = tree / shared.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(shared, target)
    init = tree / "sbin/init"
    init.write_text(_SECOND_INIT)
    init.chmod(0o755)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tree / "etc/os-release").write_text('ID=kcap-test\nPRETTY_NAME="kcap\'s test machine"\n')


def disk() -> Path:
    """Make the first disk: Python and the libraries that kcap needs.

    Returns:
        An image of an ext4 file system.

    Raises:
        SkipTest: A program for it is missing.
    """
    mke2fs = program("mke2fs", "e2fsprogs")
    recipe = "\n".join([Path(__file__).read_text("utf-8"), sys.version, *needed()])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    made = CACHE / f"disk-{key}"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob("disk-*"):
            old.unlink()
        tree, half = CACHE / "tree", CACHE / "half"
        shutil.rmtree(tree, ignore_errors=True)
        half.unlink(missing_ok=True)
        fill(tree)
        output(mke2fs, "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, half, "900m")
        shutil.rmtree(tree)
        half.rename(made)
    return made


def archive(files: Iterable[tuple[Path, str]], run: str) -> bytes:
    """Pack what a machine shall have.

    Args:
        files: Files and folders, and their names there, below the working folder.
        run: A shell script; what it writes into ``out`` is handed out.

    Returns:
        A tar archive.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
        for path, name in files:
            tar.add(path, name, filter=lambda x: None if "__pycache__" in x.name else x)
        text = f"mkdir -p out\n{run}".replace("mkdir", "busybox mkdir", 1).encode()
        head = tarfile.TarInfo("run")
        head.size = len(text)
        tar.addfile(head, io.BytesIO(text))
    return packed.getvalue()


def boot(
    booted: Image,
    brought: bytes,
    folder: Path,
    *,
    first: Path | None = None,
    parallel: bool = True,
    timeout_s: float = 300,
) -> str:
    """Run a machine until it is done.

    Args:
        booted: Its kernel.
        brought: The archive of ``archive``.
        folder: Where ``out`` comes to lie.
        first: The first disk, if not that of ``disk``.
        parallel: Its processors run at the same time. QEMU then may run code that the kernel has
            patched already, which a kernel that patches much does not survive.
        timeout_s: How long it may take.

    Returns:
        What it wrote to its console; the last lines have the script's exit code.

    Raises:
        SkipTest: There is no QEMU.
        subprocess.TimeoutExpired: It took longer.
    """
    qemu = program("qemu-system-x86_64", "qemu-system-x86")
    incoming, outgoing = folder / "in.tar", folder / "out.tar"
    incoming.write_bytes(brought)
    outgoing.touch()
    os.truncate(outgoing, OUTPUT_BYTES)  # sparse
    drives = (f"{first or disk()},snapshot=on", f"{incoming},snapshot=on", str(outgoing))
    threads = "multi" if parallel else "single"
    command = [
        qemu, "-accel", f"tcg,thread={threads}", "-cpu", "max", "-m", "1536", "-smp", "2",
        "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", str(booted.kernel), "-initrd", str(booted.initramfs),
        "-append", "console=ttyS0 quiet panic=-1",
    ]  # fmt: skip
    for drive in drives:
        command += ["-drive", f"file={drive},format=raw,if=virtio"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=True
    )
    with tarfile.open(outgoing) as tar:
        tar.extractall(folder, filter="data")
    incoming.unlink()
    outgoing.unlink()
    return done.stdout.decode(errors="replace")
