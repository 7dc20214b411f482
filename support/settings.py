"""Settings: frozen dataclasses that check their values whenever one is created.

    class OptimConfig(Settings):
        lr: float = 1e-3
        \"\"\"Peak learning rate.\"\"\"            the `--help` of the setting

        def rules(self):
            if self.lr <= 0:
                yield "lr", "must be above 0"

A nested setting has a dotted name ("optim.lr") on the command line, in files, in search spaces and
in MLflow. Types and choices are checked from the annotations, and all else by `rules`.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

Rule = tuple[str, str]
"""Name of a setting, and the requirement that its value breaks."""


class InvalidSettings(ValueError):
    """Settings with invalid types or choices or broken rules; the message lists all problems."""

    def __init__(self, problems: Iterable[Rule]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{name} {text}" for name, text in self.problems))


def setting(
    default: object,
    *,
    choices: Callable[[], Iterable[str]] | None = None,
    may_change: bool = False,
    common: bool = False,
) -> Any:  # noqa: ANN401 - assigned to fields of any type
    """Define a field of settings.

    Args:
        default: Default value, or the class of nested settings.
        choices: Returns the allowed names, for a setting that names a row of a table.
        may_change: Whether a run may be resumed with another value; applies to all nested
            settings.
        common: Whether `--help` shows it; `--help-all` shows every setting.
    """
    metadata = {"choices": choices, "may_change": may_change, "common": common}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of all settings."""

    def __post_init__(self) -> None:
        """Raise InvalidSettings if a type, choice or rule is violated."""
        kinds, problems = type_hints(type(self)), []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, list):  # JSON has no tuples
                value = tuple(value)
                object.__setattr__(self, item.name, value)
            kind = field_kind(item, kinds[item.name])
            if not isinstance(value, Settings) and not takes(kind, value):
                problems.append((item.name, f"({value!r}) must be {described(kind, value)}"))
        problems = problems or [
            (name, f"({getattr(self, name)!r}) {text}") for name, text in self.rules()
        ]
        if problems:
            raise InvalidSettings(problems)

    def rules(self) -> Iterator[Rule]:
        """Yield the broken rules; called only if all types are valid."""
        return iter(())

    def flat(self) -> dict[str, object]:
        """Map dotted names to the values of all settings, as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, _, v in self.items()}

    def items(self, prefix: str = "", **inherited: bool) -> Iterator[tuple[str, Mapping, object]]:
        """Yield dotted name, metadata and value of every setting, including nested settings."""
        for item in dataclasses.fields(self):
            value, metadata = getattr(self, item.name), {**item.metadata, **inherited}
            if isinstance(value, Settings):
                shared = {"may_change": True} if metadata.get("may_change") else {}
                yield from value.items(f"{prefix}{item.name}.", **shared)
            else:
                yield f"{prefix}{item.name}", metadata, value

    def replace(self, settings: Mapping[str, object]) -> Self:
        """Copy with some settings changed by dotted name; InvalidSettings lists all problems."""
        names = self.flat()
        problems = [
            (repr(name), f"is not a setting; {suggestion(name, names)}")
            for name in settings
            if name not in names
        ]
        if problems:
            raise InvalidSettings(problems)
        return self._replaced(settings, "")

    def _replaced(self, settings: Mapping[str, object], prefix: str) -> Self:
        changes, problems = {}, []
        for item in dataclasses.fields(self):
            value, name = getattr(self, item.name), f"{prefix}{item.name}"
            if isinstance(value, Settings):
                try:
                    changes[item.name] = value._replaced(settings, f"{name}.")
                except InvalidSettings as error:
                    problems += error.problems
            elif name in settings:
                changes[item.name] = settings[name]
        if problems:
            raise InvalidSettings(problems)
        try:
            return dataclasses.replace(self, **changes)
        except InvalidSettings as error:
            named = [(f"{prefix}{name}", text) for name, text in error.problems]
            raise InvalidSettings(named) from None


def broken(**rules: tuple[bool, str]) -> Iterator[Rule]:
    """Yield the broken rules, given name=(whether the rule holds, the requirement)."""
    return ((name, text) for name, (holds, text) in rules.items() if not holds)


def below(settings: Settings, least: int, *names: str) -> Iterator[Rule]:
    """The broken rule for each setting of `names` below `least`; None is allowed."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            yield name, f"must be at least {least}"


type_hints = functools.cache(typing.get_type_hints)


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Map the fields of a dataclass to the docstrings under them, each in one line."""
    docs: dict[str, str] = {}
    for cls in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for node, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                docs[node.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return docs


def field_kind(item: dataclasses.Field, kind: object) -> object:
    """The type of a field; a Literal of its choices if it has any."""
    choices = item.metadata.get("choices")
    return typing.Literal[tuple(choices())] if choices else kind


def takes(kind: object, value: object) -> bool:
    """Whether a value has a type; an int is also a float, but a bool is not an int."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return isinstance(value, str) and value in inner
    if origin in (typing.Union, types.UnionType):
        return any(takes(part, value) for part in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(takes, kinds, value))
    if kind is type(None):
        return value is None
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


MAX_LISTED = 12  # a longer list of names would hide the suggestion
NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def described(kind: object, value: object = None) -> str:
    """Describe a type in words, with the choice that is nearest to a wrong value."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        near = nearest(str(value), inner)
        return f"one of {', '.join(inner)}" + (f"; did you mean {near!r}?" if near else "")
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(part, value) for part in inner)
    if origin is tuple:
        count = "a list, each" if inner[-1] is ... else f"{len(inner)} values, each"
        return f"{count} {described(inner[0])}"
    return "none" if kind is type(None) else NAMES[kind]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar to a wrong word, or None."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return lower[close[0]] if close else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """Text about an unknown word: the nearest known word, and all known words if they are few."""
    near, names = nearest(word, known), list(known)
    listed = f"known: {', '.join(names)}"
    if not near:
        return listed
    return f"did you mean {near!r}?" + (f" {listed}" if len(names) <= MAX_LISTED else "")
