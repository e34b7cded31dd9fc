"""Lists of arguments are command lines: what is hidden in the one form is hidden in the other."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from cli_support import lines_of, run
from filter_support import NS
from redact_support import SOURCE, saved, texts
from support import batch_of

from kcap.model.batch import Column
from kcap.model.classes import TypeClass
from kcap.transform import lines

LINES = [
    ["curl", "-u", "bob:hunter1secret", "http://x/"],
    ["curl", "--user", "bob:hunter2secret"],
    ["mysql", "-u", "root", "-phunter3secret"],
    ["sshpass", "-p", "hunter4secret", "ssh", "host"],
    ["tool", "--password", "hunter5secret", "--verbose"],
    ["tool", "--pass", "hunter6secret"],
    ["curl", "-u", "bob:hunter7secret", "https://me:hunter8secret@x/"],
    ["redis-cli", "-h", "db", "-a", "hunter9secret"],
    ["htpasswd", "-b", "/etc/f", "bob", "hunter10secret"],
    ["curl", "-ubob:hunter11secret", "http://x/"],
    ["curl", "-H", "Authorization: Token hunter12secret", "http://x/"],
]
PLAIN = [["ls", "-l", "/tmp"], [], ["mysql", "-u", "root"], ["mkdir", "-p", "a/b"]]


def capture_of(path: Path, *, cmdline: bool) -> Path:
    """Processes that were started, with their arguments."""
    lines = [*LINES, *PLAIN]
    batch = batch_of([(NS + i, {"argv": line}) for i, line in enumerate(lines)])
    count = len(lines)
    made = {
        "event": texts(["exec"] * count),
        "source": texts([SOURCE.id] * count),
        "pid": Column(TypeClass.I64, pa.array(range(10, 10 + count))),
    }
    if cmdline:
        made["cmdline"] = texts([" ".join(line) for line in lines])
    return saved(path, [batch.adding(made).with_before([SOURCE])])


def copied(tmp_path: Path, *words: str, cmdline: bool) -> list[dict[str, object]]:
    """The events of a redacted copy."""
    key, out = tmp_path / "a.key", tmp_path / "out.kcap"
    if not key.exists():
        assert run("redact", "--new-key", key).exit_code == 0
    source = capture_of(tmp_path / "in.kcap", cmdline=cmdline)
    result = run("redact", source, "-o", out, "--force", "--key-file", key, *words)
    assert result.exit_code == 0, result.output
    found: list[dict[str, object]] = lines_of("cat", out)
    return found


@pytest.mark.parametrize("words", [(), ("--columns-only",)])
@pytest.mark.parametrize("cmdline", [True, False])
def test_a_secret_is_found_whatever_item_says_that_it_is_one(
    words: tuple[str, ...], cmdline: bool, tmp_path: Path
) -> None:
    """A password behind an option of its own is hidden in a list of arguments alone, too."""
    found = copied(tmp_path, *words, cmdline=cmdline)
    assert "hunter" not in str(found)
    hidden, plain = found[: len(LINES)], found[len(LINES) :]
    assert all("redacted:" in str(event["arg_argv__list"]) for event in hidden)
    assert [event["arg_argv__list"] for event in plain] == PLAIN
    for event, line in zip(hidden, LINES, strict=True):
        items = event["arg_argv__list"]
        assert isinstance(items, list)
        assert len(items) == len(line)


def test_without_the_line_they_would_be_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: looked at one by one, items do not tell."""
    monkeypatch.setattr(lines, "hidden", lambda _hider, _before, after: after)
    left = str(copied(tmp_path, cmdline=False))
    assert [n for n in range(1, 13) if f"hunter{n}secret" in left] == [
        *(1, 2, 3, 4, 7),
        *(9, 10, 11),
    ]


@pytest.mark.parametrize("cmdline", [True, False])
def test_the_arguments_are_the_command_line(cmdline: bool, tmp_path: Path) -> None:
    """Who hides command lines hides the lists of arguments that they were made of."""
    for words in (("--columns", "cmdline"), ("--columns", "cmdline", "--columns-only")):
        found = str(copied(tmp_path, *words, cmdline=cmdline))
        assert not [word for line in LINES for word in line if f"'{word}'" in found]
