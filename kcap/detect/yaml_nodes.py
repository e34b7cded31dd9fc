"""YAML with line numbers: so that an error of a rule names its line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from kcap.errors import KcapError

DEPTH_MAX: Final = 32
NODES_MAX: Final = 1_000_000
"""Values of one file, those that aliases repeat counted each time."""


class Node:
    """A value and where it stands.

    Args:
        value: Text, a number, True, False or None; nodes in a list, or in a dict by their keys.
        line: Its line, from 1.
        block: It is a block of lines, the first of which is below.
    """

    __slots__ = ("block", "keys", "line", "value")

    def __init__(self, value: Any, line: int, *, block: bool = False) -> None:  # noqa: ANN401
        self.value = value
        self.line = line
        self.block = block
        self.keys: Mapping[str, int] = {}
        """Of a dict the line of each key."""

    def plain(self) -> Any:  # noqa: ANN401 - any value
        """The value without its places."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def line_of(self, offset: int) -> int:
        """The line of a character of its text.

        Args:
            offset: The character's place in the text.

        Returns:
            The line in the file; of folded text that where it begins.
        """
        if not isinstance(self.value, str):
            return self.line
        return self.line + self.block + self.value[:offset].count("\n")


def documents(text: str, path: str) -> Iterator[Node]:
    """Read YAML.

    Args:
        text: The content of a file.
        path: Its name, for errors.

    Yields:
        The documents that are not empty.

    Raises:
        KcapError: It is no YAML, or one of its mappings has a key twice.
    """
    import yaml

    try:
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader):
            if node is not None:
                yield _Reader(path).node(node, 0)
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise KcapError(f"no YAML: {error.problem}", file=path, line=line) from error
    except RecursionError:
        raise KcapError("it is nested too deep", file=path) from None
    except yaml.YAMLError as error:
        raise KcapError(f"no YAML: {str(error).splitlines()[0]}", file=path) from error


class _Reader:
    def __init__(self, path: str) -> None:
        import yaml

        self._path = path
        self._constructor: Any = yaml.constructor.SafeConstructor()
        self._yaml = yaml
        self._count = 0

    def node(self, node: Any, depth: int) -> Node:  # noqa: ANN401 - PyYAML's node
        """Turn a node of PyYAML into ours."""
        line = node.start_mark.line + 1
        self._count += 1
        if depth > DEPTH_MAX or self._count > NODES_MAX:
            raise KcapError("it is nested too deep, or too large", file=self._path, line=line)
        if isinstance(node, self._yaml.MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, self._yaml.SequenceNode):
            return Node([self.node(item, depth + 1) for item in node.value], line)
        block = node.style in ("|", ">")
        if node.tag in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:binary"):
            return Node(node.value, line, block=block)  # as it is written
        try:
            return Node(self._constructor.construct_object(node), line, block=block)
        except (ValueError, self._yaml.YAMLError) as error:
            what = f"{node.value!r} can't be read"
            raise KcapError(what, file=self._path, line=line) from error

    def _mapping(self, node: Any, depth: int) -> Node:  # noqa: ANN401 - PyYAML's node
        line = node.start_mark.line + 1
        values: dict[str, Node] = {}
        keys: dict[str, int] = {}
        for key, value in node.value:
            name, at = str(getattr(key, "value", "")), key.start_mark.line + 1
            if name in values:
                what = f"{name!r} stands there twice"
                raise KcapError(what, file=self._path, line=at, expected="each name once")
            values[name] = self.node(value, depth + 1)
            keys[name] = at
        found = Node(values, line)
        found.keys = keys
        return found
