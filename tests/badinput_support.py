"""What the tests of bad input share: how a verb must end, and how bytes come to grief."""

from __future__ import annotations

import re
from pathlib import Path

from cli_support import run
from hypothesis import strategies as st
from support import capture, read, rows_of

GOOD = capture()
GOOD_ROWS = rows_of(read(GOOD)[0])
VERBS = ("info", "cat", "replay", "verify", "import")
ROOT = Path(__file__).parent.parent


def words_for(verb: str, path: Path) -> list[str | Path]:
    """A call of a verb on a file; import writes beside it."""
    return (
        ["import", path, "-o", path.with_suffix(".out.kcap")] if verb == "import" else [verb, path]
    )


def check_refused(verb: str, path: Path, what: str) -> None:
    """The verb ends with exit code 1 and one line that names the file; nothing is written."""
    result = run(*words_for(verb, path))

    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    pattern = rf"kcap: {re.escape(str(path))}: [^\n]*(?:{what})[^\n]*\n(hint: [^\n]+\n)?"
    assert re.fullmatch(pattern, result.stderr), result.stderr
    assert not list(path.parent.glob("*.out.kcap"))


def check_damaged(verb: str, path: Path, what: str, *, footer: bool = True) -> None:
    """The verb goes on past the damage, tells of it, and ends with exit code 3."""
    result = run(*words_for(verb, path))

    assert "internal" not in result.stderr, result.stderr
    if verb == "info" and footer:
        assert result.exit_code == 0  # it reads the FOOTER alone, and says so
        return
    assert result.exit_code == 3, result.output
    if verb == "verify":
        assert re.search(what, result.stdout), result.stdout
        return
    pattern = rf"kcap: {re.escape(str(path))}: (damaged|torn)\b[^\n]*(?:{what})[^\n]*\n"
    assert re.search(pattern, result.stderr), result.stderr


def edited(base: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    """Bytes after some accidents: splices, runs of zeros, blocks that come twice or are gone."""
    data = bytearray(base)
    for what, at, size, new in edits:
        start = at % (len(data) + 1)
        stop = start + size
        if what == "write":
            data[start : start + len(new)] = new
        elif what == "zero":
            data[start:stop] = bytes(len(data[start:stop]))
        elif what == "double":
            data[start:start] = data[start:stop]
        elif what == "cut":
            del data[start:stop]
        elif what == "flip" and start < len(data):
            data[start] ^= 1 << size % 8
    return bytes(data)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "double", "cut", "flip"]),
        st.integers(0, 1 << 16),
        st.integers(0, 600) | st.sampled_from([8, 32, 64, 512]),
        st.binary(max_size=40),
    ),
    max_size=4,
)
