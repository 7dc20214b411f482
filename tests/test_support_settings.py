"""Settings check their types, choices and rules, and name what is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from support.settings import InvalidSettings, Rule, Settings, field_docs, setting, suggestion

COLOURS = {"red": 1, "green": 2}


@dataclass(frozen=True, kw_only=True)
class Paint(Settings):
    """Paint."""

    colour: str = setting("red", choices=lambda: COLOURS, common=True)
    """Which colour, of those
    that there are."""
    coats: int = 1
    """How many."""
    gloss: float | None = None
    mix: tuple[float, float] = (0.5, 0.5)
    names: tuple[str, ...] = ()
    kind: Literal["oil", "water"] = "oil"
    thin: bool = setting(False, may_change=True)

    def rules(self) -> Iterator[Rule]:
        """Some coat."""
        if self.coats < 1:
            yield "coats", "must be at least 1"
        if sum(self.mix) != 1:
            yield "mix", "must add up to 1"


@dataclass(frozen=True, kw_only=True)
class House(Settings):
    """House."""

    rooms: int = 3
    outside: Paint = setting(Paint, may_change=True)
    inside: Paint = setting(Paint)

    def rules(self) -> Iterator[Rule]:
        """As many rooms as coats."""
        if self.rooms < self.inside.coats:
            yield "rooms", f"must be at least inside.coats ({self.inside.coats})"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("colour", "Red", "('Red') must be one of red, green; did you mean 'red'?"),
        ("colour", 3, "(3) must be one of red, green"),
        ("colour", ["red"], "(('red',)) must be one of red, green"),
        ("coats", 1.0, "(1.0) must be a whole number"),
        ("coats", True, "(True) must be a whole number"),
        ("coats", None, "(None) must be a whole number"),
        ("coats", 0, "(0) must be at least 1"),
        ("gloss", "much", "('much') must be a number or none"),
        ("mix", [1.0], "((1.0,)) must be 2 values, each a number"),
        ("mix", 0.5, "(0.5) must be 2 values, each a number"),
        ("mix", [0.5, "x"], "((0.5, 'x')) must be 2 values, each a number"),
        ("names", "one", "('one') must be a list, each text"),
        ("names", [1], "((1,)) must be a list, each text"),
        ("kind", "watr", "('watr') must be one of oil, water; did you mean 'water'?"),
        ("thin", 1, "(1) must be true or false"),
    ],
)
def test_a_wrong_value_is_refused_by_name_value_and_rule(name, value, text):
    with pytest.raises(InvalidSettings) as raised:
        Paint(**{name: value})
    assert str(raised.value) == f"{name} {text}"
    with pytest.raises(InvalidSettings) as raised:
        House().replace({f"inside.{name}": value})
    assert str(raised.value).startswith(f"inside.{name} {text}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("gloss", None), ("gloss", 1), ("mix", (0, 1)), ("names", ["a", "b"]), ("names", ())],
)
def test_right_values_are_taken_and_lists_become_tuples(name, value):
    expected = tuple(value) if isinstance(value, list) else value
    assert getattr(Paint(**{name: value}), name) == expected


def test_all_problems_are_named_at_once_with_their_dotted_names():
    with pytest.raises(InvalidSettings) as raised:
        House().replace({"inside.coats": 0, "outside.kind": "lead", "outside.thin": "no"})
    assert [name for name, _ in raised.value.problems] == [
        "outside.kind",
        "outside.thin",
        "inside.coats",
    ]


def test_rules_between_settings_hold_after_a_change_of_either():
    with pytest.raises(InvalidSettings, match=r"rooms \(3\) must be at least inside.coats \(4\)"):
        House().replace({"inside.coats": 4})
    assert House().replace({"inside.coats": 4, "rooms": 4}).inside.coats == 4


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InvalidSettings, match="'inside.coat' is not a setting; did you mean"):
        House().replace({"inside.coat": 2})


def test_flat_and_replace_are_inverse():
    house = House(rooms=5, inside=Paint(mix=(0.25, 0.75)))
    assert House().replace(house.flat()) == house
    assert house.flat()["inside.mix"] == [0.25, 0.75]


def test_metadata_of_a_group_holds_for_all_of_it():
    free = [name for name, metadata, _ in House().items() if metadata.get("may_change")]
    assert free == [f"outside.{name}" for name in Paint().flat()] + ["inside.thin"]


def test_docs_are_one_line_each():
    assert field_docs(Paint)["colour"] == "Which colour, of those that there are."
    assert field_docs(Paint).keys() == {"colour", "coats"}


def test_suggestions_list_what_is_known_where_that_is_little():
    assert suggestion("trian", ["train", "test"]) == "did you mean 'train'? known: train, test"
    assert suggestion("xyz", ["train", "test"]) == "known: train, test"
    many = [f"name{number}" for number in range(50)]
    assert suggestion("nam7", many) == "did you mean 'name7'?"
