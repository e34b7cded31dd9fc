"""Run manifests: a replay can be repeated, and nothing of it can differ unnoticed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from cli_support import run
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_support import COUNTER, made
from support import FILE_ID, batch_of, capture, make_events

from kcap.errors import BadInputError, KcapError, VersionError
from kcap.model.batch import Batch
from kcap.replay import manifest
from kcap.replay.manifest import Digested, differences
from kcap.writers.sinks import spec
from kcap.writers.sinks.dry import Dry


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixtures: Path) -> Path:
    """A folder of its own with a recording, and the manifest of a run of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "host.kcap").write_bytes((fixtures / "first.kcap").read_bytes())
    return tmp_path


def verified(path: str = "run.json") -> tuple[int, str]:
    """What verifying a manifest says on standard output."""
    result = run("replay", "--verify", path)
    return result.exit_code, result.stdout


RUNS: dict[str, tuple[str, ...]] = {
    "line": (),
    "jsonl": ("--format", "jsonl", "-o", "out.jsonl"),
    "table": ("--format", "table"),
    "csv": ("--format", "csv"),
    "tracee-json": ("--format", "tracee-json"),
    "kcap": ("--format", "kcap", "-o", "out.kcap"),
    "template": ("--template", "{{ .Process }} {{ .Type }}"),
    "filter": ("-w", "ps.name = 'sh' or ps.ancestor in ('sh')", "--format", "jsonl"),
    "era": ("-w", "evt.name = 'exec'", "--era", "3"),
    "words": ("evt.name = 'exit'", "-n", "5"),
    "speed": ("-n", "7", "--speed", "1000", "--start", "#20"),
    "middle": ("--start", "#20", "--end", "2026-11-21T01:01:27.905Z"),
    "view": ("--view", "forkstat -e exec,exit"),
    "events of a view": ("--view", "forkstat", "-e", "exec,exit"),
    "color": ("--color", "always"),
    "columns": ("--format", "jsonl", "-F", "ts,event,pid"),
    "transform": ("--transform", "tags=site:lab", "--format", "jsonl"),
    "sink": ("--sink", "file:events.jsonl", "--sink", "null:"),
    "server": ("--sink", "https://nobody:secret@127.0.0.1:9/events", "-n", "0"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_again(name: str, host: Path) -> None:
    """Whatever was asked for: --verify alone runs it again, and nothing differs."""
    says = made(*RUNS[name])
    before = sorted(p.name for p in host.iterdir())

    code, said = verified()

    assert (code, said.count("\n")) == (0, 1), said
    assert said.startswith("run.json: the same: ")
    assert says["exit_code"] == 0
    assert sorted(p.name for p in host.iterdir()) == before
    assert "secret" not in (host / "run.json").read_text()


@pytest.mark.parametrize("options", ["csv&fields=pid,event", "csv", "table-verbose", "jsonl"])
def test_a_file_beside_the_console_is_described_as_it_is(options: str, host: Path) -> None:
    """The digest of what a sink of this machine was given is that of its file, and verifies."""
    says = made("--sink", f"file:beside?format={options}")
    content = (host / "beside").read_bytes()
    assert says["outputs"][-1]["sha256"] == hashlib.sha256(content).hexdigest()
    assert says["outputs"][-1]["bytes"] == len(content) > 0
    assert verified()[0] == 0


def test_what_goes_with_messages_is_described() -> None:
    """Ids and rendered options have digests of their own, which do not depend on batches."""

    def described(option: str, *batches: Batch) -> dict[str, Any]:
        dry = Dry(spec.parse(f"syslog+udp://127.0.0.1:9?message-type={option}"))
        for batch in batches:
            dry.write(batch)
        return dry.described()

    whole = make_events(60)
    first = described("{{ pid }}", whole)
    assert first["beside"].keys() == {"id", "message-type", "hostname", "process", "severity"}
    assert described("{{ pid }}", whole.slice(0, 7), whole.slice(7, 60)) == first
    other = described("x{{ pid }}", whole)
    assert other["sha256"] == first["sha256"]
    differing = {n for n, digest in other["beside"].items() if digest != first["beside"][n]}
    assert differing == {"message-type"}


@pytest.mark.usefixtures("host")
def test_what_decides_what_a_server_gets_is_an_option_of_the_run() -> None:
    """Options of a sink are in the manifest, but for secrets and how its server is reached."""
    url = "amqp://me:sesame@127.0.0.1:9/v?exchange=audit&routing-key={{ event }}.a&heartbeat=5"
    (said,) = made("--sink", url, "-n", "0")["options"]["sink"]
    assert "exchange=audit" in said
    assert "routing-key=%7B%7B%20event%20%7D%7D.a" in said
    assert "sesame" not in said
    assert "heartbeat" not in said
    assert verified()[0] == 0


def test_what_it_says(host: Path) -> None:
    """Input, options, counts and output, each with its digest; the same bytes for the same run."""
    says = made("--format", "jsonl", "-o", "out.jsonl", "-n", "60")
    first = (host / "run.json").read_bytes()
    content = (host / "host.kcap").read_bytes()
    out = (host / "out.jsonl").read_bytes()

    assert says["capture"]["name"] == "host.kcap"
    assert says["capture"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert says["capture"]["bytes"] == len(content)
    assert says["counts"] == {"alerts": 0, "in": None, "lost": {}, "out": 60}
    assert says["outputs"] == [
        {
            "name": "out.jsonl",
            "format": "jsonl",
            "bytes": len(out),
            "sha256": hashlib.sha256(out).hexdigest(),
        }
    ]
    assert says["options"] == {"color": "never", "format": "jsonl", "limit": 60}
    assert set(says["made_by"]) >= {"format", "kcap", "numpy", "pyarrow", "libzstd"}
    made("--format", "jsonl", "-o", "out.jsonl", "-n", "60")
    assert (host / "run.json").read_bytes() == first
    assert first == manifest.packed(says)
    assert (host / "run.json").stat().st_mode & 0o077 == 0


def changed(says: dict[str, Any], *path: Any, to: Any) -> None:
    """Write the manifest with another value."""
    inner = says
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    Path("run.json").write_bytes(manifest.packed(says))


DIFFERENT: tuple[tuple[tuple[Any, ...], Any, str], ...] = (
    (("options", "limit"), 59, "counts.out"),
    (("options", "format"), "line", "outputs[0].sha256"),
    (("options", "where"), "evt.name = 'exec'", "outputs[0].sha256"),
    (("options", "start"), "#1", "outputs[0].sha256"),
    (("options", "transform"), ["remove=exit_code"], "outputs[0].sha256"),
    (("counts", "alerts"), 1, "counts.alerts: 1 in the manifest, 0 now"),
    (("counts", "lost"), {"lost": 1}, "counts.lost.lost: 1 in the manifest, nothing now"),
    (("exit_code",), 3, "exit_code: 3 in the manifest, 0 now"),
    (("outputs", 0, "sha256"), "00" * 32, "outputs[0].sha256"),
    (("outputs",), [], "outputs[0]: nothing in the manifest"),
    (("capture", "content_hash"), "00" * 32, "capture.content_hash"),
    (("parts",), [{"kind": "filament"}], "parts[0]"),
)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(("path", "value", "said"), DIFFERENT)
def test_one_difference_is_told(path: tuple[Any, ...], value: Any, said: str) -> None:
    """One option, event, count or digest that is another one: exit code 1, and which it is."""
    says = made("--format", "jsonl", "-n", "60")
    assert verified()[0] == 0
    changed(says, *path, to=value)

    code, found = verified()

    assert code == 1
    assert said in found
    assert all(line.startswith("run.json: ") for line in found.splitlines())


def test_another_capture_is_told(host: Path) -> None:
    """One byte of the capture, or none of it: its name, and what was expected."""
    made()
    path = host / "host.kcap"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    result = run("replay", "--verify", "run.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "host.kcap: the capture is not the one of this run" in result.stderr
    path.unlink()
    result = run("replay", "--verify", "run.json")
    assert result.exit_code == 1
    assert "host.kcap: the capture of this run is missing" in result.stderr


def test_one_event_that_differs_is_told(host: Path) -> None:
    """Two captures of which one event's value differs: the digests tell them apart."""
    for name, value in (("a", 7), ("b", 8)):
        events = [(1000 + i, {"fd": 3 if i != 50 else value}) for i in range(100)]
        (host / f"{name}.kcap").write_bytes(capture([batch_of(events)]))
    assert run("replay", "a.kcap", "--manifest", "run.json").exit_code == 0
    says = json.loads((host / "run.json").read_text())
    says["capture"] = manifest.capture("b.kcap", _source(host / "b.kcap"))
    (host / "run.json").write_bytes(manifest.packed(says))

    code, found = verified()

    assert code == 1
    assert [line.split(":")[1] for line in found.splitlines()] == [" outputs[0].sha256"]


def _source(path: Path) -> Any:
    from kcap.opening import open_source

    with path.open("rb") as stream:
        return open_source(path, stream=io.BytesIO(stream.read()))


def test_a_filament_that_changed_is_told(host: Path) -> None:
    """Its tables are part of the output, its source part of the manifest."""
    path = host / "counter.py"
    path.write_text(COUNTER)
    says = made("-f", "./counter.py")
    assert says["parts"][0]["name"] == "counter"
    assert says["outputs"][0]["bytes"] > 50
    assert verified()[0] == 0

    path.write_text(COUNTER + "\n# another one\n")
    code, found = verified()
    assert code == 1
    assert [line.split(":")[1] for line in found.splitlines()] == [" parts[0].sha256"]

    path.write_text(COUNTER.replace("+ 1", "+ 2"))
    code, found = verified()
    assert code == 1
    assert "outputs[0].sha256" in found
    path.unlink()
    assert run("replay", "--verify", "run.json").exit_code == 1


def test_events_in_a_file_and_what_a_filament_prints(host: Path) -> None:
    """Two outputs, each with its digest: the file has the events alone."""
    (host / "counter.py").write_text(COUNTER)
    words = ("-f", "./counter.py", "--format", "jsonl")
    says = made(*words, "-o", "out.jsonl")

    assert [one["name"] for one in says["outputs"]] == ["-", "out.jsonl"]
    assert (host / "out.jsonl").read_text() == run("replay", "host.kcap", *words[2:]).stdout
    code, said = verified()
    assert (code, "the same" in said) == (0, True), said
    changed(says, "outputs", 0, "sha256", to="00" * 32)
    assert verified()[0] == 1


def test_the_folder_can_be_moved(host: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The capture is looked for beside the manifest first, then where it was."""
    made("--format", "jsonl")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("host.kcap", "run.json"):
        (host / name).rename(elsewhere / name)
    assert verified(str(elsewhere / "run.json"))[0] == 0
    (elsewhere / "host.kcap").rename(host / "host.kcap")
    assert verified(str(elsewhere / "run.json"))[0] == 0
    (host / "host.kcap").rename(elsewhere / "other.kcap")
    assert verified(str(elsewhere / "run.json"))[0] == 1


def test_settings_of_the_host_are_not_the_runs(host: Path) -> None:
    """What a settings file said is in the manifest; another one later changes nothing."""
    settings = host / "kcap.yaml"
    settings.write_text("replay:\n  format: jsonl\ntransformers:\n  - tags: {site: lab}\n")
    words = ("--config", str(settings), "replay")
    assert run(*words, "host.kcap", "--manifest", "run.json").exit_code == 0
    says = json.loads((host / "run.json").read_text())
    assert says["options"]["format"] == "jsonl"
    assert says["options"]["transform"] == ['tags={"site": "lab"}']

    settings.write_text("replay:\n  format: line\n  state: true\ntransformers:\n  - remove: [fd]\n")
    for command in (("replay",), words):
        result = run(*command, "--verify", "run.json")
        assert result.exit_code == 0, result.output


def test_a_lossy_run_is_repeated_too(host: Path) -> None:
    """Losses are counts like others: exit code 3 then, and again."""
    path = host / "host.kcap"
    content = bytearray(capture([make_events(60)], chunk_rows=20))
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run("replay", "host.kcap", "--manifest", "run.json").exit_code == 3
    says = json.loads((host / "run.json").read_text())
    assert says["exit_code"] == 3
    assert sum(says["counts"]["lost"].values())
    assert verified()[0] == 0


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", BadInputError),
        (b"nonsense", BadInputError),
        (b"\xff\xfe", BadInputError),
        (b"[]", BadInputError),
        (b"{}", BadInputError),
        (b'{"kcap_manifest": true}', BadInputError),
        (b'{"kcap_manifest": 2}', VersionError),
        (b'{"kcap_manifest": 1}', BadInputError),
        (b"[" * 100_000, BadInputError),
    ],
)
def test_what_is_no_manifest_is_refused(
    content: bytes, error: type[KcapError], tmp_path: Path
) -> None:
    """With the file's name, and what was expected; never with anything but an error of ours."""
    path = tmp_path / "run.json"
    path.write_bytes(content)

    with pytest.raises(error) as found:
        manifest.read(str(path))

    assert found.value.file == str(path)
    assert run("replay", "--verify", path).exit_code == 1


@settings(max_examples=30)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_any_value_in_its_place_is_refused_or_compared(value: Any) -> None:
    """A manifest that somebody made up ends in a report or an error of ours."""
    good = {
        "capture": {"name": "a", "sha256": "b"},
        "counts": {},
        "exit_code": 0,
        "kcap_manifest": 1,
        "made_by": {},
        "options": {},
        "outputs": [],
        "parts": [],
    }
    for name, known in good.items():
        found = differences(good | {name: value}, good)
        same = name == "made_by" or json.dumps(value) == json.dumps(known)
        assert (found == []) == same


@pytest.mark.usefixtures("host")
def test_options_that_can_not_be_run_are_an_error() -> None:
    """An option that there is not, or a value that it can't have."""
    for name, value in (("nothing", 1), ("limit", "many"), ("format", "odd"), ("where", "ps.")):
        says = made()
        changed(says, "options", name, to=value)
        result = run("replay", "--verify", "run.json")
        assert result.exit_code == 1, name
        assert result.stdout == ""


def test_nothing_else_beside_verify(host: Path) -> None:
    """The manifest says all: other words are wrong usage, and so is a manifest of a stream."""
    made()
    assert run("replay", "--verify", "run.json", "host.kcap").exit_code == 2
    assert run("replay", "--verify", "run.json", "--era", "3").exit_code == 2
    assert run("replay", "--verify", "run.json", "-v").exit_code == 0
    assert run("replay", "--verify", "run.json", "--format", "jsonl").exit_code == 2
    assert run("replay", "-", "--manifest", "other.json", input=b"").exit_code == 2
    assert not (host / "other.json").exists()
    assert run("replay", "host.kcap", "--manifest", "run.json").exit_code == 1


@pytest.mark.parametrize("name", ["manifest", "output", "resume", "kcap", "verify", "force"])
def test_a_manifest_that_would_write_is_not_obeyed(name: str, host: Path) -> None:
    """Whoever made it up: verifying writes nothing, and reads no other capture."""
    says = made()
    before = sorted(p.name for p in host.iterdir())
    changed(says, "options", name, to=True if name == "force" else "victim")

    result = run("replay", "--verify", "run.json")

    assert (result.exit_code, result.stdout) == (1, "")
    assert f"a manifest has no option {name}" in result.stderr
    assert sorted(p.name for p in host.iterdir()) == before


@pytest.mark.usefixtures("host")
def test_versions_are_told_and_not_compared() -> None:
    """An upgrade is what a comparison is for: it is a note, not a difference."""
    says = made()
    changed(says, "made_by", "pyarrow", to="1.0.0")

    code, found = verified()

    assert code == 0
    assert 'run.json: note: made_by.pyarrow: "1.0.0" in the manifest' in found


class Slow(io.RawIOBase):
    """A stream that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data[:3])
        return min(3, len(data))


@given(st.lists(st.binary(max_size=10), max_size=10))
def test_what_is_hashed_is_what_was_taken(parts: list[bytes]) -> None:
    """Also where a stream takes only some of what it is given."""
    inner = Slow()
    stream = Digested(cast("Any", inner))
    for part in parts:
        taken = stream.write(part)
        while taken < len(part):
            taken += stream.write(memoryview(part)[taken:])

    assert stream.sha256 == hashlib.sha256(b"".join(parts)).hexdigest()
    assert inner.data == b"".join(parts)
    assert stream.size == len(inner.data)


def test_file_ids_are_told(host: Path, data: Callable[[str], Path]) -> None:
    """A capture has an id and a hash of its events; a foreign file has the hash of its bytes."""
    (host / "new.kcap").write_bytes(capture([make_events(10)]))
    assert run("replay", "new.kcap", "--manifest", "new.json").exit_code == 0
    new = json.loads((host / "new.json").read_text())["capture"]
    assert new["file_id"] == FILE_ID.hex()
    assert len(new["content_hash"]) == 64
    foreign = data("scap/sample.scap")
    assert run("replay", foreign, "--manifest", "scap.json").exit_code == 0
    says = json.loads((host / "scap.json").read_text())["capture"]
    assert (says["file_id"], says["content_hash"], says["format"]) == (None, None, "scap")
    assert verified("scap.json")[0] == 0
