"""``kcap redact`` on captures of other tools: what real events say is hidden in all of a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import lines_of, run
from filter_support import uncovered

from kcap.transform.collect import COMMON
from kcap.transform.tokens import Key, load

LONG = 12

CASES = [
    ("tracee/tracee_docs_events_plain.jsonl", "process_name,pathname,argv"),
    ("fibratus/v1.6.0-cap1.kcap", "exe,process_name,file_name"),
    ("scap/alpine.scap", "process_name,exe"),
]
"""Captures, and columns of them."""


@pytest.mark.parametrize(("name", "columns"), CASES)
def test_no_value_is_left(
    tmp_path: Path, data: Callable[[str], Path], name: str, columns: str
) -> None:
    """No longer value of the columns is in any byte of the copy, but its token is.

    Shorter ones may be words of the format, or come about where two texts meet.
    """
    key, out, plain = (tmp_path / n for n in ("a.key", "out.kcap", "plain.kcap"))
    assert run("redact", "--new-key", key).exit_code == 0
    run("import", data(name), "-o", plain)
    found = {
        value
        for line in lines_of("cat", plain, "--state")
        for column, given in line.items()
        if column.split("__")[0].removeprefix("arg_") in columns.split(",")
        for value in (given if isinstance(given, list) else [given])
    }
    texts = {v for v in found if isinstance(v, str) and len(v) >= LONG} - COMMON
    assert texts

    result = run("redact", plain, "-o", out, "--key-file", key, "--columns", columns)

    assert result.exit_code in (0, 3), result.output
    before, after = uncovered(plain.read_bytes()), uncovered(out.read_bytes())
    assert not [t for t in texts if t.encode() in after]
    assert [t for t in texts if t.encode() in before]
    made = Key(load(str(key)))
    assert [t for t in texts if made.token(t).encode() in after]
    assert len(lines_of("cat", out)) == len(lines_of("cat", plain))
