"""Captures with a secret in every place that holds text, and a search that finds each of them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filter_support import MINE, NS, OTHER, events, uncovered
from support import batch_of

from kcap.format.blobs import Gap
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, Column, concat, constant
from kcap.model.builder import RawText
from kcap.model.classes import TypeClass
from kcap.model.side import Heartbeat, Loss, Side, Snapshot
from kcap.state import State

_PLACES = (
    "item environment path bytes wide raw json json_name json_escaped column shape_type"
    " exe cmdline event user container ts_raw process_key extension text_json cut"
    " host boot collector details details_name details_number recorder"
    " reason lost_event loss_kind loss_source heartbeat kind source_id"
    " process thread fd handle username table_name table_column unknown machine handle_details"
    " blob blob_path blob_details blob_reason blob_truncated tail state_row"
)
SECRETS = {n: f"{i:02}hïdden\\{i:02}" for i, n in enumerate(_PLACES.split())}
"""A secret for each place: no ASCII, and a sign that JSON escapes; no two begin alike."""

PATTERN = r"\d\d(?:hïdden|hidden|h\xc3\xafdden)\\{1,2}\d\d"
"""Matches them, also as bytes."""

NUMBER = "31415926535"


def forms(secret: str) -> list[bytes]:
    """How a text may stand in a file."""
    raw, wide = secret.encode(), secret.encode("utf-16-le")
    aligned = [base64.b64encode(bytes(n) + raw)[4 * (n > 0) : -4] for n in range(3)]
    escaped = [json.dumps(secret, ensure_ascii=a)[1:-1].encode() for a in (True, False)]
    shaped = secret.replace("\\", "\\\\").encode()
    named = secret.encode().replace(b"\\", b"_x5C").replace("ï".encode(), b"_xC3_xAF")
    return [raw, wide, raw.hex().encode(), wide.hex().encode(), *aligned, *escaped, shaped, named]


def found_in(data: bytes) -> set[str]:
    """The places whose secret is somewhere in a file, decompressed, in whatever form."""
    plain = uncovered(data)
    kept = {name for name, secret in SECRETS.items() if any(f in plain for f in forms(secret))}
    return kept | ({"details_number"} if NUMBER.encode() in plain else set())


def table(**columns: str) -> Batch:
    """A table of texts, of one row."""
    return Batch(1, {n: constant(TypeClass.STR, v, 1) for n, v in columns.items()})


def sides() -> list[Side]:
    """Side records with a secret in each of their texts."""
    s = SECRETS
    source = replace(
        MINE,
        host=s["host"],
        boot_id=s["boot"],
        collector=s["collector"],
        details={
            "note": [s["details"], {s["details_name"]: 1}],
            "number": int(NUMBER),
            "command_line": f"kcap record --note {s['recorder']}",
        },
    )
    machine = State.machine(source)
    state = Snapshot(
        {
            "processes": table(machine=machine, process_key="0f" * 8, cmdline=s["process"]),
            "threads": table(machine=s["machine"], name=s["thread"]),
            "fds": table(machine=machine, name=f"/x/{s['fd']}/y"),
            "handles": table(
                machine=machine, name=s["handle"], details=json.dumps({"a": s["handle_details"]})
            ),
            "users": table(machine=machine, name=s["username"]),
            s["table_name"]: table(a="b"),
            "unheard_of": table(**{s["table_column"]: "b", "text": s["unknown"]}),
        }
    )
    return [
        source,
        state,
        Loss("lost", 3, f"because of {s['reason']}", source=source.id, event=s["lost_event"]),
        Loss(s["loss_kind"], 1, "odd", source=s["loss_source"]),
        Heartbeat(NS, 1, 1, source.id, {"note": s["heartbeat"]}),
    ]


def rows() -> list[Batch]:
    """Events with a secret in each of their texts."""
    s = SECRETS
    source = sides()[0]
    assert not isinstance(source, (Loss, Heartbeat, Snapshot))
    where: dict[str, Any] = {"source": source, "pid": 2}
    cut = "x" * 65_000 + s["cut"] + "y" * 6000
    first = events(
        [
            {"argv": ["curl", s["item"]], "env": [f"TOKEN={s['environment']}"]},
            {"pathname": f"/home/{s['path']}", "cut": cut},
            {"data": s["bytes"].encode(), "wide": s["wide"].encode("utf-16-le")},
            {"raw": RawText(b"a\xff " + s["raw"].encode() + b" \xfe"), s["column"]: 1},
            {"j": {"a": [s["json"]], s["json_name"]: 1}, "k": {"b": f'"{s["json_escaped"]}"'}},
            {"text": json.dumps({"deep": s["text_json"]})},
        ],
        exe=f"/bin/{s['exe']}",
        cmdline=f"x {s['cmdline']}",
        event=s["event"],
        user=s["user"],
        container_id=s["container"],
        ts_raw=s["ts_raw"],
        ext_more__str=s["extension"],
        **where,
    )
    kinds = f"pathname:{s['shape_type']}".replace("\\", "\\\\")
    odd = constant(TypeClass.STR, kinds, 1)
    second = events([{"pathname": "p"}], first=6, **where).adding({"shape": odd})
    third = events([{"cmdline": s["state_row"]}], first=7, kind="state", **where)
    strange = events([{"pathname": "p"}], first=20, kind=s["kind"])
    strange = strange.adding({"source": constant(TypeClass.STR, s["source_id"], 1)})
    other = events([{"pathname": "/etc"}], first=8, source=OTHER, process_key=s["process_key"])
    return [concat([first, second, third]), concat([other, strange])]


def planted(path: Path) -> Path:
    """A capture that is not closed, with a secret in every place that can hold text."""
    s = SECRETS
    out = io.BytesIO()
    writer = CaptureWriter(out)
    first, second = rows()
    writer.write(first.with_before(sides()))
    writer.write(second.with_before([OTHER]))
    blob: list[bytes | Gap] = [s["blob"].encode(), Gap(5, f"EIO {s['blob_reason']}")]
    details = {"note": s["blob_details"]}
    writer.blob(blob, path=f"/a/{s['blob_path']}", origin=MINE.origin, ord=1, details=details)
    more = writer.blobs.begin(path="/b", origin=MINE.origin, ord=2)
    more.write(b"kept bytes")
    more.close(truncated=f"ended: {s['blob_truncated']}")
    writer.flush()
    writer.write(events([{"pathname": f"/tail/{s['tail']}"}], first=9, source=OTHER))
    writer.commit()
    path.write_bytes(out.getvalue())
    return path


def saved(path: Path, batches: list[Batch]) -> Path:
    """A closed capture."""
    out = io.BytesIO()
    writer = CaptureWriter(out)
    for batch in batches:
        writer.write(batch)
    writer.close()
    path.write_bytes(out.getvalue())
    return path


def host_events(count: int = 60) -> Batch:
    """Events of some processes of two users, with command lines, argument lists and numbers."""
    users = ["alice", "bob", "root"]
    records = [
        (
            NS + i,
            {
                "pathname": f"/home/{users[i % 3]}/notes-{i % 7}.txt",
                "argv": ["cat", f"/home/{users[i % 3]}/notes-{i % 7}.txt"],
                "port": 1000 + i % 5,
                "big": (1 << 63) + i % 2,
                "load": i % 4 + 0.5,
                "ids": [i % 3, 7],
            },
        )
        for i in range(count)
    ]
    batch = batch_of(records)
    made = {
        "event": texts(["open"] * count),
        "cmdline": texts([f"cat --user {users[i % 3]} /tmp" for i in range(count)]),
        "user": texts([users[i % 3] for i in range(count)]),
        "host": texts(["web-7"] * count),
        "source": texts([SOURCE.id] * count),
        "origin": texts([SOURCE.origin] * count),
        "uid": Column(TypeClass.I64, pa.array(np.arange(count) % 3 + 1000)),
        "pid": Column(TypeClass.I64, pa.array(np.arange(count) % 5 + 10)),
    }
    return batch.adding(made).with_before([SOURCE])


SOURCE = replace(MINE, host="web-7", details={"hostname": "web-7", "note": "of web-7"})


def texts(values: list[Any]) -> Column:
    """A column of these texts."""
    return Column(TypeClass.STR, pa.array(values, pa.utf8()).dictionary_encode())
