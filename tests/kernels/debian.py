"""A small Debian system with systemd for the machines of `vm`: packages unpacked, none installed.

apt finds out what systemd needs, as it would on an empty host, and fetches it; the rest is the
first disk of `vm`: this Python, and the libraries that kcap needs.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

from kernels import vm

HOME: Final = "/opt/kcap"
"""Where kcap comes to lie in the machine: Python finds it and its libraries, whoever starts it."""

_PACKAGES: Final = ("systemd", "procps")

# Not wanted in a machine without network, users, terminals and D-Bus.
_MASKED: Final = (
    "getty.target", "systemd-logind.service", "systemd-networkd.service", "remote-fs.target",
    "systemd-resolved.service", "systemd-timesyncd.service", "e2scrub_reap.service",
    "systemd-pstore.service", "systemd-update-utmp.service", "systemd-firstboot.service",
)  # fmt: skip

_UNIT: Final = f"""[Unit]
Description=What the machine is for
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Environment=HOME=/root
TimeoutStartSec=infinity
WorkingDirectory={HOME}
ExecStart=/bin/busybox tar -xf /dev/vdb
ExecStart=/bin/busybox sh -c '/bin/busybox sh ./run; echo "exit code $$?"'
ExecStart=/bin/busybox tar -cf /dev/vdc -C {HOME} out
ExecStopPost=/bin/busybox sync
ExecStopPost=/bin/busybox poweroff -f
"""

_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hostname": "machine\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/systemd/journald.conf": "[Journal]\nStorage=volatile\nAudit=no\n",
    "etc/systemd/system/test.service": _UNIT,
}


def _unpack(tree: Path, archives: Path) -> None:
    """Fetch systemd with everything that it needs, and unpack it."""
    apt_get, dpkg = vm.program("apt-get", "apt"), vm.program("dpkg", "dpkg")
    (archives / "partial").mkdir(parents=True)
    nothing = archives / "status"  # of a host on which no package is installed
    nothing.touch()
    own = [f"Dir::State::status={nothing}", f"Dir::Cache::archives={archives}"]
    options = [word for option in (*own, "Debug::NoLocking=1") for word in ("-o", option)]
    words = ["-qq", "-y", "--no-install-recommends", "--download-only", "install", *_PACKAGES]
    vm.output(apt_get, *options, *words)
    for archive in sorted(archives.glob("*.deb")):
        vm.output(dpkg, "-x", archive, tree)


def _fill(tree: Path, archives: Path) -> None:
    vm.fill(tree)
    (tree / "sbin/init").unlink()
    _unpack(tree, archives)
    for unneeded in ("doc", "man", "locale", "info"):
        shutil.rmtree(tree / "usr/share" / unneeded, ignore_errors=True)
    (tree / "sbin/init").symlink_to("/lib/systemd/systemd")
    for name in ("run", "opt/kcap", "var/log", "var/lib", "var/tmp", "root", "mnt"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (tree / name).write_text(text)
    units = tree / "etc/systemd/system"
    for name in _MASKED:
        (units / name).symlink_to("/dev/null")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/test.service").symlink_to("../test.service")
    libraries = tree / sysconfig.get_path("purelib", vars=_base()).lstrip("/")
    libraries.mkdir(parents=True, exist_ok=True)
    (libraries / "kcap.pth").write_text(f"/packages\n{HOME}\n")


def _base() -> dict[str, str]:
    """Where Python itself is installed, also within a virtual environment."""
    return {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}


def disk() -> Path:
    """Make a first disk with systemd.

    Returns:
        An image of an ext4 file system; its test.service unpacks what is brought into `HOME`, runs
        it, and hands out what it has written to ``out``.

    Raises:
        SkipTest: A program for it is missing.
    """
    mke2fs = vm.program("mke2fs", "e2fsprogs")
    sources = [Path(file).read_text("utf-8") for file in (__file__, vm.__file__)]
    recipe = "\n".join([*sources, sys.version, *vm.needed()])
    made = vm.CACHE / f"systemd-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not made.exists():
        vm.CACHE.mkdir(parents=True, exist_ok=True)
        for old in vm.CACHE.glob("systemd-*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        work = vm.CACHE / "systemd-work"
        _fill(work / "tree", work / "archives")
        half = work / "half"
        vm.output(
            mke2fs, "-q", "-t", "ext4", "-O", "^has_journal", "-d", work / "tree", half, "1200m"
        )
        half.rename(made)
        shutil.rmtree(work)
    return made
