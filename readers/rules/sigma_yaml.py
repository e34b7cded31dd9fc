"""The documents of a Sigma file, and on which lines their parts stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kcap.errors import BadInputError, LimitError

if TYPE_CHECKING:
    import yaml

FILE_CHARACTERS: Final = 4 << 20
DEPTH_MAX: Final = 16
NODES_MAX: Final = 200_000
"""The largest file, the deepest nesting, and the most values, those of aliases each time."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document: a rule, a correlation or a filter."""

    path: str
    line: int
    """Where it begins, from 1."""
    value: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int]
    """Where a value stands, by the keys that lead to it."""

    def line_of(self, *keys: str) -> int:
        """Where a value stands.

        Args:
            keys: The keys that lead to it.

        Returns:
            Its line; of one that is not there that of what it would be in.
        """
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, self.line)


def documents(text: str, path: str) -> list[Document]:
    """Read a file.

    Args:
        text: What it says.
        path: Its name, for errors.

    Returns:
        Its documents, those that are not empty.

    Raises:
        BadInputError: It is no YAML, or a document of it no mapping.
        LimitError: It is too much.
    """
    import yaml

    if len(text) > FILE_CHARACTERS:
        expected = f"at most {FILE_CHARACTERS:,} characters"
        raise LimitError("the file is too large for rules", file=path, expected=expected)
    found = []
    loader: Any = None
    try:
        # The parser of libyaml is ten times as fast; it is not in every build of PyYAML.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        reader = _Reader(path)
        while loader.check_node():
            node = loader.get_node()
            lines = reader.lines(node)
            value = loader.construct_document(node)
            if value is not None:
                found.append(_document(path, node.start_mark.line + 1, value, lines))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # The end of a file is behind its last line.
        line = None if mark is None else min(mark.line, text.count("\n")) + 1
        what = f"it is no YAML: {error.problem or error.context}"
        raise BadInputError(what, file=path, line=line) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInputError(f"it is no YAML: {error.reason}", file=path, line=line) from error
    except ValueError as error:  # as of a date that there is not
        raise BadInputError(f"a value can't be read: {error}", file=path) from error
    except RecursionError as error:
        expected = f"at most {DEPTH_MAX} levels"
        raise LimitError("it is nested too deep", file=path, expected=expected) from error
    finally:
        if loader is not None:
            loader.dispose()
    return found


def _document(
    path: str,
    line: int,
    value: Any,  # noqa: ANN401 - whatever stands in a file
    lines: Mapping[tuple[str, ...], int],
) -> Document:
    if not isinstance(value, dict):
        expected = "title, logsource, detection ..."
        raise BadInputError("a document is no mapping", file=path, line=line, expected=expected)
    return Document(path, line, value, lines)


class _Reader:
    """Looks through the nodes of one file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._left = NODES_MAX

    def lines(self, root: yaml.Node) -> dict[tuple[str, ...], int]:
        """Where the values of mappings stand, by the keys that lead to them."""
        import yaml

        found: dict[tuple[str, ...], int] = {}
        todo: list[tuple[tuple[str, ...], yaml.Node]] = [((), root)]
        while todo:
            keys, node = todo.pop()
            self._left -= 1
            line = node.start_mark.line + 1
            if self._left < 0:
                expected = f"at most {NODES_MAX:,}, those of aliases each time"
                what = "there are too many values"
                raise LimitError(what, file=self._path, line=line, expected=expected)
            if len(keys) > DEPTH_MAX:
                expected = f"at most {DEPTH_MAX} levels"
                what = "it is nested too deep"
                raise LimitError(what, file=self._path, line=line, expected=expected)
            if isinstance(node, yaml.MappingNode):
                names = [str(key.value) for key, _ in node.value]
                for name, (key, value) in zip(names, node.value, strict=True):
                    at = key.start_mark.line + 1
                    if names.count(name) > 1 and (*keys, name) in found:
                        what = f"the key {name!r} is there twice"
                        raise BadInputError(what, file=self._path, line=at, expected="it once")
                    found[*keys, name] = at
                    todo.append(((*keys, name), value))
            elif isinstance(node, yaml.SequenceNode):
                for number, value in enumerate(node.value):
                    # What stands in a list is found by the keys of the list, and its number.
                    todo.append(((*keys, str(number)), value))
        return found
