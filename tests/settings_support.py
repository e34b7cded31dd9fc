"""Settings for the tests: contexts, environments, errors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import click
import pytest

from kcap.errors import KcapError
from kcap.tools.cli import main
from kcap.tools.settings import verbs
from kcap.tools.settings.merged import Merged


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """An environment without settings of the host that runs the tests."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KCAP_")}
    with mock.patch.dict(os.environ, {**clean, **variables}, clear=True):
        yield


def called(*words: str | Path, **variables: str) -> click.Context:
    """The context in which a verb would run: its arguments are read, nothing is done."""
    with environment(**variables):
        before = list(itertools.takewhile(lambda w: str(w) not in verbs.sections(), words))
        name, *rest = (str(word) for word in words[len(before) :])
        root = main.make_context("kcap", [*map(str, before), name])
        command = main.get_command(root, name)
        assert command is not None
        return command.make_context(name, rest, parent=root)


def merged(path: Path, text: str, **variables: str) -> Merged:
    """The settings of a file with a text."""
    path.write_text(text)
    return Merged(str(path), environ=variables)


def refused(action: Callable[[], object]) -> str:
    """What an error says, with its notes."""
    with pytest.raises(KcapError) as error:
        action()
    return "\n".join([str(error.value), *getattr(error.value, "__notes__", ())])
