"""Keys of ``kcap redact``, and what is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cli_support import run
from redact_support import host_events, saved


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key file."""
    path = tmp_path / "a.key"
    assert run("redact", "--new-key", path).exit_code == 0
    return path


@pytest.mark.parametrize(
    "words", [[], ["in.kcap"], ["in.kcap", "-o", "x"], ["in.kcap", "--key-file", "x"]]
)
def test_what_is_missing_is_said(words: list[str]) -> None:
    """Without capture, output or key it is wrong usage."""
    result = run("redact", *words)

    assert result.exit_code == 2
    assert "give CAPTURE, -o FILE and --key-file FILE" in result.output


def test_a_key_is_private_and_new(tmp_path: Path, key: Path) -> None:
    """A key file is for its owner alone, is never replaced, and no two are alike."""
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()

    again = run("redact", "--new-key", key)
    other = run("redact", "--new-key", tmp_path / "b.key")

    assert again.exit_code == 1
    assert "exists already" in again.output
    assert key.read_bytes() == before
    assert other.exit_code == 0
    assert (tmp_path / "b.key").read_bytes() != before
    (tmp_path / "link").symlink_to(tmp_path / "c.key")
    assert run("redact", "--new-key", tmp_path / "link").exit_code == 1
    assert run("redact", "--new-key", "-").exit_code == 1


@pytest.mark.parametrize(
    ("content", "mode", "what"),
    [
        (b"", 0o600, "this is no redaction key"),
        (b"kcap-redaction-key:00ff", 0o600, "this is no redaction key"),
        (b"00" * 32, 0o600, "this is no redaction key"),
        (b"\xff" * 5000, 0o600, "this is no redaction key"),
        (b"kcap-redaction-key:" + b"00" * 32, 0o640, "others may read or change the key"),
        (None, 0, "the key can't be read"),
    ],
)
def test_a_bad_key_is_refused(tmp_path: Path, content: bytes | None, mode: int, what: str) -> None:
    """What is no key, or no secret, is not used, and nothing is written."""
    path = tmp_path / "bad.key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    source = saved(tmp_path / "in.kcap", [host_events(2)])

    result = run("redact", source, "-o", tmp_path / "o.kcap", "--key-file", path)

    assert result.exit_code == 1
    assert what in result.output
    assert not (tmp_path / "o.kcap").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--columns", "cmdlin"], "did you mean 'cmdline'"),
        (["--columns", "nobody_has_this"], "no event has a column or parameter"),
        (["--columns", "ord"], "part of what identifies an event"),
        (["--pattern", "emial"], "did you mean 'email'"),
        (["--pattern", "("], "is no regular expression"),
        (["--columns-only", "--columns", "cmdlin"], "did you mean 'cmdline'"),
    ],
)
def test_a_name_that_means_nothing_is_refused(
    tmp_path: Path, key: Path, words: list[str], what: str
) -> None:
    """Whoever misspells what to hide is told, and does not get a copy that shows it."""
    source = saved(tmp_path / "in.kcap", [host_events(2)])

    result = run("redact", source, "-o", tmp_path / "o.kcap", "--key-file", key, *words)

    assert result.exit_code == 1
    assert what in result.output
    assert "--columns-only" in words or not (tmp_path / "o.kcap").exists()
