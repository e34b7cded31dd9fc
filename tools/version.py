"""``kcap version``."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import click

import kcap
from kcap.tools.cli import Verb

_LIBRARIES = ("pyarrow", "numpy", "zstandard", "construct", "click")


@click.command("version", cls=Verb, examples=("kcap version",))
@click.option("--json", "as_json", is_flag=True, help="The versions as JSON.")
def command(as_json: bool) -> None:
    """Say which kcap this is: version, commit, format, Python and libraries."""
    from kcap.format.payloads import MAJOR, MINOR

    rows = {
        "kcap": kcap.__version__,
        "commit": commit() or "unknown",
        "format": f"{MAJOR}.{MINOR}",
        "python": platform.python_version(),
        "libzstd": _libzstd(),
        **{name: _version(name) for name in _LIBRARIES},
    }
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo("\n".join(f"{name:<10} {value}" for name, value in rows.items()))


def commit() -> str | None:
    """The commit this was installed or is run from, None where nothing says it."""
    root = Path(kcap.__file__).resolve().parent.parent
    return _checkout_commit(root / ".git") or _installed_commit()


def _checkout_commit(git: Path) -> str | None:
    """The commit of a checkout, read from git's own files."""
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text().strip()
        for line in (git / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.split()[0]
    except OSError:
        return None
    return None


def _installed_commit() -> str | None:
    """The commit that pip recorded for an install from a repository."""
    try:
        text = distribution("kcap").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    info = json.loads(text).get("vcs_info", {}) if text else {}
    found = info.get("commit_id")
    return str(found) if found else None


def _libzstd() -> str:
    import zstandard

    return ".".join(map(str, zstandard.ZSTD_VERSION))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
