"""What an export says of itself: where it comes from, what its columns mean, what was lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import kcap
from kcap.model import catalogue, naming
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, SourceInfo

LOSSES_KEPT: Final = 1000
"""Losses that are listed; more are counted."""

_VERSION: Final = 1


class About:
    """Collects what goes into the key-value metadata of an export (docs/export.md).

    Args:
        layout: Name of the layout.
        profile: Name of the profile.
        origin: What is known of the input: ``format``, ``content_hash``, ``sha256``.
        chosen: Which of its events were asked for: ``start``, ``fields`` …
        recorded: The losses that the input says it had; those that come with the events are then
            left out, for a reader that skips events skips theirs. None where only they tell.
    """

    def __init__(
        self,
        layout: str,
        profile: str,
        origin: Mapping[str, Any],
        chosen: Mapping[str, Any] | None = None,
        recorded: Sequence[Loss] | None = None,
    ) -> None:
        self._export = {
            "layout": layout,
            "profile": profile,
            "version": _VERSION,
            **(chosen or {}),
        }
        self._knows_recorded = recorded is not None
        self._origin = dict(origin)
        self._columns: dict[str, TypeClass] = {}
        self._sources: dict[str, dict[str, Any]] = {}
        self._losses: list[dict[str, Any]] = []
        self._more = 0
        self._events = 0
        for loss in recorded or ():
            self._lose(loss)

    def take(self, batch: Batch) -> None:
        """Take in what a batch says.

        Args:
            batch: Events and side records.
        """
        self._events += batch.rows
        self._know(batch)
        for side in batch.before:
            if isinstance(side, SourceInfo):
                self._sources[side.id] = {**side.to_json(), "id": side.id}
            elif isinstance(side, Loss) and not (side.recorded and self._knows_recorded):
                self._lose(side)

    def _lose(self, loss: Loss) -> None:
        if len(self._losses) < LOSSES_KEPT:
            self._losses.append(loss.to_json())
        else:
            self._more += 1

    def _know(self, batch: Batch) -> None:
        for name, column in batch.columns.items():
            if name not in self._columns:
                self._columns[name] = column.cls

    def opening(self, columns: Mapping[str, TypeClass]) -> dict[str, str]:
        """What an export is, where it comes from, and what its columns mean.

        Args:
            columns: The columns of the export; those of the events so far are added.

        Returns:
            Key to JSON text.
        """
        return _spelled(
            {
                "kcap.version": kcap.__version__,
                "kcap.export": self._export,
                "kcap.input": self._origin,
                **_meanings({**self._columns, **columns}),
            }
        )

    def closing(self) -> dict[str, str]:
        """What was found on the way.

        Returns:
            Key to JSON text: events, losses, sources.
        """
        losses = self._losses
        if self._more:
            more = Loss("more", self._more, f"losses beyond the first {LOSSES_KEPT} are not listed")
            losses = [*losses, more.to_json()]
        return _spelled(
            {
                "kcap.events": self._events,
                "kcap.losses": losses,
                "kcap.sources": [self._sources[key] for key in sorted(self._sources)],
            }
        )


def describe(name: str, cls: TypeClass) -> dict[str, Any]:
    """What is known of a column.

    Args:
        name: Its name.
        cls: Its class.

    Returns:
        ``class``, and where there are such ``meaning`` and the ``decoder`` of its numbers.
    """
    info = catalogue.info(naming.parts(name)[0])
    found: dict[str, Any] = {"class": str(cls)}
    if info and info.meaning:
        found["meaning"] = info.meaning
    if info and info.decoder and cls is TypeClass.I64:
        found["decoder"] = info.decoder
    return found


def _meanings(columns: Mapping[str, TypeClass]) -> dict[str, Any]:
    found = {name: describe(name, columns[name]) for name in sorted(columns)}
    decoders = sorted({d["decoder"] for d in found.values() if "decoder" in d})
    tables = {d: sorted(map(list, catalogue.decoder(d).items())) for d in decoders}
    return {"kcap.columns": found, "kcap.decoders": tables}


def _spelled(values: Mapping[str, Any]) -> dict[str, str]:
    """JSON text, the same for the same values."""
    return {
        key: value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
        for key, value in values.items()
    }
