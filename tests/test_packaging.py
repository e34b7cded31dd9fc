"""Every form in which kcap can be installed works, and starts quickly."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

LINKS = ("readers", "tools", "writers")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "demo", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)
WHERE = """
import json, kcap, kcap.readers, kcap.tools.cli, kcap.writers
modules = kcap, kcap.readers, kcap.tools, kcap.writers
print(json.dumps([module.__file__ for module in modules]))
"""
TOOLS_OF_BUILDING = {"build": (1,), "pip": (22, 3), "setuptools": (77,)}


class Built(NamedTuple):
    """Distributions of one source tree."""

    tree: Path
    sdist: Path
    from_sdist: Path
    """The wheel built out of the sdist."""


class Installed(NamedTuple):
    """An environment of its own with kcap in it."""

    python: Path
    kcap: Path


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command away from the project; what it says is shown where it fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _tools_of_building() -> None:
    """Skip where something that builds or installs is missing or too old."""
    for name, least in TOOLS_OF_BUILDING.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        if tuple(int(part) for part in version.split(".")[: len(least)]) < least:
            pytest.skip(f"{name} {version} is too old to build kcap")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder far from the project."""
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def tree(root: Path, folder: Path) -> Path:
    """A fresh checkout."""
    copy = folder / "checkout"
    shutil.copytree(root, copy, symlinks=True, ignore=LEFT_OUT)
    for name in LINKS:
        link = copy / "kcap" / name
        if not link.is_symlink():  # an unpacked sdist has none, Windows may not
            link.unlink(missing_ok=True)
            link.symlink_to(f"../{name}")
    return copy


@pytest.fixture(scope="module")
def linkless(tree: Path, folder: Path) -> Path:
    """A checkout whose links git wrote as text, as it does on Windows."""
    copy = folder / "linkless"
    shutil.copytree(tree, copy, symlinks=True, ignore=LEFT_OUT)
    for name in LINKS:
        link = copy / "kcap" / name
        link.unlink()
        link.write_text(f"../{name}")
    return copy


@pytest.fixture(scope="module")
def built(tree: Path, folder: Path) -> Built:
    """An sdist, and the wheel made out of it."""
    out = folder / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=folder)
    return Built(tree, next(out.glob("*.tar.gz")), next(out.glob("*.whl")))


def wheel_of(tree: Path, out: Path) -> Path:
    """The wheel made directly out of a source tree."""
    options = ("--no-isolation", "--wheel", "--outdir", out)
    run(sys.executable, "-m", "build", *options, tree, cwd=out.parent)
    return next(out.glob("*.whl"))


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Installed]:
    """Install into an environment that has kcap's dependencies and nothing else of ours."""

    def make(*words: str | Path) -> Installed:
        place = tmp_path / "env"
        venv.create(place, symlinks=os.name != "nt")
        paths = {"base": str(place), "platbase": str(place)}
        site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        scripts = Path(sysconfig.get_path("scripts", "venv", vars=paths))
        python = next(scripts.glob("python*"))
        if words:
            options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
            pip = (sys.executable, "-m", "pip", "--python", python, "install", *options)
            run(*pip, *words, cwd=tmp_path)
        return Installed(python, scripts / "kcap")

    return make


def names_in(wheel: Path) -> set[str]:
    """The files of a wheel, its own metadata left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def check(installed: Installed, home: Path, cwd: Path) -> None:
    """All parts come from one place, and the command runs."""
    files = json.loads(run(installed.python, "-c", WHERE, cwd=cwd))

    assert all(Path(file).resolve().is_relative_to(home.resolve()) for file in files), files
    assert "kcap" in run(installed.kcap, "version", cwd=cwd)


def test_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    """The wheel has every file of the five folders, under kcap, and puts only that anywhere."""
    areas = ("kcap", "spec", *LINKS)
    files = [file for area in areas for file in (built.tree / area).rglob("*.*")]
    paths = {file.relative_to(built.tree).as_posix() for file in files if file.is_file()}
    expected = {path if path.startswith("kcap/") else f"kcap/{path}" for path in paths}

    names = names_in(built.from_sdist)

    assert {name.split("/")[0] for name in names} == {"kcap"}
    assert names == expected
    assert {"kcap/py.typed", "kcap/model/data/columns.tsv", "kcap/tools/cli.py"} <= names


def test_wheels_of_all_trees_are_alike(built: Built, linkless: Path, folder: Path) -> None:
    """The wheel out of the sdist, of a checkout, and of one without links hold the same files."""
    names = names_in(built.from_sdist)

    assert names_in(wheel_of(built.tree, folder / "dist-checkout")) == names
    assert names_in(wheel_of(linkless, folder / "dist-linkless")) == names


def test_sdist_holds_what_tests_need(built: Built) -> None:
    """The source distribution can be tested: fixtures, specification and tests are in it."""
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"Makefile", "LICENSE", "spec/kcap.md", "tests/conftest.py", "tools/cli.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_wheel(built: Built, install: Callable[..., Installed], tmp_path: Path) -> None:
    """Installed from the wheel of the sdist, kcap runs."""
    check(install(built.from_sdist), tmp_path / "env", tmp_path)


def test_editable(tree: Path, install: Callable[..., Installed], tmp_path: Path) -> None:
    """Installed in editable form, kcap runs from the checkout."""
    check(install("--editable", tree), tree, tmp_path)


def test_editable_without_links(
    linkless: Path, install: Callable[..., Installed], tmp_path: Path
) -> None:
    """A checkout whose links are text files works once installed."""
    check(install("--editable", linkless), linkless, tmp_path)


def test_plain_checkout(tree: Path, install: Callable[..., Installed]) -> None:
    """A checkout runs without being installed, as long as it has its links."""
    python = install().python

    files = json.loads(run(python, "-c", WHERE, cwd=tree))

    assert all(Path(file).is_relative_to(tree) for file in files)
    assert "kcap" in run(python, "-m", "kcap.tools", "version", cwd=tree)


def test_an_environment_without_kcap_is_noticed(
    install: Callable[..., Installed], tmp_path: Path
) -> None:
    """Negative control: the environments of these tests do not find kcap by themselves."""
    with pytest.raises(AssertionError, match="No module named 'kcap'"):
        run(install().python, "-c", WHERE, cwd=tmp_path)


HEAVY = "import sys; print(sorted({'duckdb', 'numpy', 'pyarrow', 'rich'} & set(sys.modules)))"
HELP = f"""
from kcap.tools.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
{HEAVY}
"""


def test_help_starts_quickly(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``kcap --help`` loads none of the heavy libraries; how long it takes is told."""
    run(sys.executable, "-c", HELP, cwd=root)
    start = time.perf_counter()
    shown = run(sys.executable, "-c", HELP, cwd=root)
    taken = time.perf_counter() - start

    assert shown.splitlines()[-1] == "[]"
    assert "record" in shown
    with capsys.disabled():
        print(f"\nkcap --help: {taken * 1000:.0f} ms")


def test_a_heavy_library_is_noticed(root: Path) -> None:
    """Negative control: a module that needs pyarrow shows it."""
    shown = run(sys.executable, "-c", f"import kcap.model.batch\n{HEAVY}", cwd=root)

    assert shown == "['numpy', 'pyarrow']\n"
