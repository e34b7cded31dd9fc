"""What the bundle takes of Debian's Python and of the wheels, and what it leaves out."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

PYTHON: Final = Path("/usr/bin/python3.11")
PACKAGES: Final = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib")

STDLIB_LEFT_OUT: Final = (
    # Programs, graphics, terminals and networks that kcap has no use for ...
    "ensurepip/*", "idlelib/*", "lib2to3/*", "pydoc_data/*", "test/*", "tkinter/*", "turtle*",
    "venv/*", "wsgiref/*", "xmlrpc/*", "curses/*", "dbm/*", "sqlite3/*", "distutils/*",
    "config-3.11*", "EXTERNALLY-MANAGED", "sitecustomize.py",
    # ... and the modules that only these load, with the libraries they are linked with.
    "lib-dynload/_sqlite3.*", "lib-dynload/_curses*", "lib-dynload/_dbm.*",
    "lib-dynload/_test*", "lib-dynload/_xx*", "lib-dynload/xx*", "lib-dynload/nis.*",
    "lib-dynload/ossaudiodev.*", "lib-dynload/audioop.*", "lib-dynload/readline.*",
    "lib-dynload/_crypt.*", "lib-dynload/_ctypes_test.*", "lib-dynload/_tkinter.*",
    "lib-dynload/_codecs_*",
)  # fmt: skip

WHEELS_LEFT_OUT: Final = (
    "../*", "*.dist-info/RECORD", "*.dist-info/INSTALLER", "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json", "*/__pycache__/*",
    # Tests, and what others build against.
    "*/tests/*", "*/conftest.py", "*/include/*", "*/includes/*", "*/src/*", "*.a", "*.pxd", "*.pxi",
    "*.pyx", "*.h", "*.pyi", "numpy/f2py/*", "numpy/distutils/*", "numpy/_pyinstaller/*",
    # Networks, clouds and formats of pyarrow that kcap never reads from.
    "pyarrow/_flight.*", "pyarrow/_s3fs.*", "pyarrow/_gcsfs.*", "pyarrow/_azurefs.*",
    "pyarrow/_hdfs.*", "pyarrow/_orc.*", "pyarrow/_substrait.*", "pyarrow/_cuda.*",
    "pyarrow/_pyarrow_cpp_tests.*", "pyarrow/*_encryption.*",
    # The other of zstandard's two ways to the same library, for other Pythons.
    "zstandard/_cffi.*", "zstandard/backend_cffi.py",
)  # fmt: skip

_LICENSE_NAMES: Final = ("*.dist-info/LICEN[CS]E*", "*.dist-info/licenses/*", "*.dist-info/NOTICE*")


class BundleError(Exception):
    """The bundle cannot be made here; the message says why and what to do."""


def run(*words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program.

    Args:
        words: It and its arguments.
        env: Variables to set, besides those that there are.
        cwd: Where.

    Returns:
        What it printed.

    Raises:
        BundleError: It is not installed, or failed.
    """
    try:
        done = subprocess.run(
            list(map(str, words)),
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise BundleError(f"{words[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise BundleError(f"{' '.join(map(str, words))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def excluded(path: str, patterns: Iterable[str]) -> bool:
    """Whether a file is left out.

    Args:
        path: Relative.
        patterns: As for a shell, where ``*`` matches slashes, too.

    Returns:
        True where one of the patterns matches.
    """
    return any(fnmatch(path, pattern) for pattern in patterns)


def copy(source: Path, target: Path) -> None:
    """Copy a file's content, and whether it can be run; a link becomes what it leads to.

    Args:
        source: The file.
        target: Where to; folders are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)


def copy_python(tree: Path) -> None:
    """Copy Debian's interpreter and its standard library.

    Args:
        tree: The bundle's folder.
    """
    copy(PYTHON, tree / "bin/python3.11")
    home = Path("/usr/lib/python3.11")
    for line in run("dpkg", "-L", *PACKAGES).splitlines():
        path = Path(line)
        if path.is_relative_to(home) and path.is_file():
            name = path.relative_to(home).as_posix()
            if not excluded(name, STDLIB_LEFT_OUT):
                copy(path, tree / "lib/python3.11" / name)


def write_landmark(tree: Path) -> None:
    """Write the archive by which Python knows its home folder, with nothing in it.

    Without it, Python looks for one in every folder above, too, and believes what it finds: in
    /tmp/lib, for a bundle in /tmp, that may be anybody's.

    Args:
        tree: The bundle's folder.
    """
    with zipfile.ZipFile(tree / "lib/python311.zip", "w"):
        pass


def dependencies(name: str) -> dict[str, importlib.metadata.Distribution]:
    """The distributions that one needs, and those that these need.

    Args:
        name: Its name.

    Returns:
        Each by its name, without the first.

    Raises:
        BundleError: One is not installed here.
    """
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [name]
    while todo:
        for line in importlib.metadata.distribution(todo.pop()).requires or ():
            need = Requirement(line)
            if need.name in found or (need.marker and not need.marker.evaluate({"extra": ""})):
                continue
            try:
                found[need.name] = importlib.metadata.distribution(need.name)
            except importlib.metadata.PackageNotFoundError as error:
                raise BundleError(f"{need.name} is not installed: run make first") from error
            todo.append(need.name)
    return dict(sorted(found.items()))


def copy_wheels(tree: Path) -> dict[str, str]:
    """Copy the libraries that kcap needs out of the environment that runs this.

    Args:
        tree: The bundle's folder.

    Returns:
        Name to version.

    Raises:
        BundleError: One comes without its files' names, or without a licence.
    """
    versions = {}
    for name, distribution in dependencies("kcap").items():
        licensed = False
        for file in distribution.files or ():
            path = file.as_posix()
            if excluded(path, _LICENSE_NAMES):
                licensed = True
                inner = path.split(".dist-info/", 1)[1].removeprefix("licenses/")
                copy(Path(file.locate()), tree / "LICENSES" / name / inner)
            elif not excluded(path, WHEELS_LEFT_OUT):
                copy(Path(file.locate()), tree / "lib/kcap" / path)
        if not licensed:
            raise BundleError(f"{name} came without a licence")
        versions[name] = distribution.version
    return versions
