"""Documents that people write (rules, tests of rules, settings), with the line of each value.

One reader for all of them, so that they share what keeps a hostile or mistaken file harmless: a
file is data, no tag makes an object; size, depth and the number of values are bounded, what an
alias stands for counted each time; a key stands once. It goes by the parser's events: nothing
recurses, and a document is refused where it becomes too much, not when it has been read whole.

What is written in TOML is turned into the same nodes by who reads it (`Count` bounds it).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kcap.errors import BadInputError, KcapError, LimitError

_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = _TAG + "merge"
_TYPED: Final = frozenset(_TAG + name for name in ("bool", "int", "float", "null"))
_TEXT: Final = frozenset(_TAG + name for name in ("str", "timestamp", "binary", "value", "merge"))
"""Tags of what stays as it is written: a date is a text, too."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the documents of one kind may be."""

    what: str
    """What they are, for errors."""
    characters: int = 4 << 20
    depth: int = 32
    values: int = 500_000
    """The largest file, the deepest nesting, the most values (of aliases each time)."""
    is_typed: bool = True
    """Numbers, true, false and null are such; else all values are texts."""
    merges: bool = True
    """The key ``<<`` puts another mapping's keys here."""
    tags: Mapping[str, Callable[[str], object]] = field(default_factory=dict)
    """Tags beside those of YAML, and what makes their values."""


RULES: Final = Dialect("rules")


@dataclass(slots=True, eq=False)
class Node:
    """A value and where it stands."""

    value: Any
    """A text, a number, True, False or None, what a tag makes; nodes in a tuple, or in a dict."""
    line: int
    """Where it begins, from 1; of a value in a mapping, where its key stands."""
    text: str = ""
    """A scalar as it stands there, without quotes."""
    near: bool = False
    """The line is that of the nearest value that was found."""
    own_line: int = 0
    """Where a scalar's text begins: below its key perhaps."""
    raw: str = ""
    """The text with all its white space, where it has several lines."""

    @property
    def place(self) -> str:
        """Its line as text."""
        return f"{'near ' if self.near else ''}line {self.line}"

    @property
    def is_scalar(self) -> bool:
        """Whether it is one value, or says where one is."""
        return not isinstance(self.value, (tuple, dict))

    @property
    def items(self) -> tuple[Node, ...]:
        """The items of a list; one value counts as a list of one, an empty one as none."""
        if isinstance(self.value, tuple):
            return self.value
        return () if self.value in (None, "", {}) else (self,)

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
        line = found = self.own_line or self.line
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
        """The value as Python's own objects: scalars, lists and dicts."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value


class Count:
    """How much of a file there may still be.

    Args:
        dialect: What it may be.
        file: Its name.
    """

    def __init__(self, dialect: Dialect, file: str) -> None:
        self._dialect = dialect
        self._file = file
        self._left = dialect.values

    def add(self, depth: int, line: int, values: int = 1) -> None:
        """Take note of more values.

        Args:
            depth: How deep they are nested, from 1.
            line: Where.
            values: How many.

        Raises:
            LimitError: They are too many, or too deep.
        """
        self._left -= values
        if depth > self._dialect.depth:
            expected = f"at most {self._dialect.depth} levels"
            raise LimitError(
                "this is nested too deep", file=self._file, line=line, expected=expected
            )
        if self._left < 0:
            raise LimitError(
                "there are too many values, those of aliases counted each time",
                file=self._file,
                line=line,
                expected=f"at most {self._dialect.values:,}",
            )


def documents(text: str, file: str, dialect: Dialect = RULES) -> Iterator[Node]:
    """Read YAML, or JSON, which is YAML.

    Args:
        text: The content of a file.
        file: Its name, for errors.
        dialect: What it may be.

    Yields:
        The documents that are not empty; those before a mistake come before it is raised.

    Raises:
        BadInputError: It is no YAML, a key stands twice, a tag is not known.
        LimitError: It is too large, too deep, or has too many values.
    """
    import yaml

    text = text.removeprefix("\ufeff")
    if len(text) > dialect.characters:
        expected = f"at most {dialect.characters:,} characters"
        raise LimitError(f"the file is too large for {dialect.what}", file=file, expected=expected)
    loader: Any = None
    try:
        # The parser of libyaml is ten times as fast; it is not in every build of PyYAML.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        yield from _Reader(loader, text, file, dialect).documents()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # The end of a file is behind its last line.
        line = None if mark is None else min(mark.line, text.count("\n")) + 1
        what = f"this is no YAML: {error.problem or error.context}"
        raise BadInputError(what, file=file, line=line) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInputError(f"this is no YAML: {error.reason}", file=file, line=line) from error
    finally:
        if loader is not None:
            loader.dispose()


@dataclass(slots=True)
class _Made:
    """A node, how many values it has with all in it, and how many levels below itself."""

    node: Node
    size: int = 1
    height: int = 0


@dataclass(slots=True)
class _Open:
    """A list or a mapping that is being read."""

    line: int
    anchor: str | None
    items: list[Node] | None
    values: dict[str, Node] = field(default_factory=dict)
    merged: list[Node] = field(default_factory=list)
    key: Node | None = None
    merges: bool = False
    size: int = 1
    height: int = 0

    def made(self) -> _Made:
        """It, when it is whole."""
        value: Any = self.values
        if self.items is not None:
            value = tuple(self.items)
        for mapping in self.merged:  # what stands here itself is stronger, then what comes first
            for name, node in mapping.value.items():
                self.values.setdefault(name, node)
        return _Made(Node(value, self.line), self.size, self.height)


class _Reader:
    """Makes nodes of the events of a parser."""

    def __init__(self, loader: Any, text: str, file: str, dialect: Dialect) -> None:  # noqa: ANN401
        import yaml

        self._yaml = yaml
        self._loader = loader
        self._text = text
        self._file = file
        self._dialect = dialect
        self._count = Count(dialect, file)
        self._anchors: dict[str, _Made | None] = {}
        """What aliases stand for; None while it is being read."""
        self._open: list[_Open] = []
        self._root = Node(None, 1)

    def documents(self) -> Iterator[Node]:
        """Each document that is not empty."""
        events = self._yaml.events
        while self._loader.check_event():
            event = self._loader.get_event()
            if isinstance(event, events.ScalarEvent):
                self._put(self._scalar(event), event.anchor)
            elif isinstance(event, events.AliasEvent):
                self._put(self._alias(event), None)
            elif isinstance(event, (events.MappingStartEvent, events.SequenceStartEvent)):
                self._start(event, isinstance(event, events.MappingStartEvent))
            elif isinstance(event, events.CollectionEndEvent):
                top = self._open.pop()
                self._put(top.made(), top.anchor)
            elif isinstance(event, events.DocumentStartEvent):
                self._anchors, self._root = {}, Node(None, 1)
            elif isinstance(event, events.DocumentEndEvent) and self._root.value not in (None, ""):
                yield self._root

    def _start(self, event: Any, is_mapping: bool) -> None:  # noqa: ANN401 - PyYAML's
        line = event.start_mark.line + 1
        self._count.add(len(self._open) + 1, line)
        usual = _TAG + ("map" if is_mapping else "seq")
        if event.tag not in (None, "!", usual):
            raise self._unknown(event.tag, line)
        if self._open and self._open[-1].items is None and self._open[-1].key is None:
            raise self._wrong("a key is one word", line)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._open.append(_Open(line, event.anchor, None if is_mapping else []))

    def _scalar(self, event: Any) -> _Made:  # noqa: ANN401 - PyYAML's
        start, end = event.start_mark, event.end_mark
        line, text = start.line + 1, event.value
        self._count.add(len(self._open) + 1, line)
        tag = event.tag
        if tag in (None, "!"):
            tag = self._loader.resolve(self._yaml.ScalarNode, text, event.implicit)
        node = Node(text, line, text, own_line=line)
        if end.line > start.line:
            node.raw = self._text[start.index : end.index]
            if event.style in ("|", ">"):
                node.raw = node.raw.partition("\n")[2]
                node.own_line += 1
            elif event.style in ("'", '"'):
                node.raw = node.raw[1:]
        if tag == _MERGE:
            node.value = _MERGED
        elif tag in self._dialect.tags:
            node.value = self._dialect.tags[tag](text)
        elif tag in _TYPED:
            node.value = self._typed(tag, text, line) if self._dialect.is_typed else text
        elif tag not in _TEXT:
            raise self._unknown(tag, line)
        return _Made(node)

    def _typed(self, tag: str, text: str, line: int) -> object:
        constructor: Any = self._yaml.SafeLoader.yaml_constructors[tag]
        try:
            return constructor(self._loader, self._yaml.ScalarNode(tag, text))
        except (ValueError, LookupError) as error:
            what = f"{text[:100]!r} is no {tag.removeprefix(_TAG)}"
            raise self._wrong(what, line) from error

    def _alias(self, event: Any) -> _Made:  # noqa: ANN401 - PyYAML's
        line, name = event.start_mark.line + 1, event.anchor
        if name not in self._anchors:
            raise self._wrong(f"the alias *{name} stands for nothing", line, f"&{name} above")
        found = self._anchors[name]
        if found is None:
            raise self._wrong(f"the alias *{name} stands in what it stands for", line)
        self._count.add(len(self._open) + 1 + found.height, line, found.size)
        node = copy.copy(found.node)
        node.line = line
        return _Made(node, found.size, found.height)

    def _put(self, made: _Made, anchor: str | None) -> None:
        """A value is whole: it goes where it belongs."""
        if anchor is not None:
            self._anchors[anchor] = made
        if not self._open:
            self._root = self._plain(made.node)
            return
        top, node = self._open[-1], made.node
        top.size += made.size
        top.height = max(top.height, made.height + 1)
        if top.items is not None:
            top.items.append(self._plain(node))
        elif top.key is None:
            self._take_key(top, node)
        else:
            key, top.key = top.key, None
            if key.value is _MERGED:
                self._merge(top, node)
                return
            node.line = key.line
            top.values[key.text] = self._plain(node)

    def _take_key(self, top: _Open, key: Node) -> None:
        if not key.is_scalar:
            raise self._wrong("a key is one word", key.line)
        if key.value is _MERGED and not self._dialect.merges:
            raise self._wrong("'<<' is not known here: name what is meant", key.line)
        if (again := top.values.get(key.text)) is not None:
            what = f"{key.text!r} stands here again"
            raise self._wrong(what, key.line, f"it once, as at line {again.line}")
        top.key = key

    def _merge(self, top: _Open, node: Node) -> None:
        for one in node.items:
            if not isinstance(one.value, dict):
                raise self._wrong("'<<' is followed by no mapping", node.line)
            top.merged.append(one)

    @staticmethod
    def _plain(node: Node) -> Node:
        """The node; of a merge sign that stands where none is meant the text."""
        if node.value is _MERGED:
            node.value = node.text
        return node

    def _unknown(self, tag: str, line: int) -> KcapError:
        return self._wrong(f"{tag.replace(_TAG, '!!')} is not known here", line)

    def _wrong(self, what: str, line: int, expected: str | None = None) -> KcapError:
        return BadInputError(what, file=self._file, line=line, expected=expected)


_MERGED: Final = object()
"""The value of a plain ``<<``."""
