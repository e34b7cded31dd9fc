"""Column names are a pure, injective and reversible function of a field's name and its class."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kcap import limits
from kcap.model import catalogue, naming
from kcap.model.classes import TypeClass

ANY_CHAR = st.characters(exclude_categories=[])  # lone surrogates and control characters too
TRICKY = st.text(st.sampled_from("_xX09AFaf~"), max_size=8)  # what looks like an escape
NAMES = st.one_of(st.text(ANY_CHAR, max_size=12), TRICKY)
HOMES = st.none() | st.sampled_from(TypeClass)
ENDINGS = st.sampled_from(["", "__raw", "__size"])


@given(NAMES)
@example("")
@example("_")
@example("x41")
@example("a_x41")
@example("__class__")
@example("\udcff")
def test_a_name_comes_back_from_its_base(name: str) -> None:
    """Whatever a source calls an argument, the base spells it reversibly."""
    assert naming.source_name(naming.argument(name)) == name
    assert naming.source_name(naming.extension(name)) == name


@given(NAMES)
def test_a_base_is_plain(name: str) -> None:
    """A base is of letters, digits and single underscores, so suffixes cannot be mistaken."""
    base = naming.argument(name)

    assert re.fullmatch(r"[A-Za-z0-9_]+", base)
    assert "__" not in base
    assert not base.endswith("_")
    assert naming.parts(base) == (base, [])


@given(NAMES, NAMES)
def test_two_names_have_two_bases(one: str, other: str) -> None:
    """Different names never share a base, nor do an argument and an extension (spec 5.3)."""
    assume(one != other)

    assert naming.argument(one) != naming.argument(other)
    assert naming.argument(one) != naming.extension(one)


def test_ordinary_names_stay_as_they_are() -> None:
    """A name that is an identifier is spelled as it is, whatever underscores it has inside."""
    assert naming.argument("pathname") == "arg_pathname"
    assert naming.argument("sin_addr6") == "arg_sin_addr6"
    assert naming.extension("k8s") == "ext_k8s"
    assert naming.argument("event.id") == "arg_event_x2Eid"


@given(st.text(string.ascii_letters, min_size=2000, max_size=2100), st.integers(0, 1999))
def test_long_names_keep_apart_within_the_limit(name: str, at: int) -> None:
    """A base too long to be spelled out is cut, and a hash keeps it unlike any other."""
    other = name[:at] + "_" + name[at + 1 :]
    bases = {naming.argument(name), naming.argument(other), naming.argument(name + "q")}

    assert len(bases) == 3
    longest = max(bases, key=len) + "__list_bool__9999999__size"
    assert len(longest.encode()) <= limits.NAME_BYTES
    assert all("__" not in base for base in bases)


@given(NAMES, st.sampled_from(TypeClass), HOMES, st.integers(1, 10**7), ENDINGS)
def test_a_column_says_its_class(
    name: str, cls: TypeClass, home: TypeClass | None, occurrence: int, ending: str
) -> None:
    """The class of any column is known from its name and the home class alone."""
    column = naming.column_name(naming.argument(name), cls, home, occurrence) + ending

    expected = {"": cls, "__raw": TypeClass.BIN, "__size": TypeClass.I64}[ending]
    assert naming.class_of(column, home) is expected
    assert naming.parts(column)[0] == naming.argument(name)


@given(
    st.lists(
        st.tuples(NAMES, st.sampled_from(TypeClass), st.integers(1, 3)),
        min_size=2,
        max_size=2,
        unique=True,
    ),
    HOMES,
)
def test_columns_do_not_collide(
    fields: list[tuple[str, TypeClass, int]], home: TypeClass | None
) -> None:
    """Name, class and occurrence together make a column of their own (spec 5.3)."""
    one, other = (naming.column_name(naming.argument(n), c, home, o) for n, c, o in fields)

    assert one != other


@pytest.mark.parametrize(
    "column",
    [
        "pid__",
        "pid__i32",
        "pid__1",
        "pid__01",
        "pid__²",
        "pid__raw__str",
        "pid__str__str",
        "pid__2__str",
        "pid__raw__size",
    ],
)
def test_a_malformed_column_has_no_class(column: str) -> None:
    """Suffixes that kcap does not give are no class."""
    assert naming.class_of(column, TypeClass.I64) is None


@given(st.text(ANY_CHAR))
@example("arg_xFF")
@example("arg_\udcff")
@example("arg_x\u0660\u0661")
def test_no_column_name_is_an_error(column: str) -> None:
    """A hostile capture may name its columns anything."""
    assert isinstance(catalogue.class_of(column), TypeClass | None)
