"""The offline bundle for the tests: built, unpacked, and run where there is nothing else."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "bundle"

_LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", "*.py[cod]")


def script(name: str) -> ModuleType:
    """A script of the folder ``bundle``, as a module.

    Args:
        name: Its name, without the ending.

    Returns:
        The module.
    """
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"bundle_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources(target: Path) -> Path:
    """Copy what a bundle is made of, so that nothing changes while it is.

    Args:
        target: The copy's folder.

    Returns:
        The same.
    """
    target.mkdir(parents=True)
    for name in ("bundle", "kcap", "readers", "writers", "tools", "spec"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=_LEFT_OUT)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def build(checkout: Path, folder: Path, *, umask: int = 0o022) -> Path:
    """Make the bundle.

    Args:
        checkout: The project.
        folder: For the archive, and for what comes between.
        umask: What new files of the build are not to be.

    Returns:
        The archive.
    """
    done = subprocess.run(
        [sys.executable, checkout / "bundle/build.py", "--work", folder / "w", "--dist", folder],
        cwd=folder,
        capture_output=True,
        text=True,
        umask=umask,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [archive] = folder.glob("*.tar.gz")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive.

    Args:
        archive: The bundle.
        folder: Where to.

    Returns:
        The folder that was in it.
    """
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="tar")
    [top] = folder.iterdir()
    return top


_MOUNTS: Final = """
set -e
root=$1 medium=$2 bundle=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$bundle" "$medium"
mount -o remount,bind,ro "$medium"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --bind /dev/null "$root/dev/null"
exec "$@"
"""


class Bare:
    """A root folder with a bundle on a read-only medium, and nothing else that could be run.

    Args:
        folder: Where it is laid out.
        bundle: The unpacked bundle.
    """

    MEDIUM: Final = "mnt/medium/kcap"

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder = folder
        self._bundle = bundle
        for name in ("proc", "sys", "dev", "out", "etc", self.MEDIUM):
            (folder / name).mkdir(parents=True)
        (folder / "dev/null").touch()

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run kcap there, in namespaces for mounts and network that end with it.

        Args:
            words: Its arguments; where the first begins with a slash, the program, too.
            env: All of its environment.

        Returns:
            The ended process.
        """
        program = [] if words[0].startswith("/") else [f"/{self.MEDIUM}/kcap"]
        chroot = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin")
        settings = [f"{name}={value}" for name, value in env.items()]
        places = [self.folder, self.folder / self.MEDIUM, self._bundle]
        inside = ["env", "-i", *settings, str(chroot), str(self.folder), *program, *words]
        return subprocess.run(
            ["unshare", "--mount", "--net", "sh", "-c", _MOUNTS, "sh", *places, *inside],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything that is there, with its time and size; what is mounted is not."""
        return {
            path.relative_to(self.folder).as_posix(): (
                path.lstat().st_mtime_ns if path.is_file() else 0,
                path.lstat().st_size if path.is_file() else 0,
            )
            for path in self.folder.rglob("*")
        }
