"""More files at once than anybody can read: each is kept or counted, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from artifact_live_support import python, record
from test_artifacts_live import DROP, WRITE, droppers

from kcap.readers.live.artifacts.wanted import FileFilter, Wanted

pytestmark = [pytest.mark.root, pytest.mark.long]


@pytest.mark.parametrize("room", [None, 50])
def test_forty_thousand_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int | None
) -> None:
    """Where fewer may wait, the rest is counted to the last."""
    if room is not None:
        monkeypatch.setattr("kcap.readers.live.artifacts.agent.BACKLOG_EVENTS", room)
    count = 40_000
    wanted = Wanted(write=FileFilter(prefixes=(str(tmp_path),)))
    found = record(wanted, lambda: python(WRITE, tmp_path, count))

    kept = {each.content for each in found.of("write", under=tmp_path)}
    assert kept <= {b"written %d" % n for n in range(count)}
    lost = sum(loss.count or 0 for loss in found.losses if loss.kind == "lost")
    others = 100  # files that other processes close meanwhile are shed with ours
    assert count <= len(kept) + lost <= count + others
    assert (lost > 0) >= (room is not None)


def test_three_thousand_programs(tmp_path: Path) -> None:
    """Each run once and deleted at once: each is kept, and each execution has its hash."""
    found = record(Wanted(exec=True), lambda: python(DROP, tmp_path, 3000))

    droppers(found, tmp_path, 3000)
    assert found.reasons == []
