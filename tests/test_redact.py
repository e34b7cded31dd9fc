"""``kcap redact``: what is hidden is nowhere in the copy, and all else is as it was."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_support import lines_of, run, shell
from redact_support import (
    NUMBER,
    PATTERN,
    SECRETS,
    SOURCE,
    found_in,
    host_events,
    planted,
    saved,
    texts,
)
from support import opened, read, rows_of, snapshot

from kcap.model.batch import Batch, concat
from kcap.model.side import Heartbeat, Loss, Side, Snapshot, SourceInfo
from kcap.state.processes import process_key
from kcap.transform import copies, hiding, patterns, redact
from kcap.transform.tokens import TOKEN, Key, load

SECRET = bytes(range(32))
EVERYTHING = ["--pattern", PATTERN, "--pattern", NUMBER]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key file."""
    path = tmp_path / "a.key"
    assert run("redact", "--new-key", path).exit_code == 0
    return path


def redacted(source: Path, key: Path, *words: str | Path, code: int = 0) -> Path:
    """The copy of a capture."""
    out = source.with_name("copy.kcap")
    result = run("redact", source, "-o", out, "--force", "--key-file", key, *words)
    assert result.exit_code == code, result.output
    return out


def events_of(path: Path) -> Batch:
    """The events of a capture."""
    return concat(read(path.read_bytes())[0])


@pytest.mark.parametrize(
    "words", [[], ["--canonical"], ["--columns-only"], ["--blobs", "hash"], ["--columns", "user"]]
)
def test_no_byte_of_a_copy_tells_a_secret(tmp_path: Path, key: Path, words: list[str]) -> None:
    """Fifty secrets are in every place that holds text; none is in the copy in any form."""
    source = planted(tmp_path / "in.kcap")
    assert found_in(source.read_bytes()) == set(SECRETS)

    out = redacted(source, key, *EVERYTHING, *words, code=3)  # the input has no end

    assert found_in(out.read_bytes()) == set()
    assert run("verify", out).exit_code == 0
    assert load(str(key)).hex().encode() not in out.read_bytes()


SKIPPED: dict[str, tuple[Any, str, Any, set[str]]] = {
    "a loss": (redact.Redact, "loss", lambda _, loss: loss, {"reason", "lost_event", "loss_kind"}),
    "the tables": (
        redact.Redact,
        "table",
        lambda _, name, rows: (name, rows),
        {"process", "thread", "fd", "handle", "username", "table_name", "table_column"}
        | {"unknown", "machine", "handle_details"},
    ),
    "the sources": (
        redact.Redact,
        "source",
        lambda _, info: info,
        {"host", "boot", "collector", "details", "details_name", "details_number", "recorder"},
    ),
    "ids": (redact.Redact, "_foreign", lambda _, v: list(v), {"source_id", "loss_source"}),
    "names of columns": (redact.Redact, "_names", lambda _, batch: batch, {"column"}),
    "shapes": (redact.Redact, "_shape", lambda _, text: text, {"column", "shape_type"}),
    "keys of processes": (redact.Redact, "_key_columns", lambda _, b: b, {"process_key"}),
    "JSON": (hiding.Hider, "json", lambda _, values: list(values), {"json", "json_name"}),
    "bytes": (hiding.Hider, "data", lambda _, values: list(values), {"bytes", "wide"}),
    "names of blobs": (
        copies.RedactedArtifacts,
        "_copy",
        lambda self, *parts: super(copies.RedactedArtifacts, self)._copy(*parts),
        {"blob", "blob_path", "blob_details", "blob_reason", "blob_truncated"},
    ),
}


@pytest.mark.parametrize("place", SKIPPED)
def test_a_place_that_is_left_out_is_noticed(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Negative control: where one place is not redacted, the search finds its secrets."""
    owner, name, instead, expected = SKIPPED[place]
    source = planted(tmp_path / "in.kcap")
    monkeypatch.setattr(owner, name, instead)

    out = redacted(source, key, *EVERYTHING, "--blobs", "hash", code=3)

    assert expected <= found_in(out.read_bytes())


def test_exact_bytes_that_are_left_alone_are_noticed(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: exact bytes beside a redacted text show what it was."""
    source = planted(tmp_path / "in.kcap")
    whole = redact.Redact._hidden

    def half(self: Any, batch: Batch, name: str, column: Any) -> Batch:
        raw = batch.get(f"{name}__raw")
        made = whole(self, batch, name, column)
        return made if raw is None else made.adding({f"{name}__raw": raw})

    monkeypatch.setattr(redact.Redact, "_hidden", half)

    out = redacted(source, key, *EVERYTHING, code=3)

    assert found_in(out.read_bytes()) == {"raw"}


def test_events_keep_identity_order_and_all_else(tmp_path: Path, key: Path) -> None:
    """Only the hidden columns differ, in each of them equal stays equal and nothing else is."""
    source = saved(tmp_path / "in.kcap", [host_events()])
    columns = ["user", "port", "big", "load", "ids"]

    out = redacted(source, key, "--columns", ",".join(columns), "--columns-only")

    before, after = events_of(source), events_of(out)
    changed = {"user", "arg_port__i64", "arg_big__u64", "arg_load__f64", "arg_ids__list_i64"}
    assert {n for n in before.columns if before.array(n) != after.array(n)} == changed
    assert before.columns.keys() == after.columns.keys()
    for name in changed:
        pairs = zip(before.array(name).to_pylist(), after.array(name).to_pylist(), strict=True)
        there = {(repr(a), repr(b)) for a, b in pairs}
        assert len(there) == len({a for a, _ in there}) == len({b for _, b in there}) > 1, name
    assert all(TOKEN.fullmatch(v) for v in after.array("user").to_pylist())
    assert min(after.array("arg_port__i64").to_pylist()) >= 1 << 62
    assert min(after.array("arg_big__u64").to_pylist()) >= 1 << 63


def test_equal_stays_equal_everywhere(tmp_path: Path, key: Path) -> None:
    """A value has one token, in its own column, in paths, lists and texts, and in details."""
    source = saved(tmp_path / "in.kcap", [host_events()])
    token = Key(load(str(key))).token

    out = redacted(source, key, "--columns", "user,host")

    lines = lines_of("cat", out)
    bob, host = token("bob"), token("web-7")
    (line,) = [r for r in lines if r["user"] == bob and r["ord"] == 1]
    assert line["arg_pathname__str"] == f"/home/{bob}/notes-1.txt"
    assert line["arg_argv__list"] == ["cat", f"/home/{bob}/notes-1.txt"]
    assert line["cmdline"] == f"cat --user {bob} /tmp"
    (info,) = opened(out.read_bytes()).info.sources
    assert info.host == host
    assert {r["source"] for r in lines} == {info.id}
    assert info.details["hostname"] == host
    assert info.details["note"] == f"of {host}"
    for name in (b"alice", b"bob", b"web-7"):
        assert name in source.read_bytes()
    assert not re.search(rb"alice|web-7", _plain(out))


def _plain(path: Path) -> bytes:
    from filter_support import uncovered

    return uncovered(path.read_bytes())


def test_another_key_gives_other_tokens(tmp_path: Path, key: Path) -> None:
    """The same key gives the same copy, another one no token in common."""
    source = saved(tmp_path / "in.kcap", [host_events()])
    other = tmp_path / "b.key"
    assert run("redact", "--new-key", other).exit_code == 0
    words = ("--columns", "user,uid", "--canonical")

    first = redacted(source, key, *words).read_bytes()
    again = redacted(source, key, *words).read_bytes()
    second = redacted(source, other, *words).read_bytes()

    assert first == again != second
    tokens = [set(TOKEN.findall(str(rows_of(read(d)[0])))) for d in (first, second)]
    assert all(tokens)
    assert not tokens[0] & tokens[1]


def test_a_filter_says_whose_values_are_hidden(tmp_path: Path, key: Path) -> None:
    """With -w the values of those events are hidden, everywhere, and no other ones."""
    source = saved(tmp_path / "in.kcap", [host_events()])
    token = Key(load(str(key))).token

    out = redacted(source, key, "--columns", "user,uid", "-w", "ps.username = 'bob'")

    lines = lines_of("cat", out)
    assert {r["user"] for r in lines} == {"alice", "root", token("bob")}
    assert {r["cmdline"].split()[2] for r in lines} == {"alice", "root", token("bob")}
    numbers = {r["user"]: r["uid"] for r in lines}
    assert numbers["alice"] == 1000
    assert numbers[token("bob")] == Key(load(str(key))).number(1001)


def test_keys_of_processes_do_not_confirm_a_guess(tmp_path: Path, key: Path) -> None:
    """Where a host's name is hidden, keys that were hashed from it are others, one for one."""
    unknown = replace(SOURCE, boot_id=None)
    names = [process_key("web-7", pid, 10**9) or "" for pid in range(4)]
    batch = host_events(8).adding(
        {
            "process_key": texts([names[i % 4] for i in range(8)]),
            "source": texts([unknown.id] * 8),
        }
    )
    table = Batch(4, {"machine": texts(["web-7"] * 4), "process_key": texts(names)})
    sides: list[Side] = [unknown, Snapshot({"processes": table})]
    source = saved(tmp_path / "in.kcap", [batch.with_before(sides)])

    out = redacted(source, key, "--columns", "host")

    (found,) = [s for b in read(out.read_bytes())[0] for s in b.before if isinstance(s, Snapshot)]
    keys = found.tables["processes"].array("process_key").to_pylist()
    assert events_of(out).array("process_key").to_pylist() == keys * 2
    assert len(set(keys)) == 4
    assert not set(keys) & set(names)
    host = Key(load(str(key))).token("web-7")
    assert set(found.tables["processes"].array("machine").to_pylist()) == {host}


@pytest.mark.parametrize("where", [[], ["-w", "ps.pid > 0"]])
def test_names_of_every_host_are_hidden_in_their_columns_only(
    tmp_path: Path, key: Path, where: list[str]
) -> None:
    """Where `root`, or what the user says, stands in other texts it stays; else it is a token."""
    source = saved(tmp_path / "in.kcap", [host_events()])
    token = Key(load(str(key))).token

    out = redacted(source, key, "--columns", "user", "--not-elsewhere", "x,bob", *where)

    lines = lines_of("cat", out)
    assert {r["user"] for r in lines} == {token("alice"), token("bob"), token("root")}
    assert {r["cmdline"].split()[2] for r in lines} == {token("alice"), "bob", "root"}


def test_paths_may_keep_their_structure(tmp_path: Path, key: Path) -> None:
    """Part by part: folders that were the same still are, and the extension stays."""
    source = saved(tmp_path / "in.kcap", [host_events()])
    token = Key(load(str(key))).token

    out = redacted(source, key, "--columns", "pathname", "--paths", "components")

    paths = {r["arg_pathname__str"] for r in lines_of("cat", out)}
    start = f"/{token('home')}/{token('alice')}/"
    assert f"{start}{token('notes-3')}.txt" in paths
    assert len({p.split("/")[2] for p in paths}) == 3
    assert all(p.endswith(".txt") for p in paths)


def test_a_copy_can_be_used_like_any_capture(tmp_path: Path, key: Path) -> None:
    """Every verb reads a redacted capture, and finds by tokens and numbers what it looks for."""
    source = saved(tmp_path / "in.kcap", [host_events()])
    out = redacted(source, key, "--columns", "user,uid,pid,host,event")
    made = Key(load(str(key)))

    for words in (
        *(["info"], ["info", "--host"], ["cat"], ["tree"], ["timeline"], ["stats"], ["verify"]),
        *(["cat", "--format", "tracee-json"], ["replay"], ["stats", "--by", "user"]),
    ):
        result = run(words[0], out, *words[1:])
        assert result.exit_code == 0, (words, result.output)
    rows = lines_of("cat", out, "-w", f"ps.username = '{made.token('bob')}'")
    assert [r["ord"] for r in rows] == list(range(1, 60, 3))
    rows = lines_of("cat", out, "-w", f"ps.pid = {made.number(11)}")
    assert [r["ord"] for r in rows] == list(range(1, 60, 5))


def test_what_was_redacted_is_told_and_nothing_else(tmp_path: Path, key: Path) -> None:
    """The sources tell names and the key's id, of a user's pattern only that there was one."""
    source = planted(tmp_path / "in.kcap")
    words = ["--columns", "user,exe", "--pattern", "email", "--pattern", "hïdden.hush"]

    first = redacted(source, key, *words, "-w", "ps.pid = 2", code=3)
    again = tmp_path / "again.kcap"
    run("redact", first, "-o", again, "--key-file", key)

    told = [s.details["redacted"] for s in opened(again.read_bytes()).info.sources]
    expected = {
        "blobs": "drop",
        "columns": ["exe", "user"],
        "columns_only": False,
        "key": Key(load(str(key))).id,
        "paths": "whole",
        "patterns": ["custom", "email"],
        "where": True,
    }
    assert all(entries[0] == expected and len(entries) == 2 for entries in told)
    assert b"hush" not in _plain(first)


def test_blobs_are_left_out_and_counted(tmp_path: Path, key: Path) -> None:
    """By default no blob is in the copy, which says so; it is no loss of this run."""
    source = saved(tmp_path / "in.kcap", [host_events(2)])
    source = with_blob(source, b"contents")

    result = run("redact", source, "-o", tmp_path / "o.kcap", "--key-file", key)

    assert result.exit_code == 0
    assert "1 blob left out" in result.output
    reader = opened((tmp_path / "o.kcap").read_bytes())
    assert not list(reader.manifests())
    losses = [s for b in reader.batches() for s in b.before if isinstance(s, Loss)]
    assert [(loss.kind, loss.reason) for loss in losses] == [
        ("filtered", "1 blob left out of this redacted copy")
    ]


def with_blob(path: Path, content: bytes) -> Path:
    """The capture with two blobs of the same bytes."""
    import io

    from kcap.format.writer import CaptureWriter

    out = io.BytesIO()
    writer = CaptureWriter(out)
    for batch in read(path.read_bytes())[0]:
        writer.write(batch)
    writer.blob([content], path="/home/alice/a")
    writer.close()
    path.write_bytes(out.getvalue())
    return path


def test_blobs_may_keep_size_and_a_token(tmp_path: Path, key: Path) -> None:
    """With `hash` a blob has its size and a token of its content, but no byte and no hash."""
    source = with_blob(saved(tmp_path / "in.kcap", [host_events(2)]), b"contents")
    (before,) = opened(source.read_bytes()).manifests()
    made = Key(load(str(key)))

    out = redacted(source, key, "--blobs", "hash", "--columns", "user")

    (after,) = opened(out.read_bytes()).manifests()
    assert (after.size, after.sha256) == (8, None)
    assert after.path == f"/home/{made.token('alice')}/a"
    assert before.sha256 is not None
    assert after.details == {copies.DIGEST: made.token(before.sha256)}
    assert before.sha256.encode() not in _plain(out)
    assert b"contents" not in _plain(out)


def test_blobs_are_kept_loudly(tmp_path: Path, key: Path) -> None:
    """With `keep` contents are as they were, and the run says so."""
    source = with_blob(saved(tmp_path / "in.kcap", [host_events(2)]), b"contents of alice")

    result = run(
        *("redact", source, "-o", tmp_path / "o.kcap", "--key-file", key),
        *("--columns", "user", "--blobs", "keep"),
    )

    assert "THE CONTENTS OF BLOBS ARE NOT REDACTED" in result.output
    reader = opened((tmp_path / "o.kcap").read_bytes())
    (manifest,) = reader.manifests()
    assert b"".join(reader.blobs.read(manifest)) == b"contents of alice"
    assert manifest.path is not None
    assert "alice" not in manifest.path


def test_more_values_than_there_is_room_for(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not all values can be looked for, there is no copy, and a way is shown."""
    from kcap.transform import collect

    monkeypatch.setattr(collect, "FOUND_BYTES", 500)
    source = saved(tmp_path / "in.kcap", [host_events()])
    words = ("redact", source, "-o", tmp_path / "o.kcap", "--key-file", key)

    result = run(*words, "--columns", "pathname")

    assert result.exit_code == 1
    assert "--columns-only" in result.output
    assert not (tmp_path / "o.kcap").exists()
    assert run(*words, "--columns", "pathname", "--columns-only").exit_code == 0


def test_a_pipe_is_read_twice_too(tmp_path: Path, key: Path) -> None:
    """From standard input, and to standard output, comes the copy that comes from a file."""
    source = saved(tmp_path / "in.kcap", [host_events()])
    copy = redacted(source, key, "--columns", "user", "--canonical")

    done = shell(
        f"kcap redact - -o - --key-file {key} --columns user --canonical < in.kcap > piped.kcap",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "piped.kcap").read_bytes() == copy.read_bytes()


def test_a_capture_without_events_keeps_what_it_says(tmp_path: Path, key: Path) -> None:
    """Sources, state and losses are in the copy though no event refers to them; heartbeats not."""
    sides: list[Side] = [SOURCE, snapshot(), Loss("lost", 3, "full"), Heartbeat(1, 1, 1, SOURCE.id)]
    source = saved(tmp_path / "in.kcap", [Batch(0, {}, tuple(sides))])

    for words in ([], ["--canonical"]):
        out = redacted(source, key, *words)
        found = [s for b in read(out.read_bytes())[0] for s in b.before]
        assert {type(s) for s in found} == {SourceInfo, Snapshot, Loss}


def test_patterns_are_listed() -> None:
    """The help of patterns names each of them and those of `secrets`."""
    result = run("redact", "--list-patterns")

    assert result.exit_code == 0
    assert "password-option" in result.output
    assert result.output.splitlines()[-1].split() == ["secrets", "all", "of", "these", "but", "ip"]
    assert {p.name for p in patterns.chosen(["secrets"])} == patterns.KNOWN.keys() - {"ip"}


def test_a_torn_input_is_copied_to_its_end(tmp_path: Path, key: Path) -> None:
    """All before the tear is in the copy, redacted; the exit code tells."""
    source = saved(tmp_path / "in.kcap", [host_events(30), host_events(30)])
    source.write_bytes(source.read_bytes()[:-200])

    out = redacted(source, key, "--columns", "user", code=3)

    assert len(lines_of("cat", out)) == 60
    assert b"alice" not in _plain(out)


def test_the_info_of_a_copy_has_sources(tmp_path: Path, key: Path) -> None:
    """A source that changed its id is still the source of its events and losses."""
    source = planted(tmp_path / "in.kcap")

    out = redacted(source, key, *EVERYTHING, code=3)

    batches, _ = read(out.read_bytes())
    sides = [s for b in batches for s in b.before]
    ids = {s.id for s in sides if isinstance(s, SourceInfo)}
    used = {v for b in batches for v in b.array("source").to_pylist()}
    assert len(used - ids) == 1  # of an event whose source nobody described
    assert ids < used
    assert {s.source for s in sides if isinstance(s, Loss) and s.kind == "lost"} <= ids
