"""kcap: capture and replay of host telemetry.

`open` gives any capture or foreign file that kcap can read as a `Capture`::

    with kcap.open("host.kcap") as capture:
        frame = capture.to_polars(columns=["ts", "event", "process_name"])

docs/api.md says more.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kcap.errors import KcapError, LossWarning

if TYPE_CHECKING:
    from kcap.capture import Capture, CaptureInfo

__all__ = ["Capture", "CaptureInfo", "KcapError", "LossWarning", "__version__", "open"]

__version__ = "0.1.0"


def open(path: str | os.PathLike[str], *, lenient: bool = False) -> Capture:  # noqa: A001
    """Open a capture or a foreign file, by its content.

    Args:
        path: Its path; ``-`` for standard input. A regular file or a directory can be read
            again and again, a stream once.
        lenient: Go on past bad input; what was passed over is in `Capture.losses`, and comes as
            `Loss` in `Batch.before`.

    Returns:
        The capture. Close it, or use it in a ``with`` statement.

    Raises:
        KcapError: The input can't be opened, or no reader knows it.
    """
    from kcap.capture import Capture
    from kcap.opening import open_source

    def source() -> Any:  # noqa: ANN401
        return open_source(path, lenient=lenient)

    # Of a name that is too long pathlib would make an error of the system's.
    known = os.path.isfile(path) or os.path.isdir(path)  # noqa: PTH112, PTH113
    regular = os.fspath(path) != "-" and known
    return Capture(source(), source if regular else None)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # pyarrow takes longer to import than most verbs take to run.
    if name in ("Capture", "CaptureInfo"):
        from kcap import capture

        return getattr(capture, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
