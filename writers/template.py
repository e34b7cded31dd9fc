"""Text in a form of one's own: what a template makes of each event."""

from __future__ import annotations

from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from kcap.model.batch import Batch, without_state
from kcap.writers import fragments
from kcap.writers.templates import Template


class TemplateText:
    """A sink that writes the text of a template for each event, a line break behind each.

    An event for which the template gives no text at all is left out. Values are escaped so that
    they cannot steer a terminal, nor begin a line.

    Args:
        stream: Where the text goes; stays open.
        template: The template.
        name: What it is called in errors.
        state: Whether rows that only describe what was there (``kind`` is ``state``) are written.

    Raises:
        KcapError: The template can't be understood.

    Example:
        >>> sink = TemplateText(sys.stdout.buffer, template="{{ pid }} {{ event }}", name="-")
        >>> sink.write(batch)
        6328 CreateFile
    """

    def __init__(
        self, stream: BinaryIO, *, template: str, name: str = "template", state: bool = False
    ) -> None:
        self._stream = stream
        self._state = state
        self._closed = False
        self._template = Template(template, name=name, printable=True)

    def write(self, batch: Batch) -> None:
        """Write the events of a batch.

        Args:
            batch: Events; side records have no place in such text.

        Raises:
            OutputError: The stream takes no more.
            KcapError: The template can't be worked out for an event.
        """
        if not self._state:
            batch = without_state(batch)
        for texts in self._template.pieces(batch):
            some = texts.filter(pc.not_equal(texts, pa.scalar("", pa.utf8())))
            data = fragments.text_bytes(fragments.around("", some, "\n"))
            fragments.write_all(self._stream, data.data)
        fragments.flush(self._stream)  # Who watches a live source sees each batch as it comes.

    def close(self) -> None:
        """Flush the stream, which stays open.

        Raises:
            OutputError: The stream takes no more.
        """
        if not self._closed:
            self._closed = True
            fragments.flush(self._stream)
