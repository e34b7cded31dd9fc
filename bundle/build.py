"""Makes the offline bundle: one archive that records on a host that has nothing, not even a shell.

In it are Debian's Python 3.11, the libraries that it and the wheels are linked with, and kcap. What
is taken is what is installed here: Debian's packages, and the wheels of the environment that runs
this. The same inputs make the same bytes.

::

    kcap                launcher, linked with nothing
    bin/, lib/          loader, libraries, Python and its modules; lib/kcap: the wheels and kcap
    LICENSES/           those of everything that is inside
    MANIFEST            SHA-256 of each file, for ``sha256sum -c MANIFEST``
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from contents import (
    PACKAGES,
    PYTHON,
    BundleError,
    copy,
    copy_python,
    copy_wheels,
    excluded,
    run,
    write_landmark,
)

ROOT: Final = Path(__file__).resolve().parent.parent
HERE: Final = ROOT / "bundle"

LOADER: Final = "ld-linux-x86-64.so.2"
EPOCH_S: Final = 315_532_800
"""1980: what every file is dated with; some programs take a zero for no date."""

_UNREAD: Final = {
    LOADER: (b"/etc/ld.so.preload\0", b"/dev/null/preload\0\0"),
    "libc.so.6": (b"/etc/nsswitch.conf\0", b"/dev/null/nsswitch\0"),
}
"""Files of a host that name libraries to load, and what never exists instead."""
assert all(len(name) == len(instead) for name, instead in _UNREAD.values())

_CHANGES: Final = f"""\
What was changed in files of others, and how to take it back.

lib/{LOADER}, lib/libc.so.6  (GNU C library)
    The names /etc/ld.so.preload and /etc/nsswitch.conf are replaced by names of files that never
    exist. In a host's files of these names stand libraries of that host, which the loader and the
    C library would load into this program: programs that hide themselves make use of the first.
    The unchanged files are those of Debian's package libc6, see LICENSES/PACKAGES.

lib/python3.11, lib/kcap  (Python, wheels)
    Parts that kcap does not use are left out; no file is changed. Files *.pyc are compiled from
    the sources beside them.
"""

_README: Final = """\
kcap {version}, for Linux on x86-64, with everything it needs. Unpack it anywhere, or run it from a
read-only medium:

    ./kcap record -o host.kcap --duration 60
    ./kcap info host.kcap

It writes the output that it is told to write, and nothing else. 'sha256sum -c MANIFEST' checks
that the bundle is whole; LICENSES/ has the licences of what is inside.
"""


def check_host() -> None:
    """Refuse where the inputs are not those that a bundle is made of.

    Raises:
        BundleError: Another machine or Python, or a file of Debian's that somebody changed.
    """
    if os.uname().machine != "x86_64":
        raise BundleError("bundles are made on x86-64, for x86-64")
    if not PYTHON.exists():
        raise BundleError(f"{PYTHON} is missing; on Debian 12: apt-get install python3.11")
    if sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython":
        raise BundleError(
            "the wheels are taken from the environment that runs this, and have to be those of "
            "CPython 3.11: make it anew with make PYTHON=python3.11"
        )
    changed = run("dpkg", "--verify", *PACKAGES)
    if changed:
        raise BundleError(f"files are not as Debian packaged them:\n{changed}")


def copy_kcap(tree: Path, work: Path) -> None:
    """Build kcap's wheel from a copy of the sources, and unpack it.

    Args:
        tree: The bundle's folder.
        work: A folder for what comes between.
    """
    checkout = work / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", "*.py[cod]")
    for name in ("kcap", "readers", "writers", "tools", "spec"):
        # The links in kcap/ are not followed: pyproject.toml says where their packages lie.
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, checkout / name)
    run(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-qq", "--no-deps",
        "--no-build-isolation", "--no-index", "--wheel-dir", work, checkout,
    )  # fmt: skip
    [wheel] = work.glob("kcap-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not excluded(name, ["*.dist-info/RECORD", "*/"]):
                target = tree / "lib/kcap" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
                target.chmod(0o644)
    copy(ROOT / "LICENSE", tree / "LICENSES/kcap/LICENSE")
    copy(HERE / "main.py", tree / "lib/kcap/__main__.py")


def modules(tree: Path) -> Iterator[Path]:
    """The programs and modules that others are loaded for.

    Args:
        tree: The bundle's folder.

    Yields:
        The interpreter, and every extension module.
    """
    yield tree / "bin/python3.11"
    yield from sorted(tree.rglob("*.cpython-311-x86_64-linux-gnu.so"))
    yield from sorted(tree.rglob("*.abi3.so"))


def linked(objects: Iterable[Path]) -> set[Path]:
    """The shared objects that some are linked with, directly or not, the loader with them.

    Args:
        objects: Programs, modules or libraries.

    Returns:
        Their paths, links not followed.

    Raises:
        BundleError: One is not to be found.
    """
    listing = run("ldd", *objects)
    if lost := re.findall(r"^\s+(\S+) => not found", listing, re.MULTILINE):
        raise BundleError(f"libraries are missing: {', '.join(sorted(set(lost)))}")
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE)}


def copy_libraries(tree: Path) -> dict[str, Path]:
    """Copy the host's libraries that are needed, and drop those of wheels that are not.

    Args:
        tree: The bundle's folder.

    Returns:
        Name in ``lib`` to the host's file.

    Raises:
        BundleError: The C library is not one that can be changed as it has to be.
    """
    roots = list(modules(tree))
    needed = linked(roots)
    inside = {path.resolve() for path in needed if path.is_relative_to(tree)} | set(roots)
    for path in (tree / "lib/kcap").rglob("*.so*"):
        if path.resolve() not in inside:
            path.unlink()
    taken = {path.name: path for path in needed if not path.is_relative_to(tree)}
    for name, path in taken.items():
        copy(path, tree / "lib" / name)
    for name, (unread, instead) in _UNREAD.items():
        target = tree / "lib" / name
        content = target.read_bytes()
        if content.count(unread) != 1:
            raise BundleError(f"{taken[name]}: {unread[:-1].decode()} should stand in it once")
        target.write_bytes(content.replace(unread, instead))
    return dict(sorted(taken.items()))


def owner(path: Path) -> str:
    """The Debian package that a file is of.

    Args:
        path: The file, as a program finds it.

    Returns:
        The package's name, without its architecture.

    Raises:
        BundleError: It is of none.
    """
    real = path.resolve()
    names = {path, real, Path(str(real).removeprefix("/usr")), Path("/usr", str(path).lstrip("/"))}
    for name in sorted(names):
        try:
            return run("dpkg", "-S", name).split(":", 1)[0]
        except BundleError:  # Debian knows a file below /lib by that name or by its /usr/lib
            continue
    raise BundleError(f"{path} is of no Debian package")


def write_licenses(tree: Path, libraries: Iterable[Path], wheels: dict[str, str]) -> None:
    """Write the licences of what Debian brought, and what everything is, and of which version.

    Args:
        tree: The bundle's folder.
        libraries: The host's files that were copied.
        wheels: Name to version.
    """
    packages = sorted({*PACKAGES, *(owner(path) for path in libraries)})
    lines = [f"{name} {version}" for name, version in wheels.items()]
    for package in packages:
        copy(
            Path("/usr/share/doc", package, "copyright"), tree / "LICENSES" / package / "copyright"
        )
        version = run("dpkg-query", "-W", "-f", "${source:Package} ${source:Version}", package)
        lines.append(f"{package} (Debian, of source {version})")
    # Debian's files of copyrights only name the licences that many packages have.
    named = {
        name.rstrip(".")
        for file in (tree / "LICENSES").rglob("copyright")
        for name in re.findall(r"/usr/share/common-licenses/([\w.+-]+)", file.read_text("utf-8"))
    }
    for name in sorted(named):
        copy(Path("/usr/share/common-licenses", name), tree / "LICENSES/common-licenses" / name)
    (tree / "LICENSES/PACKAGES").write_text("\n".join(lines) + "\n", "utf-8")
    (tree / "LICENSES/CHANGES").write_text(_CHANGES, "utf-8")


def build_launcher(target: Path) -> None:
    """Compile the launcher.

    Args:
        target: Its file.
    """
    run(
        "gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Os", "-ffreestanding",
        "-fno-stack-protector", "-fno-tree-loop-distribute-patterns", "-fno-pie", "-no-pie",
        "-fcf-protection=none", "-static", "-nostdlib", "-Wl,--build-id=none",
        "-Wl,-z,noexecstack", "-s", "-o", target, HERE / "launcher.c",
    )  # fmt: skip


def compile_modules(tree: Path) -> None:
    """Compile Python's modules, so that a start neither does nor tries to write what it did.

    Args:
        tree: The bundle's folder.
    """
    # Never compared with its source: a file of a medium may have any time. A fixed order of sets,
    # and names without this folder, for the same bytes every time.
    options = ("-q", "--invalidation-mode", "unchecked-hash", "-s", tree, "-p", "/kcap", "-j", "1")
    lib = tree / "lib"
    run(PYTHON, "-I", "-m", "compileall", *options, lib, env={"PYTHONHASHSEED": "0"})


def files(tree: Path) -> list[Path]:
    """Every file of the bundle.

    Args:
        tree: The bundle's folder.

    Returns:
        Sorted by their path.
    """
    return sorted((p for p in tree.rglob("*") if p.is_file()), key=lambda p: p.as_posix())


def write_manifest(tree: Path) -> None:
    """Write every file's SHA-256.

    Args:
        tree: The bundle's folder.
    """
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(tree).as_posix()}\n"
        for path in files(tree)
    ]
    (tree / "MANIFEST").write_text("".join(lines), "utf-8")


def pack(tree: Path, target: Path, *, level: int = 9) -> None:
    """Pack a folder, so that the same files make the same bytes.

    Args:
        tree: The folder; its name is the archive's first.
        target: The archive.
        level: Of gzip.
    """

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = EPOCH_S
        member.mode = 0o755 if member.isdir() or member.mode & stat.S_IXUSR else 0o644
        return member

    half = target.with_name(f"{target.name}.part")
    half.parent.mkdir(parents=True, exist_ok=True)
    with (
        half.open("wb") as raw,
        gzip.GzipFile("", "wb", level, raw, 0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in [tree, *sorted(tree.rglob("*"), key=lambda p: p.as_posix())]:
            name = path.relative_to(tree.parent).as_posix()
            tar.add(path, name, recursive=False, filter=plain)
    half.replace(target)


def build(work: Path, dist: Path, *, say: Callable[[str], None] = print) -> Path:
    """Make the bundle.

    Args:
        work: A folder for what comes between; emptied first.
        dist: The archive's folder.
        say: Is told what came out.

    Returns:
        The archive.

    Raises:
        BundleError: It cannot be made here.
    """
    check_host()
    [version] = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "kcap/__init__.py").read_text("utf-8"), re.MULTILINE
    )
    name = f"kcap-{version}-linux-x86_64"
    shutil.rmtree(work, ignore_errors=True)
    tree = work / name
    tree.mkdir(parents=True)
    copy_python(tree)
    write_landmark(tree)
    wheels = copy_wheels(tree)
    copy_kcap(tree, work)
    libraries = copy_libraries(tree)
    write_licenses(tree, libraries.values(), wheels)
    build_launcher(tree / "kcap")
    (tree / "README").write_text(_README.format(version=version), "utf-8")
    compile_modules(tree)
    write_manifest(tree)
    archive = dist / f"{name}.tar.gz"
    pack(tree, archive)
    unpacked = sum(path.stat().st_size for path in files(tree))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    say(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB, unpacked {unpacked / 1e6:.0f} MB")
    say(f"SHA-256 {digest}")
    return archive


def main() -> int:
    """The command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Make the offline bundle.")
    parser.add_argument("--work", type=Path, default=ROOT / "build/bundle")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    try:
        build(options.work.resolve(), options.dist.resolve())
    except BundleError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
