"""A bulk endpoint as strict as Elasticsearch's published API, for tests without a server."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from sink_support import Request, Response

_FORBIDDEN = re.compile(r'[\\/*?"<>| ,#:A-Z]')
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_METADATA = {
    "_id", "_index", "routing", "pipeline", "require_alias", "require_data_stream",
    "dynamic_templates", "if_seq_no", "if_primary_term", "version", "version_type",
}  # fmt: skip
_OPERATIONS = {"create", "index", "update", "delete"}
_ID_BYTES = 512


class MalformedError(Exception):
    """A request that is refused as a whole."""


def _failed(status: int, kind: str, reason: str) -> Response:
    error = {"type": kind, "reason": reason, "root_cause": [{"type": kind, "reason": reason}]}
    body = json.dumps({"error": error, "status": status}).encode()
    return Response(status, body, {"Content-Type": "application/json"})


@dataclass
class Bulk:
    """Documents, and what is done with requests.

    Args:
        busy: Answers 429 for each document of this number the first time it comes.
        longest: Longest body in bytes, as it is sent.
    """

    busy: int = 0
    longest: int = 100 << 20
    documents: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    templates: dict[str, Any] = field(default_factory=dict)
    conflicts: int = 0
    rejected: int = 0
    requests: int = 0
    _seen: set[str] = field(default_factory=set)
    _types: dict[tuple[str, str], type] = field(default_factory=dict)

    def answer(self, request: Request) -> Response:
        """Answer a request."""
        self.requests += 1
        if len(request.body) > self.longest:
            return Response(413)
        kind = request.headers.get("content-type", "").partition(";")[0]
        if request.path.startswith("/_index_template/"):
            return self._template(request)
        if request.method not in ("POST", "PUT") or request.path.split("?")[0] != "/_bulk":
            return _failed(405, "illegal_argument_exception", "Incorrect HTTP method for uri")
        if kind not in ("application/x-ndjson", "application/json"):
            reason = f"Content-Type header [{kind}] is not supported"
            return _failed(406, "media_type_header_exception", reason)
        try:
            items = [self._create(*action) for action in _actions(request.plain)]
        except MalformedError as e:
            return _failed(400, "illegal_argument_exception", str(e))
        errors = any(item["create"]["status"] >= 300 for item in items)
        body = json.dumps({"took": 1, "errors": errors, "items": items})
        return Response(200, body.encode(), {"Content-Type": "application/json"})

    def _template(self, request: Request) -> Response:
        found = json.loads(request.plain)
        if request.method != "PUT" or not isinstance(found.get("index_patterns"), list):
            return _failed(400, "action_request_validation_exception", "index_patterns: missing")
        self.templates[request.path.rpartition("/")[2]] = found
        return Response(200, b'{"acknowledged":true}')

    def _create(self, metadata: dict[str, Any], source: bytes) -> dict[str, Any]:
        index, id_ = metadata.get("_index"), metadata.get("_id")
        said = {"_index": index, "_id": id_}
        if not index:
            raise MalformedError("index is missing")
        if not isinstance(id_, str) or not id_ or len(id_.encode()) > _ID_BYTES:
            raise MalformedError(f"id is missing or longer than {_ID_BYTES} bytes")
        if _FORBIDDEN.search(index) or index[0] in "-_+":
            return _item(said, 400, "invalid_index_name_exception", f"Invalid index [{index}]")
        try:
            document = json.loads(source)
        except ValueError as e:
            return _item(said, 400, "document_parsing_exception", str(e))
        if not isinstance(document, dict):
            return _item(said, 400, "document_parsing_exception", "no object")
        number = len(self._seen)
        fresh = id_ not in self._seen
        self._seen.add(id_)
        if fresh and self.busy and number % self.busy == self.busy - 1:
            self.rejected += 1
            return _item(said, 429, "es_rejected_execution_exception", "queue is full")
        if (index, id_) in self.documents:
            self.conflicts += 1
            return _item(said, 409, "version_conflict_engine_exception", "already exists")
        if why := self._mapped(index, document):
            return _item(said, 400, "document_parsing_exception", why)
        self.documents[index, id_] = document
        self.order.append(id_)
        return {"create": {**said, "result": "created", "status": 201, "_version": 1}}

    def _mapped(self, index: str, document: dict[str, Any]) -> str | None:
        """Why a document does not fit what the index knows of its fields."""
        for name, value in document.items():
            known = self._types.setdefault((index, name), type(value))
            if known is int and isinstance(value, str) and not value.lstrip("-").isdecimal():
                return f"failed to parse field [{name}] of type [long]"
        stamp = document.get("@timestamp")
        if stamp is not None and not _TIME.fullmatch(stamp):
            return f"failed to parse date field [{stamp}]"
        return None


def _item(said: dict[str, Any], status: int, kind: str, reason: str) -> dict[str, Any]:
    return {"create": {**said, "status": status, "error": {"type": kind, "reason": reason}}}


def _actions(body: bytes) -> list[tuple[dict[str, Any], bytes]]:
    if not body:
        raise MalformedError("request body is required")
    if not body.endswith(b"\n"):
        raise MalformedError("The bulk request must be terminated by a newline [\\n]")
    lines = body[:-1].split(b"\n")
    out = []
    for at in range(0, len(lines), 2):
        where = f"action/metadata line [{at + 1}]"
        try:
            action = json.loads(lines[at])
        except ValueError as e:
            raise MalformedError(f"Malformed {where}: {e}") from e
        if not isinstance(action, dict) or len(action) != 1:
            raise MalformedError(f"Malformed {where}, expected one operation")
        ((operation, metadata),) = action.items()
        if operation not in _OPERATIONS or not isinstance(metadata, dict):
            raise MalformedError(f"Malformed {where}, expected field [create], [delete] …")
        if operation != "create":
            raise MalformedError(f"{where}: these documents are created, not {operation}")
        for name in metadata.keys() - _METADATA:
            raise MalformedError(f"{where} contains an unknown parameter [{name}]")
        if at + 1 >= len(lines):
            raise MalformedError(f"{where}: no source")
        out.append((metadata, lines[at + 1]))
    return out
