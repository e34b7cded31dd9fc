"""kcap: capture and replay of host telemetry.

`open` gives a source for any capture or foreign file that kcap can read::

    with contextlib.closing(kcap.open("host.kcap")) as source:
        for batch in source.batches():
            print(batch.to_arrow().num_rows)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.model.stream import Source

__all__ = ["KcapError", "__version__", "open"]

__version__ = "0.1.0"


def open(path: str | os.PathLike[str], *, lenient: bool = False) -> Source:  # noqa: A001
    """Open a capture or a foreign file, by its content.

    Args:
        path: Its path; ``-`` for standard input.
        lenient: Go on past bad input; what was passed over comes as `Loss` in `Batch.before`.

    Returns:
        A source with ``info``, ``batches()`` and ``close()``.

    Raises:
        KcapError: The input can't be opened, or no reader knows it.
    """
    from kcap.opening import open_source

    return open_source(path, lenient=lenient)
