"""Rules of every kind that find something in what kcap recorded of Linux: plain ones, and some with
a memory of each sort."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import every_rule_texts
from cli_support import run

TEXTS = {
    "own.yaml": every_rule_texts.OWN,
    "signature.py": every_rule_texts.PYTHON,
    "fibratus.yml": every_rule_texts.FIBRATUS,
    "sigma.yml": every_rule_texts.SIGMA,
}
KINDS = ("fibratus", "kcap", "python", "sigma", "tracee")

Alert = dict[str, Any]


def written(folder: Path) -> Path:
    """The rules as files in a folder."""
    made = folder / "rules"
    made.mkdir()
    for name, text in TEXTS.items():
        (made / name).write_text(text)
        (made / name).chmod(0o600)
    return made


def words(rules: Path) -> tuple[str, ...]:
    """What a verb is told so that all of them run, Tracee's too."""
    return ("--rules", str(rules), "--signatures", "all")


def printed(verb: str, *more: str | Path) -> bytes:
    """What a verb prints, which must come without any loss."""
    result = run(verb, *more)
    assert result.exit_code == 0, result.stderr[-2000:]
    return result.stdout_bytes


def alerts_in(output: bytes) -> list[Alert]:
    """The alerts among JSON lines."""
    found: Iterable[Alert] = map(json.loads, output.splitlines())
    return [one for one in found if one["kind"] == "alert"]


def ids(alerts: Iterable[Alert]) -> list[str]:
    """What alerts are called."""
    return [one["arg_alert_id"] for one in alerts]


def rules_of(alerts: Sequence[Alert]) -> set[str]:
    """The rules that raised them."""
    return {one["arg_rule"] for one in alerts}
