"""What a manifest says and verifies that its options do not: threads, and keys of redaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from cli_support import run
from manifest_support import COUNTER, made

from kcap.model.batch import Batch, constant
from kcap.model.classes import TypeClass
from kcap.transform import tokens
from kcap.transform.basic import Tags

RUNS: dict[str, tuple[str, ...]] = {
    "filament": ("-f", "./counter.py"),
    "transform": ("--transform", "tags=site:lab", "--format", "jsonl"),
    "sink": ("--sink", "file:events.jsonl", "--sink", "null:"),
    "server": ("--sink", "https://nobody:secret@127.0.0.1:9/events", "-n", "0"),
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixtures: Path) -> Path:
    """A folder of its own with a recording."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "host.kcap").write_bytes((fixtures / "first.kcap").read_bytes())
    return tmp_path


def verified() -> tuple[int, str]:
    """What verifying the manifest says on standard output."""
    result = run("replay", "--verify", "run.json")
    return result.exit_code, result.stdout


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Says how many threads columns are worked on with."""
    before = pa.cpu_count(), pa.io_thread_count()

    def use(count: int) -> None:
        pa.set_cpu_count(count)
        pa.set_io_thread_count(count)

    yield use
    pa.set_cpu_count(before[0])
    pa.set_io_thread_count(before[1])


@pytest.mark.parametrize("name", RUNS)
def test_threads_make_no_difference(name: str, host: Path, threads: Callable[[int], None]) -> None:
    """What sinks, transformers and filaments get with two threads they get with one and four."""
    (host / "counter.py").write_text(COUNTER)
    threads(2)
    made(*RUNS[name])

    for count in (1, 4):
        threads(count)
        code, said = verified()
        assert code == 0, said


@pytest.mark.usefixtures("host")
def test_what_depends_on_threads_is_seen(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a transformer that tells their number gives another digest."""
    process = Tags.process

    def telling(self: Tags, batch: Batch) -> Batch:
        many = constant(TypeClass.I64, pa.cpu_count(), batch.rows)
        return process(self, batch).adding({"ext_threads": many})

    monkeypatch.setattr(Tags, "process", telling)
    threads(2)
    made(*RUNS["sink"], "--transform", "tags=site:lab")
    assert verified()[0] == 0
    threads(4)
    code, said = verified()
    assert (code, "sha256" in said) == (1, True), said


def test_another_redaction_key_is_told(host: Path) -> None:
    """The options name its file alone: the manifest has an id of what is in it."""
    key = host / "a.key"
    assert run("redact", "--new-key", key).exit_code == 0
    redact = json.dumps({"columns": ["pid"], "key-file": str(key)})
    says = made("--transform", f"redact={redact}")
    assert says["parts"] == [{"kind": "redaction key", "id": tokens.Key(tokens.load(str(key))).id}]
    assert verified()[0] == 0
    key.unlink()
    assert run("redact", "--new-key", key).exit_code == 0
    code, said = verified()
    assert (code, "parts[0].id" in said) == (1, True), said
