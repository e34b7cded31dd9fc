"""What the children of test_child run."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, BinaryIO

from kcap.errors import KcapError


def prepare(settings: dict[str, Any]) -> dict[str, Any]:
    """Refuse where that is asked for."""
    if settings.get("refuse"):
        raise KcapError("not so", file="f", line=3, expected="x", hint="do y")
    if settings.get("die"):
        os._exit(7)
    return settings


def run(prepared: dict[str, Any], requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer a line for each question."""
    print("this goes to standard error")
    for line in requests:
        answer = _answer(json.loads(line), prepared)
        replies.write(json.dumps(answer).encode() + b"\n")
        replies.flush()


def _answer(question: str, prepared: dict[str, Any]) -> Any:
    if question == "status":
        return Path("/proc/self/status").read_text("ascii")
    if question == "environment":
        return [dict(os.environ), sys.flags.hash_randomization, hash("x"), sys.path]
    if question == "settings":
        return prepared
    try:
        if question == "fork":
            os.fork()
        elif question == "exec":
            os.execv("/bin/true", ["true"])
        elif question == "socket":
            socket.socket().close()
        elif question == "memory":
            bytearray(1 << 30)
    except (OSError, MemoryError) as e:
        return type(e).__name__
    return "done"
