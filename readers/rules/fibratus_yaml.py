"""YAML as Fibratus's rules are written in: all values are text, and each knows its line.

What a file says is data: no tag makes an object, and an alias counts as what it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kcap.errors import BadInputError, KcapError, LimitError

if TYPE_CHECKING:
    import yaml

FILE_CHARACTERS: Final = 4 << 20
DEPTH_MAX: Final = 16
NODES_MAX: Final = 200_000
"""The largest file, the deepest nesting, and the most values, those of aliases each time."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value."""

    value: str | tuple[Node, ...] | dict[str, Node]
    line: int
    """Where it begins, from 1; of a value in a mapping, where its key stands."""
    raw: str = ""
    """Text as it stands in the file: from `raw_line` on, with all its white space."""
    raw_line: int = 0

    @property
    def text(self) -> str:
        """What it says, where it is text; else nothing."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def items(self) -> tuple[Node, ...]:
        """The items of a list; one value counts as a list of one."""
        if isinstance(self.value, tuple):
            return self.value
        return (self,) if self.value else ()

    def get(self, key: str) -> Node | None:
        """A value of a mapping.

        Args:
            key: Its key.

        Returns:
            It; None where there is none.
        """
        return self.value.get(key) if isinstance(self.value, dict) else None

    def line_at(self, offset: int) -> int:
        """Where a character of a text stands in the file.

        A folded text has other line ends and blanks than the file, but the same characters
        between them.

        Args:
            offset: Its number in the text.

        Returns:
            Its line in the file, from 1.
        """
        left = sum(not c.isspace() for c in self.text[:offset])
        line = found = self.raw_line
        for c in self.raw:
            if c == "\n":
                line += 1
            elif not c.isspace():
                found = line
                if not left:
                    break
                left -= 1
        return found

    def plain(self) -> Any:  # noqa: ANN401 - whatever stands there
        """The value as Python's own objects: text, lists, dicts."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value


def documents(text: str, path: str) -> list[Node]:
    """Read a file.

    Args:
        text: What it says.
        path: Its name, for errors.

    Returns:
        Its documents, those that are not empty.

    Raises:
        BadInputError: It is no YAML.
        LimitError: It is too much.
    """
    import yaml

    if len(text) > FILE_CHARACTERS:
        expected = f"at most {FILE_CHARACTERS:,} characters"
        raise LimitError("the file is too large for rules", file=path, expected=expected)
    reader = _Reader(text, path)
    loader = yaml.SafeLoader
    try:
        # The parser of libyaml is ten times as fast; it is not in every build of PyYAML.
        roots = list(yaml.compose_all(text, getattr(yaml, "CSafeLoader", loader)))
        return [reader.node(root, root.start_mark.line + 1, 1) for root in roots]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise _no_yaml(text, path, error.problem or str(error.context), line) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _no_yaml(text, path, error.reason, line) from error
    except RecursionError as error:
        raise _too_deep(path, None) from error


class _Reader:
    """Makes nodes of one file."""

    def __init__(self, text: str, path: str) -> None:
        self._text = text
        self._path = path
        self._left = NODES_MAX

    def node(self, found: yaml.Node, line: int, depth: int) -> Node:
        """A value and what is in it."""
        import yaml

        self._left -= 1
        if self._left < 0:
            expected = f"at most {NODES_MAX:,}, those of aliases each time"
            raise LimitError(
                "there are too many values", file=self._path, line=line, expected=expected
            )
        if depth > DEPTH_MAX:
            raise _too_deep(self._path, line)
        if isinstance(found, yaml.MappingNode):
            return Node(self._mapping(found, depth), line)
        if isinstance(found, yaml.SequenceNode):
            items = [self.node(item, item.start_mark.line + 1, depth + 1) for item in found.value]
            return Node(tuple(items), line)
        assert isinstance(found, yaml.ScalarNode)
        start, end = found.start_mark, found.end_mark
        raw, raw_line = self._text[start.index : end.index], start.line + 1
        if found.style in ("|", ">"):
            raw, raw_line = raw.partition("\n")[2], raw_line + 1
        return Node(found.value, line, raw, raw_line)

    def _mapping(self, found: yaml.MappingNode, depth: int) -> dict[str, Node]:
        import yaml

        made: dict[str, Node] = {}
        for key, value in found.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self._wrong("a key is one word", line)
            if key.value in made:
                first = made[key.value].line
                raise self._wrong(f"{key.value!r} stands here again: it is at line {first}", line)
            made[key.value] = self.node(value, line, depth + 1)
        return made

    def _wrong(self, what: str, line: int) -> KcapError:
        return BadInputError(what, file=self._path, line=line)


def _no_yaml(text: str, path: str, why: str | None, line: int | None) -> KcapError:
    hint = None
    if "{{" in text:
        hint = "it is a template of Go: give what Fibratus makes of it on the host it is for"
    return BadInputError(f"this is no YAML: {why}", file=path, line=line, hint=hint)


def _too_deep(path: str, line: int | None) -> KcapError:
    expected = f"at most {DEPTH_MAX} levels"
    return LimitError("it is nested too deep", file=path, line=line, expected=expected)
