"""Events and rules for the tests of the verbs that run rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

T0_NS = 1_657_402_965_000_000_000
"""2022-07-09T21:42:45Z."""

OWN_RULES = """\
rules:
  - id: OPENS
    name: Something was opened
    severity: low
    condition: evt.name = 'security_file_open'
    output: "%ps.name opened it"
  - id: TWICE
    name: Traced twice
    sequence:
      maxspan: 1m
      steps:
        - condition: evt.name = 'ptrace' and ps.name = 'strace'
        - condition: evt.name = 'ptrace' and ps.name = 'x'
"""


def event(second: int, name: str, comm: str, **args: Any) -> dict[str, Any]:
    """An event as Tracee's JSON has it."""
    return {
        "timestamp": T0_NS + second * 10**9,
        "threadStartTime": 0,
        "processorId": 0,
        "processId": 100 + second,
        "cgroupId": 1,
        "threadId": 100 + second,
        "parentProcessId": 1,
        "hostProcessId": 100 + second,
        "hostThreadId": 100 + second,
        "hostParentProcessId": 1,
        "userId": 0,
        "mountNamespace": 4026531840,
        "pidNamespace": 4026531836,
        "processName": comm,
        "hostName": "fujitsu",
        "containerId": "",
        "eventId": "101",
        "eventName": name,
        "argsNum": len(args),
        "returnValue": 0,
        "stackAddresses": None,
        "args": [{"name": key, "type": "string", "value": value} for key, value in args.items()],
    }


def events() -> list[dict[str, Any]]:
    """Five events: TRC-2 at seconds 0 and 2, TRC-6 at 3, TRC-3 at 4."""
    return [
        event(0, "ptrace", "strace", request="PTRACE_TRACEME"),
        event(1, "ptrace", "gdb", request="PTRACE_PEEKDATA"),
        event(2, "ptrace", "x", request="PTRACE_TRACEME"),
        event(3, "init_module", "insmod", param_values=""),
        event(4, "security_file_open", "cat", pathname="/proc/12/mem", flags="O_WRONLY"),
    ]


def lines(of: list[dict[str, Any]]) -> bytes:
    """Events as lines."""
    return b"".join(json.dumps(one).encode() + b"\n" for one in of)


def written(folder: Path) -> Path:
    """The events in a file."""
    path = folder / "events.json"
    path.write_bytes(lines(events()))
    return path
