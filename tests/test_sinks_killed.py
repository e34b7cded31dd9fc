"""Servers that are killed in the middle: what bulk indexing and Fluent Forward make of it.

RabbitMQ and plain HTTP are killed in their own tests. There is no package of Debian's for these
two: they are the strict endpoints of the other tests, each in a process of its own that keeps what
it took, as a real one does.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bulk_support import Bulk
from sink_support import OwnProcess, Peer, Request, Response, events, ids, sink
from test_sinks_fluent import Peer as FluentPeer

COUNT = 100_000
KILLS = 8

URLS = {
    "bulk": "elasticsearch+http://127.0.0.1:{}/?index=kcap&batch=500",
    "fluent": "fluent://127.0.0.1:{}?batch=500",
}


def sent(kind: str, folder: Path, count: int, kills: int) -> tuple[Any, list[str]]:
    """Send events to a server that is killed and started again meanwhile; the ids that it has."""
    server = OwnProcess(folder, __file__, kind)
    server.start()
    ended = threading.Event()
    chance = random.Random(kind)

    def kill() -> None:
        for number in range(1, kills + 1):
            # Not before it took more: a kill of a server that has nothing to do proves nothing.
            while len(server.ids) < number * count // (kills + 2) and not ended.is_set():
                time.sleep(0.02)
            time.sleep(chance.random() / 20)
            server.kill()
            time.sleep(0.1)
            server.start()

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        made = sink(URLS[kind].format(server.port))
        for start in range(0, count, 500):
            made.write(events(min(500, count - start), start))
        made.close()
        return made, server.ids
    finally:
        ended.set()
        killing.join()
        server.kill()


@pytest.mark.long
def test_a_bulk_server_that_is_killed_has_each_document_once(tmp_path: Path) -> None:
    """Every event is a document, in order; what was taken without an answer is not there twice."""
    made, found = sent("bulk", tmp_path, COUNT, KILLS)

    assert found == ids(COUNT)
    assert (made.confirmed, made.losses) == (COUNT, [])
    assert made.status["tries"] >= KILLS


@pytest.mark.long
def test_a_fluent_server_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    """Every event is there, in order; what came again is known by its id, one chunk a kill."""
    made, found = sent("fluent", tmp_path, COUNT, KILLS)

    assert list(dict.fromkeys(found)) == ids(COUNT)
    assert len(found) - COUNT <= KILLS * 500
    assert (made.confirmed, made.losses) == (COUNT, [])
    assert made.status["tries"] >= KILLS


@pytest.mark.long
def test_a_server_that_forgets_is_seen(tmp_path: Path) -> None:
    """The control: one that answers for what it does not keep is missing some after a kill."""
    _, found = sent("forgetful", tmp_path, 20_000, 2)

    assert len(set(found)) < 20_000


URLS["forgetful"] = URLS["bulk"]


def _bulk(port: int, path: Path, *, keeps: bool = True) -> None:
    """An Elasticsearch whose documents outlive it: notes ids before it answers, half by half."""
    bulk = Bulk()
    note = _noting(path)
    bulk.documents.update({("kcap", one): {} for one in path.read_text("ascii").split()})

    def answer(request: Request) -> Response:
        before = len(bulk.order)
        said = bulk.answer(request)
        fresh = bulk.order[before:]
        half = len(fresh) // 2
        note(fresh[:half])
        # A kill may come here, too: then the other half is sent again, and the first.
        if keeps or before % 3000:
            note(fresh[half:])
        return said

    Peer(answer, port).start()


class _Fluent(FluentPeer):
    """A Forward input that notes ids before it acknowledges them."""

    def __init__(self, port: int, note: Callable[[list[str]], None]) -> None:
        self._note = note
        super().__init__(port=port)

    def _take(self, message: Any) -> str | None:
        before = len(self.events)
        chunk = super()._take(message)
        self._note([record["kcap_id"] for _, _, record in self.events[before:]])
        return chunk


def _noting(path: Path) -> Callable[[list[str]], None]:
    """Adds ids to a file; a line that a kill has torn was never answered for, and goes."""
    out = os.open(path, os.O_RDWR | os.O_APPEND)
    os.ftruncate(out, path.read_bytes().rfind(b"\n") + 1)

    def note(found: list[str]) -> None:
        os.write(out, "".join(f"{one}\n" for one in found).encode())

    return note


def _main(kind: str, port: int, path: Path) -> None:
    if kind == "fluent":
        _Fluent(port, _noting(path))
    else:
        _bulk(port, path, keeps=kind == "bulk")
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
