"""The offline bundle: its launcher and its archive; whole, it records where there is nothing."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_support import Bare, build, script, sources, unpack

from kcap.readers.live.capabilities import Host, capability

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="for Linux on x86-64"
)

MODULES = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import kcap
for module in pkgutil.walk_packages(kcap.__path__, "kcap."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        print(module.name, error.name)
"""


def own(tree: Path, *words: str) -> str:
    """Run the bundle's Python as its launcher does; give what it printed."""
    loader, lib = tree / "lib/ld-linux-x86-64.so.2", tree / "lib"
    python = [loader, "--inhibit-cache", "--library-path", lib, tree / "bin/python3.11"]
    return subprocess.check_output([*python, "-I", "-S", "-B", *words], text=True)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher beside a loader that says what it was started with."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("launcher") / "the bundle"
    (folder / "lib").mkdir(parents=True)
    script("build").build_launcher(folder / "kcap")
    loader = folder / "lib/ld-linux-x86-64.so.2"
    loader.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; echo --; exec /usr/bin/env\n')
    loader.chmod(0o755)
    return folder / "kcap"


def said(done: subprocess.CompletedProcess[str]) -> tuple[list[str], dict[str, str]]:
    """Words and variables that the loader was started with."""
    words, variables = done.stdout.split("\n--\n")
    return words.split("\n"), dict(line.split("=", 1) for line in variables.splitlines())


def launch(
    *words: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Start a launcher."""
    return subprocess.run(
        list(map(str, words)), cwd=cwd, env=env or {}, capture_output=True, text=True, check=False
    )


def test_the_launcher_finds_its_own_folder(launcher: Path, tmp_path: Path) -> None:
    """From any folder, by any name: the bundle's loader, libraries and Python, and all words."""
    home = launcher.parent
    (tmp_path / "link").symlink_to(launcher)
    expected = [
        "--inhibit-cache", "--library-path", f"{home}/lib", f"{home}/bin/python3.11",
        "-I", "-S", "-B", "-X", "utf8", f"{home}/lib/kcap", "info", "", "a b", "ä",
    ]  # fmt: skip
    for name, cwd in ((launcher, tmp_path), ("./kcap", home), (tmp_path / "link", Path("/"))):
        done = launch(name, "info", "", "a b", "ä", cwd=cwd)
        assert said(done)[0] == expected, done.stderr


def test_the_launcher_keeps_the_hosts_code_out(launcher: Path, tmp_path: Path) -> None:
    """Variables by which loader, Python and libraries load other code are gone; others stay."""
    bad = {
        "LD_PRELOAD": "",
        "LD_LIBRARY_PATH": "/evil",
        "LD_AUDIT": "",
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
        "GCONV_PATH": "/evil",
        "PYTHONPATH": "/evil",
        "OPENSSL_MODULES": "/evil",
        "OPENSSL_CONF": "/evil",
    }
    good = {"LDX": "1", "KCAP_BTF": "/types", "HOME": "/root", "LANG": "C"}

    variables = said(launch(launcher, cwd=tmp_path, env={**bad, **good}))[1]
    variables.pop("PWD", None)  # the shell's own
    variables.pop("_", None)
    variables.pop("SHLVL", None)
    assert variables == {**good, "OPENSSL_CONF": "/dev/null"}


def test_the_launcher_says_what_is_wrong(launcher: Path, tmp_path: Path) -> None:
    """Alone, and in a folder whose name separates folders."""
    for name, why in (("alone", "the bundle is not whole"), ("a:b", "has a ':'")):
        (tmp_path / name).mkdir()
        shutil.copy(launcher, tmp_path / name / "kcap")
        done = launch(tmp_path / name / "kcap", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("kcap: ")
        assert why in done.stderr


def folder(path: Path, *, reverse: bool, umask: int, when: int) -> Path:
    """The same few files, made in another order, with other rights, at another time."""
    names = sorted(["kcap", "lib/a.so", "lib/b/c.py", "README"], reverse=reverse)
    before = os.umask(umask)
    try:
        for name in names:
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(name)
            target.chmod((0o777 if name == "kcap" else 0o666) & ~umask)
            os.utime(target, (when, when))
    finally:
        os.umask(before)
    return path


def test_an_archive_depends_on_content_alone(tmp_path: Path) -> None:
    """Same files, same bytes; one other byte, and one other bit of rights, make another archive."""
    module = script("build")
    one = folder(tmp_path / "1/kcap-1", reverse=False, umask=0o022, when=10)
    two = folder(tmp_path / "2/kcap-1", reverse=True, umask=0o077, when=20)

    def packed(tree: Path) -> bytes:
        module.pack(tree, tmp_path / "x.tar.gz")
        return (tmp_path / "x.tar.gz").read_bytes()

    first = packed(one)
    assert packed(two) == first
    with tarfile.open(tmp_path / "x.tar.gz") as tar:
        assert {m.name: (m.mode, m.uid, m.uname, m.mtime) for m in tar if m.isfile()} == {
            f"kcap-1/{name}": (0o755 if name == "kcap" else 0o644, 0, "", module.EPOCH_S)
            for name in ("README", "kcap", "lib/a.so", "lib/b/c.py")
        }
    (two / "lib/a.so").write_text("lib/a.sO")
    assert packed(two) != first
    (one / "README").chmod(0o755)
    assert packed(one) != first


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    """By its SHA-256, as sha256sum checks it, which a changed byte shows."""
    tree = folder(tmp_path / "kcap-1", reverse=False, umask=0o022, when=10)
    script("build").write_manifest(tree)
    check = ["sha256sum", "--quiet", "--check", "--strict", "MANIFEST"]

    assert len((tree / "MANIFEST").read_text().splitlines()) == 4
    assert subprocess.run(check, cwd=tree, capture_output=True, check=False).returncode == 0
    (tree / "lib/a.so").write_text("other")
    assert subprocess.run(check, cwd=tree, capture_output=True, check=False).returncode == 1


def test_what_is_left_out() -> None:
    """Patterns go by whole paths: tests and other clouds are out, what kcap imports is in."""
    contents = script("contents")

    for path in (
        "pyarrow/tests/test_io.py",
        "pyarrow/_s3fs.x.so",
        "../../bin/f2py",
        "a-1.dist-info/RECORD",
    ):
        assert contents.excluded(path, contents.WHEELS_LEFT_OUT), path
    for path in (
        "pyarrow/lib.x.so",
        "pyarrow/_fs.x.so",
        "numpy.libs/a.so",
        "a-1.dist-info/METADATA",
    ):
        assert not contents.excluded(path, contents.WHEELS_LEFT_OUT), path
    assert contents.excluded("test/test_os.py", contents.STDLIB_LEFT_OUT)
    assert not contents.excluded("unittest/case.py", contents.STDLIB_LEFT_OUT)


def test_a_library_that_is_missing_is_named(tmp_path: Path) -> None:
    """Rather than left for the host to have."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    module = script("build")
    make = ["gcc", "-shared", "-x", "c", "/dev/null", "-o"]
    subprocess.run([*make, tmp_path / "libkcapone.so"], check=True)
    other = ["-L", tmp_path, "-Wl,--no-as-needed", "-lkcapone"]
    subprocess.run([*make, tmp_path / "two.so", *other], check=True)

    with pytest.raises(Exception, match=r"libraries are missing: libkcapone\.so"):
        module.linked([tmp_path / "two.so"])
    assert tmp_path / "libc.so.6" not in module.linked([tmp_path / "libkcapone.so"])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it is now."""
    return sources(tmp_path_factory.mktemp("bundle") / "checkout")


@pytest.fixture(scope="module")
def archive(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle."""
    module = script("build")
    try:
        module.check_host()
    except module.BundleError as error:
        pytest.skip(str(error))
    return build(checkout, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def tree(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked bundle."""
    return unpack(archive, tmp_path_factory.mktemp("unpacked"))


@pytest.fixture
def bare(tree: Path, tmp_path: Path) -> Bare:
    """A root folder with nothing but the bundle."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root, and unshare of util-linux")
    return Bare(tmp_path / "root", tree)


@pytest.mark.long
def test_the_same_inputs_make_the_same_bytes(checkout: Path, archive: Path, tmp_path: Path) -> None:
    """Built elsewhere, by somebody who shares less, it is the same archive."""
    elsewhere = shutil.copytree(checkout, tmp_path / "other place", symlinks=True)
    again = build(elsewhere, tmp_path, umask=0o077)

    assert filecmp.cmp(again, archive, shallow=False)


@pytest.mark.long
def test_everything_of_kcap_can_be_imported(tree: Path) -> None:
    """But for the extras, which are not in it; and nothing is written by that."""
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    failed = dict(
        line.split(" ") for line in own(tree, "-c", MODULES, str(tree / "lib/kcap")).splitlines()
    )

    assert set(failed.values()) <= {"duckdb", "pandas", "polars"}, failed
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before


@pytest.mark.long
def test_the_bundle_is_whole_and_licensed(tree: Path) -> None:
    """Its manifest holds; whatever is of others comes with its licence; modules are compiled."""
    check = ["sha256sum", "--quiet", "--check", "--strict", "MANIFEST"]
    subprocess.run(check, cwd=tree, check=True)
    listed = {line.split("  ", 1)[1] for line in (tree / "MANIFEST").read_text().splitlines()}
    present = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    assert present - listed == {"MANIFEST"}
    assert not [p for p in tree.rglob("*") if p.is_symlink()]

    for line in (tree / "LICENSES/PACKAGES").read_text().splitlines():
        texts = [p for p in (tree / "LICENSES" / line.split(" ")[0]).rglob("*") if p.is_file()]
        assert sum(p.stat().st_size for p in texts) > 500, line
    for file in (tree / "lib").rglob("*.py"):
        compiled = file.parent / "__pycache__" / f"{file.stem}.cpython-311.pyc"
        assert compiled.exists() or "lib2to3" in str(file), file
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0", "not one that is never checked"


@pytest.mark.long
def test_it_records_where_there_is_nothing(bare: Bare) -> None:
    """In a bare root, off the network, from a read-only medium; nothing but the output is made."""
    tried = capability("bpf", Host.read())
    if not tried.usable:
        pytest.skip(f"no BPF here: {tried.why}")
    before = bare.files()
    done = bare.run("record", "-o", "/out/x.kcap", "--duration", "3", PYTHONPATH="/evil")
    assert done.returncode == 0, done.stderr
    assert set(bare.files()) - set(before) == {"out/x.kcap"}
    assert {k: v for k, v in bare.files().items() if k != "out/x.kcap"} == before

    info = bare.run("info", "/out/x.kcap")
    assert info.returncode == 0, info.stderr
    assert re.search(r"^source +kcap-bpf on ", info.stdout, re.MULTILINE)
    assert int(re.search(r"^events +([\d,]+)$", info.stdout, re.MULTILINE)[1].replace(",", "")) > 0
    verified = bare.run("verify", "/out/x.kcap")
    assert verified.returncode == 0, verified.stderr
    assert "closed" in verified.stdout
    # Negative control: there is nothing else that could be run.
    assert bare.run("/bin/sh", "-c", "true").returncode == 127


@pytest.mark.long
def test_the_hosts_libraries_stay_out(bare: Bare, tree: Path, tmp_path: Path) -> None:
    """/etc/ld.so.preload is not read, which Debian's own loader reads."""
    (bare.folder / "etc/ld.so.preload").write_text("/evil.so\n")
    assert bare.run("--version").stderr == ""

    changed = tmp_path / "changed"
    shutil.copytree(tree, changed)
    shutil.copy("/lib64/ld-linux-x86-64.so.2", changed / "lib")
    control = Bare(tmp_path / "control", changed)
    (control.folder / "etc/ld.so.preload").write_text("/evil.so\n")
    assert "/evil.so" in control.run("--version").stderr


@pytest.mark.long
def test_python_looks_in_no_folder_above(tree: Path, tmp_path: Path) -> None:
    """Whoever may write beside the bundle's folder says nothing about its modules."""
    shutil.copytree(tree, tmp_path / "kcap")
    (tmp_path / "lib").mkdir()
    with zipfile.ZipFile(tmp_path / "lib/python311.zip", "w") as trap:
        trap.writestr("encodings/__init__.py", "raise SystemExit(9)\n")

    def version() -> int:
        return launch(tmp_path / "kcap/kcap", "--version", cwd=tmp_path).returncode

    assert version() == 0
    (tmp_path / "kcap/lib/python311.zip").unlink()
    assert version() == 1  # negative control


@pytest.fixture
def recording(tree: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A recording with the bundle, on the host itself."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    command = [tree / "kcap", "record", "-o", tmp_path / "x.kcap"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while not (tmp_path / "x.kcap").exists() and time.monotonic() < until:
            time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.mark.long
def test_all_of_a_recording_is_the_bundles(recording: subprocess.Popen[bytes], tree: Path) -> None:
    """On a host that has libraries of its own, no process of it has one of them in its memory."""
    children = Path(f"/proc/{recording.pid}/task/{recording.pid}/children").read_text().split()
    mapped = set()
    for pid in [str(recording.pid), *children]:
        assert Path(f"/proc/{pid}/comm").read_text().startswith("kcap")
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        mapped |= {line.split(None, 5)[5] for line in lines if "r-xp" in line and "/" in line}

    assert f"{tree}/lib/libc.so.6" in mapped
    assert [path for path in mapped if not path.startswith(f"{tree}/")] == []
