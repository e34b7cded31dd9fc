"""Tracee's events for the tests: where they are, small ones of every spelling, comparison."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.readers.tracee import TraceeReader
from kcap.writers.tracee_json import objects

DUMP = "tracee/tracee_event_dump_2022-10.jsonl.gz"
DNS = "tracee/tracee_dns_events_gotypes_2025-04.jsonl.gz"
DOCS = "tracee/tracee_docs_events_plain.jsonl"
REPLAY = "tracee/tracee_replay_low_level_events.json"

OPENED: dict[str, Any] = {
    "timestamp": 1657321167356748797,
    "threadStartTime": 620311624458929,
    "hostProcessId": 77,
    "hostThreadId": 77,
    "eventId": "257",
    "eventName": "openat",
    "argsNum": 1,
    "args": [{"name": "pathname", "type": "const char*", "value": "/etc/passwd"}],
}

V1BETA1: dict[str, Any] = {
    "timestamp": "2026-01-05T10:00:00.123456789Z",
    "id": 60,
    "name": "execve",
    "policies": {"matched": ["p1"]},
    "workload": {
        "process": {
            "executable": {"path": "/usr/bin/bash"},
            "unique_id": 4205942431,
            "host_pid": 1200,
            "pid": 12,
            "real_user": {"id": 1000},
            "thread": {
                "start_time": "2026-01-05T09:59:59.5Z",
                "name": "bash",
                "unique_id": 1588574885,
                "host_tid": 1200,
                "tid": 12,
                "syscall": "execve",
                "compat": True,
                "user_stack_trace": {"addresses": [{"address": 2**63 + 1, "symbol": "main"}]},
            },
            "ancestors": [{"host_pid": 1100, "pid": 11, "unique_id": 5, "thread": {"name": "sh"}}],
        },
        "container": {
            "id": "c0ffee",
            "name": "box",
            "image": {"id": "i", "repo_digests": ["sha256:1"], "name": "busybox"},
            "started": True,
        },
        "k8s": {
            "pod": {"name": "p", "uid": "u", "labels": {"app": "x"}},
            "namespace": {"name": "n"},
        },
    },
    "data": [
        {"name": "pathname", "str": "/bin/ls"},
        {"name": "argv", "str_array": {"value": ["ls", "-l"]}},
        {"name": "envp", "str_array": {}},
        {"name": "inode", "u_int64": "18446744073709551615"},
        {"name": "size", "int64": "-7"},
        {"name": "pos", "int64": "007"},
        {"name": "addr", "pointer": "140737353719808"},
        {"name": "helpers", "u_int64_array": {"value": ["1", "9223372036854775808"]}},
        {"name": "sv", "int32_array": {"value": [3, 4]}},
        {"name": "flags", "int32": 2},
        {
            "name": "addr",
            "sockaddr": {"sa_family": "AF_INET", "sin_addr": "1.1.1.1", "sin_port": 53},
        },
        {"name": "bytes", "bytes": "AAEC"},
        {"name": "unset", "value": None},
        {"name": "nothing"},
        {"name": "timeout", "timespec": {"value": 0.5}},
        {"name": "load", "bool": False},
        {"name": "returnValue", "int64": "-2"},
    ],
    "threat": {
        "description": "d",
        "mitre": {"tactic": {"name": "t"}, "technique": {"id": "T1", "name": "n"}},
        "severity": 3,
        "name": "T",
        "properties": {"k": "v"},
    },
    "detected_from": {"id": 7, "name": "x", "data": []},
}


def camel(text: str) -> str:
    first, *rest = text.split("_")
    return first + "".join(part.capitalize() for part in rest)


def to_grpc(value: Any) -> Any:
    """The same message as protojson prints it."""
    if isinstance(value, dict):
        return {camel(k): to_grpc(v) for k, v in value.items()}
    return [to_grpc(v) for v in value] if isinstance(value, list) else value


GRPC: dict[str, Any] = to_grpc(V1BETA1) | {"id": "execve"}
GRPC["workload"]["process"]["thread"]["startTime"] = "2026-01-05T09:59:59.500Z"


def read(data: bytes | BinaryIO, *, lenient: bool = False) -> list[Batch]:
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    return list(TraceeReader(stream, "in", lenient=lenient).batches())


def lines(events: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and order of keys, all the way down; NaN is itself, -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return bool(a == b)


def rebuilt(data: bytes) -> list[dict[str, Any]]:
    return [item for batch in read(data) for item in objects(batch)]


def schema(data: bytes) -> set[tuple[str, str]]:
    return {(n, c.cls) for batch in read(data) for n, c in batch.columns.items()}


def losses(batches: Iterable[Batch]) -> list[Loss]:
    return [side for batch in batches for side in batch.before if isinstance(side, Loss)]


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data
