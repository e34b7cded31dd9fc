"""Foreign inputs: every verb knows as much of who did it as an import finds out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import lines_of, run
from tracee_support import DUMP

import kcap
from kcap.opening import open_source


def test_verbs_see_what_an_import_finds(data: Callable[[str], Path], tmp_path: Path) -> None:
    """Printing a foreign file is printing its import, who did it included."""
    imported = tmp_path / "dump.kcap"
    assert run("import", data(DUMP), "-o", imported).exit_code == 0

    shown = lines_of("cat", data(DUMP))

    assert shown == lines_of("cat", imported) == lines_of("replay", data(DUMP))
    assert sum("cmdline" in event for event in shown) > 1000  # Tracee's events do not have it
    with kcap.open(data(DUMP)) as foreign, kcap.open(imported) as capture:
        names = ["ord", "cmdline", "exe", "parent_name"]
        assert foreign.to_arrow(names).to_pylist() == capture.to_arrow(names).to_pylist()


def test_a_source_can_be_had_as_it_is(foreign: Path) -> None:
    """Who keeps a state of his own resolves with that one, and once only."""
    columns = {}
    for resolve in (False, True):
        source = open_source(foreign, resolve=resolve)
        columns[resolve] = {name for batch in source.batches() for name in batch.columns}
        source.close()

    assert "process_key" not in columns[False]
    assert columns[True] >= columns[False]


@pytest.mark.parametrize("words", [("cat",), ("info", "--json"), ("timeline", "--json")])
def test_captures_are_shown_as_they_were_recorded(words: tuple[str, ...], closed: Path) -> None:
    """What a capture does not say is not found out when it is read."""
    source = open_source(closed)

    assert type(source).__name__ == "CaptureReader"
    assert run(words[0], closed, *words[1:]).exit_code == 0
    source.close()
