"""Which container a process is in, by its control groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_CONTAINER: Final = re.compile(
    r"(?:docker-|crio-|cri-containerd-|libpod-)?([0-9a-f]{64})(?:\.scope)?"
)


def container_id(paths: Iterable[str]) -> str | None:
    """The container that a process is in.

    Args:
        paths: The paths of its control groups, as many as are known.

    Returns:
        The innermost 64 hex digits that a path component of the first such path consists of,
        with or without the runtime's prefix and a scope's suffix; None outside a container.
    """
    for path in paths:
        for part in reversed(path.split("/")):
            match = _CONTAINER.fullmatch(part)
            if match:
                return match[1]
    return None
