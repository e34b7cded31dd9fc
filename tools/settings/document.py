"""A file of settings as a tree that knows its lines: YAML, JSON (which is YAML) or TOML.

What the file says is data: no tag makes an object, no alias multiplies what is there, a key stands
once. A value may say where it is to be found instead of standing in the file (`Reference`).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kcap.errors import BadInputError, KcapError, LimitError

if TYPE_CHECKING:
    import yaml

FILE_BYTES: Final = 256 << 10
DEPTH_MAX: Final = 16
NODES_MAX: Final = 20_000
"""The largest file, the deepest nesting, and the most values, those of aliases each time."""

YAML: Final = (".yaml", ".yml", ".json")
TOML: Final = ".toml"

_TAG: Final = "tag:yaml.org,2002:"
_TYPED: Final = {_TAG + name for name in ("bool", "int", "float", "null")}
_TEXT: Final = {_TAG + name for name in ("str", "timestamp", "value")}
_AT: Final = re.compile(r" \(at line (\d+), column \d+\)$")
_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"""\s*((?:[A-Za-z0-9_.\-]+|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=""")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a value is to be found that does not stand in the file."""

    kind: str
    """``env`` or ``file``."""
    name: str
    """The variable, or the path."""


Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Node:
    """A value in a file of settings."""

    value: Scalar | Reference | tuple[Node, ...] | dict[str, Node]
    line: int
    """Where it begins, from 1; of a value in a mapping, where its key stands."""
    text: str = ""
    """A scalar as it stands in the file, without quotes."""
    near: bool = False
    """The line is that of the nearest value that was found."""

    @property
    def place(self) -> str:
        """Its line as text."""
        return f"{'near ' if self.near else ''}line {self.line}"

    @property
    def is_scalar(self) -> bool:
        """Whether it is one value, or says where one is."""
        return not isinstance(self.value, (tuple, dict))


def parse(content: bytes, file: str) -> Node:
    """Read a file of settings.

    Args:
        content: The file.
        file: Its name; the suffix says what it is written in.

    Returns:
        Its mapping; empty where the file says nothing.

    Raises:
        LimitError: It is too large, too deep, or has too many values.
        BadInputError: It is not well-formed.
    """
    if len(content) > FILE_BYTES:
        raise LimitError(
            "the file is too large for settings",
            file=file,
            expected=f"at most {FILE_BYTES:,} bytes",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(
            "this is not UTF-8", file=file, offset=error.start, expected="text"
        ) from error
    suffix = PurePath(file).suffix.lower()
    if suffix == TOML:
        found = _Toml(text, file).node()
    elif suffix in YAML:
        found = _Yaml(file).node(text)
    else:
        raise BadInputError(
            "its name does not say what it is written in",
            file=file,
            expected="a name that ends with .yaml, .yml, .json or .toml",
        )
    if found.value is None:
        return Node({}, 1)
    if not isinstance(found.value, dict):
        raise BadInputError(
            f"{found.place}: this is no section", file=file, expected="sections, as 'record:'"
        )
    return found


def reference(node: Node) -> Reference | None:
    """What a value refers to, where one value is expected.

    Args:
        node: ``!env NAME``, ``!file PATH``, or a mapping ``{env: NAME}`` or ``{file: PATH}``.

    Returns:
        Where the value is to be found; None of any other node.
    """
    value = node.value
    if isinstance(value, Reference):
        return value
    if isinstance(value, dict) and len(value) == 1:
        (kind, inner), *_ = value.items()
        if kind in {"env", "file"} and isinstance(inner.value, str):
            return Reference(kind, inner.value)
    return None


def plain(node: Node) -> Any:  # noqa: ANN401
    """What a node says, as Python's own objects.

    Args:
        node: The node.

    Returns:
        Scalars, lists and dicts; references stay.
    """
    if isinstance(node.value, tuple):
        return [plain(item) for item in node.value]
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    return node.value


class _Count:
    """How much of a document there may still be.

    Args:
        file: Its name.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._left = NODES_MAX

    def another(self, depth: int, line: int) -> None:
        """Take note of one more value.

        Raises:
            LimitError: That is one too many, or too deep.
        """
        self._left -= 1
        if depth > DEPTH_MAX:
            raise LimitError(
                f"line {line}: this is nested too deep",
                file=self._file,
                expected=f"at most {DEPTH_MAX} levels",
            )
        if self._left < 0:
            raise LimitError(
                f"line {line}: there are too many values, those of aliases counted each time",
                file=self._file,
                expected=f"at most {NODES_MAX:,}",
            )


class _Yaml:
    """Makes nodes of YAML.

    Args:
        file: Its name.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._count = _Count(file)
        self._composed = 0

    def node(self, text: str) -> Node:
        """The document.

        Args:
            text: What the file says.

        Returns:
            Its node.

        Raises:
            BadInputError: It is no YAML, has an unknown tag, or a key twice.
            LimitError: It is too much.
        """
        import yaml

        reader = self

        class Loader(yaml.SafeLoader):
            """Gives up on what is nested too deep while it is read."""

            depth = 0

            def compose_node(
                self,
                parent: yaml.Node | None,
                index: Any,  # noqa: ANN401
            ) -> yaml.Node | None:
                """Compose a node and what is in it."""
                self.depth += 1
                if self.depth > DEPTH_MAX:
                    reader._count.another(self.depth, self.line + 1)
                try:
                    return super().compose_node(parent, index)
                finally:
                    self.depth -= 1

        try:
            loader = Loader(text)
            root = loader.get_single_node()
            if root is None:
                return Node(None, 1)
            return self._node(loader, root, root.start_mark.line + 1, 1)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = 1 if mark is None else mark.line + 1
            raise BadInputError(
                f"line {line}: this is no YAML: {error.problem or error.context}", file=self._file
            ) from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise BadInputError(
                f"line {line}: this is no YAML: {error.reason}", file=self._file
            ) from error

    def _node(self, loader: yaml.SafeLoader, found: yaml.Node, line: int, depth: int) -> Node:
        import yaml

        self._count.another(depth, line)
        if isinstance(found, yaml.MappingNode):
            self._check_tag(found, _TAG + "map", line)
            return Node(self._mapping(loader, found, depth), line)
        if isinstance(found, yaml.SequenceNode):
            self._check_tag(found, _TAG + "seq", line)
            items = [
                self._node(loader, item, item.start_mark.line + 1, depth + 1)
                for item in found.value
            ]
            return Node(tuple(items), line)
        text: str = found.value
        if found.tag in {"!env", "!file"}:
            return Node(Reference(found.tag[1:], text), line, text)
        if found.tag in _TYPED:
            try:
                return Node(loader.construct_object(found), line, text)
            except ValueError as error:
                raise self._wrong(line, f"{text[:100]!r} is no {found.tag[len(_TAG) :]}") from error
        if found.tag in _TEXT:
            return Node(text, line, text)
        raise self._wrong(line, f"{found.tag.replace(_TAG, '!!')} is not known here")

    def _mapping(
        self, loader: yaml.SafeLoader, found: yaml.MappingNode, depth: int
    ) -> dict[str, Node]:
        import yaml

        made: dict[str, Node] = {}
        for key, value in found.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self._wrong(line, "a key is one word")
            if key.tag == _TAG + "merge":
                raise self._wrong(line, "'<<' is not known here: name what is meant")
            if key.value in made:
                first = made[key.value].line
                raise self._wrong(line, f"{key.value!r} stands here again: it is at line {first}")
            made[key.value] = self._node(loader, value, line, depth + 1)
        return made

    def _check_tag(self, found: yaml.Node, usual: str, line: int) -> None:
        if found.tag != usual:
            raise self._wrong(line, f"{found.tag.replace(_TAG, '!!')} is not known here")

    def _wrong(self, line: int, what: str) -> KcapError:
        return BadInputError(f"line {line}: {what}", file=self._file)


class _Toml:
    """Makes nodes of TOML, whose parser tells no lines: they are looked for by the keys.

    Args:
        text: What the file says.
        file: Its name.
    """

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._count = _Count(file)
        self._lines = _toml_lines(text)

    def node(self) -> Node:
        """The document.

        Returns:
            Its node.

        Raises:
            BadInputError: It is no TOML.
            LimitError: It is too much.
        """
        try:
            content = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            found = _AT.search(str(error))
            line = int(found[1]) if found else self._text.count("\n") + 1
            what = _AT.sub("", str(error)).removesuffix(" (at end of document)")
            raise BadInputError(f"line {line}: this is no TOML: {what}", file=self._file) from error
        except RecursionError as error:
            raise LimitError(
                "this is nested too deep", file=self._file, expected=f"at most {DEPTH_MAX} levels"
            ) from error
        return self._node(content, (), 1)

    def _node(self, value: Any, path: tuple[str, ...], above: int) -> Node:  # noqa: ANN401
        line = self._lines.get(path, above)
        self._count.another(len(path) + 1, line)
        if isinstance(value, dict):
            made = {key: self._node(item, (*path, key), line) for key, item in value.items()}
            return Node(made, line, near=True)
        if isinstance(value, list):
            items = [self._node(item, (*path, str(at)), line) for at, item in enumerate(value)]
            return Node(tuple(items), line, near=True)
        if isinstance(value, bool):
            return Node(value, line, str(value).lower(), near=True)
        if isinstance(value, (int, float)):
            return Node(value, line, str(value), near=True)
        text = value if isinstance(value, str) else value.isoformat()
        return Node(text, line, text, near=True)


def _toml_lines(text: str) -> dict[tuple[str, ...], int]:
    """The lines on which the keys of a TOML document seem to stand; the first of each."""
    lines: dict[tuple[str, ...], int] = {}
    tables: dict[tuple[str, ...], int] = {}
    base: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            base = _with_places(_words(header[2]), tables)
            if header[1] == "[[":
                at = tables[base] = tables.get(base, -1) + 1
                lines.setdefault(base, number)
                base = (*base, str(at))
            lines.setdefault(base, number)
        elif key := _KEY.match(line):
            lines.setdefault((*base, *_words(key[1])), number)
    return lines


def _with_places(words: tuple[str, ...], tables: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """The path of a table, with its place in each list of tables that it is in."""
    path: tuple[str, ...] = ()
    for word in words[:-1]:
        path = (*path, word)
        if path in tables:
            path = (*path, str(tables[path]))
    return (*path, *words[-1:])


def _words(key: str) -> tuple[str, ...]:
    """The parts of a dotted key."""
    return tuple(part.strip("\"' \t") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+", key))
