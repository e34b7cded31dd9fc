"""Finding filaments, reading what they are without running them, and `kcap list filaments`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import run
from conftest import IS_ROOT
from filament_support import events, play

from kcap.errors import KcapError
from kcap.filament import source
from kcap.filament.api import Api
from kcap.filament.limits import SOURCE_BYTES

GOOD = """\"\"\"Looks.

Further.\"\"\"
import json, os.path
def on_next_event(event):
    raise SystemExit
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_name_is_looked_for_in_folders_first(tmp_path: Path) -> None:
    """A folder's filament wins over one of kcap's, the first folder over the second."""
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    write(second, "top_keys.py", GOOD)
    assert source.find("top_keys").path == source.SHIPPED / "top_keys.py"
    assert source.find("top_keys", [first, second]).path == second / "top_keys.py"
    write(first, "top_keys.py", GOOD)

    assert source.find("top_keys", [first, second]).path == first / "top_keys.py"
    assert source.find(str(second / "top_keys.py")).path == second / "top_keys.py"


def test_arguments_stand_behind_commas(tmp_path: Path) -> None:
    """`NAME,ARG,ARG` gives arguments, for names and for paths."""
    path = write(tmp_path, "a.py", GOOD)

    assert source.find("a,powershell.exe,x y", [tmp_path]).arguments == ("powershell.exe", "x y")
    assert source.find(f"{path},b").arguments == ("b",)


def test_what_it_says_is_read_without_running_it(tmp_path: Path) -> None:
    """Docstring, functions, era, imports and names come from the text."""
    found = source.read(write(tmp_path, "a.py", GOOD))

    assert (found.name, found.summary, found.handler, found.era) == (
        "a",
        "Looks.",
        "on_next_event",
        3,
    )
    assert {"json", "os", "os.path"} <= {*found.imports}
    assert found.functions == {"on_next_event"}
    old = source.read(write(tmp_path, "b.py", GOOD.replace("next_event", "next_kevent")))
    assert (old.handler, old.era) == ("on_next_kevent", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def on_next_event(event):\n    pass\n",
            "says what it does at line 1: expected a",
        ),
        ('"""  """\ndef on_next_event(event):\n    pass\n', "says what it does"),
        ('"""Doc."""\n', "has a function that gets the events: expected on_next_kevent"),
        ('"""Doc."""\ndef on_next_event():\n    pass\n', "gets one event at line 2"),
        ('"""Doc."""\ndef on_next_event(a, b=1):\n    pass\n', "gets one event"),
        ('"""Doc."""\ndef on_next_event(*a):\n    pass\n', "gets one event"),
        ('"""Doc."""\nasync def on_next_event(a):\n    pass\n', "gets one event"),
        ('"""Doc."""\ndef on_next_event(event:\n', "no Python: .* at line 2"),
        ('"""Doc."""\0', "no Python"),
        ('"""Doc."""\n' + "(" * 300 + ")" * 300, "no Python"),
        ("#" * (SOURCE_BYTES + 1), "too long for a filament: expected at most 1,048,576"),
    ],
)
def test_what_is_no_filament_is_refused(text: str, said: str, tmp_path: Path) -> None:
    """A file that can't be a filament says why, with its name and the line."""
    path = write(tmp_path, "a.py", text)
    with pytest.raises(KcapError, match=said) as caught:
        source.read(path)
    assert caught.value.file == str(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A filament is UTF-8, with or without a mark at its beginning."""
    path = tmp_path / "a.py"
    path.write_bytes(b"\xff\xfe" + GOOD.encode())
    with pytest.raises(KcapError, match="no UTF-8 at byte 0"):
        source.read(path)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert source.read(path).summary == "Looks."


@pytest.mark.parametrize("name", ["topkeys", "nowhere.py", "", "../secret", "a/b"])
def test_an_unknown_name_is_told(name: str, tmp_path: Path) -> None:
    """Who names none learns how to find them, and what may have been meant."""
    with pytest.raises(KcapError) as caught:
        source.find(name, [tmp_path])
    if name == "topkeys":
        assert "did you mean 'top_keys'?" in str(caught.value.hint)


def test_a_folder_must_be_one(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(KcapError, match="nowhere: no such folder"):
        source.find("top_keys", [tmp_path / "nowhere"])


@pytest.mark.skipif(not IS_ROOT, reason="what root must not trust")
def test_root_runs_no_filament_of_others(tmp_path: Path) -> None:
    """As root a filament, or a module beside it, that another user can change is refused."""
    path = write(tmp_path, "a.py", GOOD + "import beside\n")
    beside = write(tmp_path, "beside.py", "")
    assert source.read(path).modules[0].path == str(beside)
    beside.chmod(0o666)
    with pytest.raises(KcapError, match=r"beside\.py: root does not load what others can change"):
        source.read(path)
    beside.chmod(0o644)
    os.chown(path, 65534, 65534)
    with pytest.raises(KcapError, match="user 65534 owns it"):
        source.read(path)


def test_the_list(tmp_path: Path) -> None:
    """The list has kcap's filaments and those of folders, and says which can't be started."""
    write(tmp_path, "mine.py", GOOD)
    write(tmp_path, "broken.py", '"""Doc."""\ndef on_next_event(:\n')
    write(tmp_path, "mute.py", "def on_next_event(event):\n    pass\n")
    write(tmp_path, "helper.py", '"""A module."""\n')
    write(tmp_path, "_private.py", GOOD)
    result = run("list", "filaments", "--filament.path", tmp_path)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}

    assert {"mine", "broken", "mute", "top_keys", "watch_files"} <= lines.keys()
    assert not {"helper", "_private", "utils"} & lines.keys()
    assert "Looks." in lines["mine"]
    assert str(tmp_path / "mine.py") in lines["mine"]
    assert "can't be started: no Python" in lines["broken"]
    assert "can't be started: a filament says what it does" in lines["mute"]


def test_the_list_as_json_and_in_part(tmp_path: Path) -> None:
    """`--json` gives the same, a pattern a part of it, and one that fits nothing is an error."""
    write(tmp_path, "mine.py", GOOD)
    result = run("list", "filaments", "min", "--json", "--filament.path", tmp_path)
    (found,) = json.loads(result.stdout)["filaments"]

    assert found == {
        "name": "mine",
        "path": str(tmp_path / "mine.py"),
        "summary": "Looks.",
        "error": None,
    }
    assert run("list", "filaments", "nothing-like-it").exit_code == 2
    assert run("list", "filaments", "--filament.path", tmp_path / "no").exit_code == 1
    assert "filaments" in run("list").stdout


def test_the_page_shows_what_there_is(read_text: Callable[[str], str], tmp_path: Path) -> None:
    """docs/filaments.md has every function that a filament can call, and its example runs."""
    page = read_text("docs/filaments.md")
    table = page.partition("## What it can call")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)\(", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
    functions = Api(None, (), 1).functions()  # type: ignore[arg-type]
    assert {*named} - {"print"} == {*functions}

    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    batch = events([0.0, 1.0, 5.0], ["execve"] * 3, programs=["sh", "nc", "sh"])
    found = play(source.read(write(tmp_path, "a.py", example)), batch)
    assert found.text == "Program  Count\nsh           1\nnc           1\n"
    assert [alert["arg_severity"] for alert in found.alerts] == ["high"]


def test_the_command_line_runs_them(tmp_path: Path) -> None:
    """`kcap replay -f` prints what they print and nothing else; a failure is exit code 1."""
    capture = Path(__file__).parent.parent / "fixtures" / "first.kcap"
    body = '"""Doc."""\nimport sys\ndef on_next_event(event):\n    {}\n'
    good = write(tmp_path, "good.py", body.format("print(event['name'], *sys.argv[1:])"))
    bad = write(tmp_path, "bad.py", body.format("sys.exit(0)"))

    result = run("replay", "-f", f"{good},x", "evt.name = 'exec'", "-k", capture)
    assert result.exit_code == 0, result.output
    assert {*result.stdout.splitlines()} == {"exec x"}
    result = run("replay", "-f", bad, capture)
    assert result.exit_code == 1
    said = r"bad\.py: the filament bad failed in on_next_event, event \w+:0 .* at line 4"
    assert re.search(said, result.stderr)
