"""Runs verbs of kcap on many files, in one process with little memory and little time.

    python tests/hostile_child.py FOLDER MEMORY_BYTES SECONDS VERB,... <files

Reads the names of files, a line each; writes a JSON object for each: the exit code of every verb,
and what went wrong. A verb that takes longer than its time ends the process: the parent knows by
the last line which file that was. Not a test file itself; tests/test_hostile.py starts it.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

WORST = ("Traceback", "internal error", "MemoryError", "Error(", "not enough memory")
"""What nobody may see, whatever a file holds."""


def words_for(path: str, folder: Path) -> dict[str, list[str]]:
    """The calls that a file has to stand, by name; those that write do so in a folder."""
    recovered, exported = str(folder / "recovered.kcap"), str(folder / "exported")
    sql = "SELECT * FROM all_rows"
    where = "SELECT ts FROM events WHERE pid = 101 OR event = 'exec'"
    return {
        "cat": ["cat", path],
        "cat --format": ["cat", "--format", "jsonl", "--state", path],
        "cat --start": ["cat", "--start", "2023-11-14T00:00:00Z", "--fields", "ts,pid", path],
        "info": ["info", path],
        "info --json": ["info", "--json", path],
        "tree": ["tree", path],
        "timeline": ["timeline", path],
        "verify": ["verify", path],
        "verify --deep": ["verify", "--deep", "--json", path],
        "recover": ["recover", path, "--force", "-o", recovered],
        "export": ["export", path, "--force", "-f", "parquet", "-o", exported],
        "export --arrow": ["export", path, "--force", "-f", "arrow", "-o", exported],
        "query": ["query", sql, path, "--json"],
        "query --where": ["query", where, path, "-f", "csv"],
    }


def ran(words: list[str]) -> tuple[int, str]:
    """Exit code of a call, and what is wrong with how it ended."""
    from click.testing import CliRunner

    from kcap.tools.cli import main

    result = CliRunner().invoke(main, words, prog_name="kcap")
    bad = [word for word in WORST if word in result.stderr]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        bad.append(repr(result.exception))
    if result.exit_code not in (0, 1, 3):
        bad.append(f"exit code {result.exit_code}")
    if result.exit_code == 1 and len(result.stderr.splitlines()) > 2:
        bad.append("more than an error and a hint")
    return result.exit_code, f"{bad}: {result.stderr[-600:]}" if bad else ""


def run_all(path: str, folder: Path, seconds: int, verbs: set[str]) -> dict[str, Any]:
    """What came of the calls of some verbs on a file."""
    exits, wrong = {}, {}
    for name, words in words_for(path, folder).items():
        if words[0] not in verbs:
            continue
        signal.alarm(seconds)  # nobody handles it: the process ends, whatever it is doing
        exits[name], problem = ran(words)
        signal.alarm(0)
        if problem:
            wrong[name] = problem
    return {"exits": exits, "file": path, "wrong": wrong}


def main() -> None:
    """Read names, write results."""
    folder, memory, seconds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    verbs = set(sys.argv[4].split(","))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for line in sys.stdin:
        print(json.dumps(run_all(line.rstrip("\n"), folder, seconds, verbs)), flush=True)


if __name__ == "__main__":
    main()
