"""What files of YARA rules include: found before a compiler reads it, all below one folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kcap import trust
from kcap.detect.loading import FILE_BYTES
from kcap.errors import KcapError

_FILES_MAX: Final = 1000
_WORD: Final = re.compile(r"\binclude\b")
_SPACE: Final = re.compile(r"\s*")
_QUOTES: Final = ('"""', '"')
_PATH_CHARS: Final = 4096


class Included(NamedTuple):
    """What some rules include."""

    folder: Path | None = None
    """Where it is, and all that is below; None where nothing is included, or may be."""
    files: tuple[str, ...] = ()
    """All of it, however deep, by name."""
    error: KcapError | None = None
    """Why nothing is included though it is asked for."""


def included(text: str, path: str) -> Included:
    """Find what a file includes, and what that includes.

    Args:
        text: Its content.
        path: Its name.

    Returns:
        The files, all of them below the file's own folder.
    """
    if not _WORD.search(text):
        return Included()
    try:
        folder = Path(path).resolve().parent
        files, asked = _files(text, folder)
    except KcapError as e:
        e.file = path
        return Included(error=e)
    except (OSError, RuntimeError, ValueError) as e:  # RuntimeError: links that lead in a circle
        why = getattr(e, "strerror", None) or "no file can have such a name"
        return Included(error=KcapError(f"an include can't be read: {why}", file=path))
    return Included(folder, tuple(sorted(map(str, files)))) if asked else Included()


def _files(text: str, folder: Path) -> tuple[set[Path], bool]:
    """The files, and whether any file is asked for, be it there or not."""
    todo, seen, asked = [(text, folder)], set[Path](), False
    while todo:
        text, beside = todo.pop()
        for name in names(text):
            asked = True
            for target in _targets(name, folder, beside):
                if target in seen:
                    continue
                seen.add(target)
                if len(seen) > _FILES_MAX:
                    raise KcapError(f"more than {_FILES_MAX:,} includes")
                trust.check(target)
                if target.stat().st_size > FILE_BYTES:
                    raise KcapError(f"the include of {name!r} is refused: it is too long")
                todo.append((target.read_text("utf-8", "replace"), target.parent))
    return seen, asked


def _targets(name: str, folder: Path, beside: Path) -> list[Path]:
    """The files that a compiler may take for a name: of the folder, or beside who includes it.

    Raises:
        KcapError: One of them is elsewhere.
    """
    each = [(base / name).resolve() for base in dict.fromkeys((folder, beside))]
    within = [target for target in each if target.is_relative_to(folder)]
    outside = [target for target in each if target not in within and target.exists()]
    if outside or not within or Path(name).is_absolute():
        raise KcapError(f"the include of {name!r} is refused: it is not below the rules' folder")
    return [target for target in within if target.is_file()]


def names(text: str) -> Iterator[str]:
    """What stands behind each word ``include``, be the word a statement or in a comment.

    Which of them are statements only a compiler knows; none that it takes for one is left out.

    Args:
        text: Rules.

    Yields:
        The names, in order.

    Raises:
        KcapError: There is more between the words and what they name than in any honest file.
    """
    # Comments in comments would be read again and again.
    room = 4 * len(text) + _PATH_CHARS
    for word in _WORD.finditer(text):
        at = _behind_comments(text, word.end(), word.end() + room)
        room -= at - word.end()
        if room <= 0:
            raise KcapError("the includes can't be told from comments")
        quote = next((q for q in _QUOTES if text.startswith(q, at)), None)
        if quote is None:
            continue
        start = at + len(quote)
        end = text.find(quote, start, start + _PATH_CHARS)
        if end >= 0:
            yield text[start:end]
        elif text.find(quote, start) >= 0 and quote != '"':
            raise KcapError("an include names no file", expected="a name of 4,096 characters")


def _behind_comments(text: str, at: int, limit: int) -> int:
    """Where the next token begins; the limit, or what is behind it, where none does before."""
    while at < limit:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere
        if text.startswith("//", at):
            end = text.find("\n", at)
        elif text.startswith("/*", at):
            end = text.find("*/", at + 2)
        else:
            return at
        if end < 0:
            return len(text)  # nothing more, or no comment that ends
        at = end + (1 if text[end] == "\n" else 2)
    return at
