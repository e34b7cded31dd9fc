"""What runs in the machine of another kernel: exchanges over loopback, their packets recorded.

``python3 packets_guest.py OUT PROGRAMS`` writes the rows and what was done as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from functools import partial
from pathlib import Path

import packets_live_support as support

KEPT = 300
"""Bytes of each packet that are kept behind the header of layer 4."""


def main() -> None:
    """Listen, send, and write down both."""
    out = Path(sys.argv[1])
    heard = support.Listening(KEPT, controller=None)
    said: dict[str, object] = {"refused": heard.companion.source.details["refused"]}
    for name, family, address in (
        ("4", socket.AF_INET, "127.0.0.1"),
        ("6", socket.AF_INET6, "::1"),
    ):
        ports = os.pipe()
        server = support.begin(None, partial(support.answer, ports[1], family, address))
        port = struct.unpack("=H", os.read(ports[0], 2))[0]
        client = support.within(None, partial(support.call, port, family, address))
        support.ended(server)
        said[name] = {"server": server, "client": client, "port": port}
    support.within(None, partial(support.exchange, socket.AF_INET, "127.0.0.1", bytes(1 << 20)))
    rows = heard.end()
    for row in rows:
        row["arg_data__bin"] = row["arg_data__bin"].hex()
    said["rows"] = rows
    (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
