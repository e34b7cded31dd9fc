"""The unit file of the service, as systemd reads it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import KcapError
from kcap.tools import service_unit
from kcap.tools.service_unit import Unit


def unit(*words: str, captures: str = "/var/lib/kcap", name: str = "kcap") -> Unit:
    """A service's unit."""
    return Unit(name, (sys.executable, "-I", "-m", "kcap.tools"), words, captures, "/bin/kill")


def unquoted(line: str) -> list[str]:
    """The words of a command line as systemd.service(5) and systemd.unit(5) say they are read."""
    words = shlex.split(line.replace("\\x", "\\\\x"), posix=True)
    dollars = [word.replace("$$", "$").replace("%%", "%") for word in words]
    decoded = []
    for word in dollars:
        head, *rest = word.split("\\x")
        decoded.append(head + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest))
    return decoded


@given(st.lists(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs"]))))
def test_every_word_arrives_as_it_was_given(words: list[str]) -> None:
    """Quotes, blanks, percent and dollar signs, line feeds: nothing becomes a word or a line."""
    text = unit(*words).text()

    [line] = [one for one in text.split("\n") if one.startswith("ExecStart=")]
    arguments = unquoted(line.removeprefix("ExecStart="))
    assert arguments[:4] == [sys.executable, "-I", "-m", "kcap.tools"]
    assert arguments[4:7] == ["record", "-o", "/var/lib/kcap/%H.kcap"]
    assert arguments[7:] == words


def test_a_backslash_is_doubled() -> None:
    """Or systemd would read an escape where none was meant."""
    assert service_unit.quoted(r"a\nb") == r'"a\\nb"'
    assert service_unit.quoted("a%$b") == '"a%%$b"'
    assert service_unit.quoted("a%$b", exec_line=True) == '"a%%$$b"'
    assert service_unit.quoted("/usr/bin/x-1.kcap") == "/usr/bin/x-1.kcap"


def test_the_folder_is_all_that_may_be_written() -> None:
    """systemd makes one below /var/lib; another one is left to kcap, whose errors are readable."""
    below, other = unit().text(), unit(captures="/data/of ours").text()

    assert "\nProtectSystem=strict\n" in below
    assert "\nStateDirectory=kcap\nStateDirectoryMode=0700\n" in below
    assert "ReadWritePaths" not in below
    assert '\nReadWritePaths="-/data/of ours"\n' in other
    assert "StateDirectory" not in other
    assert '-o "/data/of ours/%H.kcap"' in other


@pytest.mark.parametrize("captures", ["/data/x", "/var/lib/kcap", "/d/50% of $x \\ \"y\" 'z' ü"])
def test_the_folder_can_be_read_back_from_the_unit(captures: str) -> None:
    """And from no unit that somebody else wrote, even one with such a section."""
    text = unit(captures=captures).text()

    assert service_unit.captures_of(text) == captures
    assert service_unit.captures_of(text.replace("Written by", "Like one by", 1)) is None
    assert service_unit.captures_of(f"{service_unit.MARK}\n[Unit]\n") is None


@pytest.mark.parametrize(
    ("name", "captures"),
    [
        ("", "/x"), ("a b", "/x"), ("../x", "/x"), ("x@y", "/x"), ("-x", "/x"), ("x.service", "/x"),
        ("x" * 300, "/x"), ("x", "relative"), ("x", "/x/../etc"), ("x", "/"), ("x", "/a\nExecStop"),
    ],
)  # fmt: skip
def test_what_systemd_would_read_otherwise_is_refused(name: str, captures: str) -> None:
    """Names and folders that are none, or would write lines of their own into a unit."""
    with pytest.raises(KcapError, match="is no "):
        unit(name=name, captures=captures)


def _verified(path: Path) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed; on Debian: apt-get install systemd")
    return subprocess.run(
        [program, "verify", "--man=no", path], capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize("captures", ["/var/lib/kcap", "/data/of ours/50%"])
def test_systemd_finds_no_fault_with_it(tmp_path: Path, captures: str) -> None:
    """Nothing is unknown, misspelt or misplaced; a setting that there is not is noticed."""
    path = tmp_path / "kcap.service"
    text = unit("--note", 'a "b" 5% $x \\', captures=captures).text()

    path.write_text(text)
    done = _verified(path)
    assert (done.returncode, done.stderr) == (0, b"")
    path.write_text(text.replace("NotifyAccess", "NotifyAcces"))
    assert b"NotifyAcces" in _verified(path).stderr
    path.write_text(text.replace("Type=notify", "Type=notfiy"))
    assert _verified(path).stderr


def test_a_service_has_sockets_of_the_internet_for_its_sinks_alone() -> None:
    words = ["service", "install", "--print"]
    without, with_ = (
        run(*words, *more).stdout for more in ([], ["--sink", "https://siem.example.org/"])
    )

    assert "RestrictAddressFamilies=AF_UNIX AF_NETLINK\n" in without
    assert "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6\n" in with_
    assert "--sink https://siem.example.org/" in with_
