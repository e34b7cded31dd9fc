"""HTTP requests and responses as JSON values, in the form in which Tracee prints them."""

from __future__ import annotations

import io
import re
from typing import Any, Final

METHODS: Final = (
    b"GET ",
    b"PUT ",
    b"POST",
    b"HEAD",
    b"DELE",
    b"OPTI",
    b"PATC",
    b"CONN",
    b"TRAC",
    b"HTTP",
)
"""The first four bytes of every request and response."""

HEAD_BYTES: Final = 64 << 10
"""Longest head that is looked at."""

_REQUEST: Final = re.compile(rb"([A-Z]{3,7}) (\S+) (HTTP/1\.[01])")
_RESPONSE: Final = re.compile(rb"(HTTP/1\.[01]) ([1-5]\d\d)(?: (.*))?")


class BadHeadError(ValueError):
    """This is no request and no response."""


def head(raw: bytes) -> dict[str, Any]:
    """Read how a request or a response starts.

    Args:
        raw: What a TCP segment carries.

    Returns:
        ``direction`` (request, response), ``method``, ``uri_path``, ``host``, ``protocol``,
        ``status``, ``status_code``, ``headers`` (a list of values each) and ``content_length``
        (-1 where it is not said); ``truncated`` where the head goes on beyond what was captured.

    Raises:
        BadHeadError: It is neither.
    """
    raw = raw[:HEAD_BYTES]
    end = raw.find(b"\r\n\r\n")
    lines = (raw if end < 0 else raw[:end]).split(b"\r\n")
    if end < 0:
        if len(lines) == 1:
            raise BadHeadError("not even its first line is whole")
        lines.pop()
    found: dict[str, Any]
    if request := _REQUEST.fullmatch(lines[0]):
        method, path, protocol = (
            part.decode("utf-8", "backslashreplace") for part in request.groups()
        )
        found = {"direction": "request", "method": method, "protocol": protocol}
        found |= {"host": "", "uri_path": path, "status": "", "status_code": 0}
    elif response := _RESPONSE.fullmatch(lines[0]):
        code, reason = (
            response[2].decode(),
            (response[3] or b"").decode("utf-8", "backslashreplace"),
        )
        found = {"direction": "response", "method": "", "protocol": response[1].decode()}
        status = f"{code} {reason}".rstrip()
        found |= {"host": "", "uri_path": "", "status": status, "status_code": int(code)}
    else:
        raise BadHeadError("no first line of HTTP")
    found["headers"] = _headers(lines[1:])
    found["host"] = found["headers"].get("Host", [""])[0]
    length = found["headers"].get("Content-Length", [""])[0]
    found["content_length"] = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else -1
    if end < 0:
        found["truncated"] = True
    return found


def _headers(lines: list[bytes]) -> dict[str, list[str]]:
    """Values by name, spelled as Go does it: ``User-Agent``."""
    import dpkt

    try:
        parsed = dpkt.http.parse_headers(io.BytesIO(b"\r\n".join(lines) + b"\r\n\r\n"))
    except dpkt.UnpackError as error:
        raise BadHeadError(str(error)) from error
    return {
        "-".join(part[:1].upper() + part[1:] for part in name.split("-")): (
            values if isinstance(values, list) else [values]
        )
        for name, values in parsed.items()
    }
