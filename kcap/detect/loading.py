"""Reading rules of all kinds: files and folders, by what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kcap import plugins, trust
from kcap.detect.engine import unique
from kcap.detect.rule import Loader, Problem, Rule
from kcap.errors import KcapError, LimitError

FILE_BYTES: Final = 16 << 20
"""Largest file of rules."""

FILES_MAX: Final = 20_000
"""Files of rules in all."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Rules that were read."""

    rules: list[Rule] = field(default_factory=list)
    """Those that can run, by id."""
    problems: list[Problem] = field(default_factory=list)
    """What is wrong with others."""


def load(paths: Sequence[Path], kind: str | None = None) -> Ruleset:
    """Read rules.

    Args:
        paths: Files, and folders whose files below are read in the order of their names. A file
            that is named must hold rules; one in a folder that holds none is passed over.
        kind: The kind of all of them (``kcap``, ``fibratus`` …); None to tell by their content.

    Returns:
        The rules, each id once.

    Raises:
        KcapError: A path can't be read, or root may not load it; a named file holds no rules.
        LimitError: There are too many files.
    """
    loaders: dict[str, Loader] = {
        name: plugins.load(plugins.RULES, name)()
        for name in plugins.found(plugins.RULES)
        if kind in (None, name)
    }
    if kind is not None and not loaders:
        expected = ", ".join(plugins.found(plugins.RULES))
        raise KcapError(f"{kind!r} is no kind of rules", expected=expected)
    found: list[Rule | Problem] = []
    for path, named in _files(paths, tuple(s for one in loaders.values() for s in one.suffixes)):
        found += _read(path, loaders, named=named)
    for loader in loaders.values():
        found += loader.finish()
    rules, problems = unique(one for one in found if isinstance(one, Rule))
    problems = [*(one for one in found if isinstance(one, Problem)), *problems]
    return Ruleset(sorted(rules, key=lambda rule: rule.about.id), problems)


def _files(paths: Sequence[Path], suffixes: tuple[str, ...]) -> Iterable[tuple[Path, bool]]:
    """The files that may hold rules, and whether each was named itself."""
    count = 0
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        for file in sorted(path.rglob("*")):
            if file.suffix in suffixes and file.is_file():
                count += 1
                if count > FILES_MAX:
                    what = f"more than {FILES_MAX:,} files of rules"
                    raise LimitError(what, file=str(path), hint="a folder of rules alone")
                yield file, False


def _read(path: Path, loaders: dict[str, Loader], *, named: bool) -> Iterable[Rule | Problem]:
    trust.check(path)
    try:
        if path.stat().st_size > FILE_BYTES:
            raise LimitError(f"a file of rules of more than {FILE_BYTES:,} bytes", file=str(path))
        text = path.read_bytes().decode()
    except OSError as error:
        raise KcapError(f"it can't be read: {error.strerror}", file=str(path)) from error
    except UnicodeDecodeError as error:
        wrong = KcapError("no UTF-8", file=str(path), offset=error.start, expected="text")
        return [Problem(wrong)]
    for loader in loaders.values():
        if path.suffix in loader.suffixes and loader.sniff(text, str(path)):
            return loader.load(text, str(path))
    if named:
        raise KcapError(
            "no rules are known in it",
            file=str(path),
            expected=f"rules of {', '.join(sorted(loaders))}",
        )
    return ()
