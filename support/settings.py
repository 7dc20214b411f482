"""Settings: frozen dataclasses that check themselves, whoever makes them.

    class OptimConfig(Settings):
        lr: float = 1e-3
        \"\"\"Peak learning rate.\"\"\"            the `--help` of the setting

        def rules(self):
            if self.lr <= 0:
                yield "lr", "must be above 0"

A nested setting has a dotted name ("optim.lr"), the same on the command line, in files, in a search
space and in MLflow. Types and choices follow from the annotations; `rules` relates values.
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
"""Name of a setting, and what its value must be."""


class InvalidSettings(ValueError):
    """Settings that break their types, choices or rules; the message names all of them."""

    def __init__(self, problems: Iterable[Rule]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{name} {text}" for name, text in self.problems))


def setting(
    default: object,
    *,
    choices: Callable[[], Iterable[str]] | None = None,
    may_change: bool = False,
    common: bool = False,
) -> Any:  # noqa: ANN401 - it stands where a value of the field's type is expected
    """A field of settings.

    Args:
        default: Its value, or the class of nested settings.
        choices: The names it may have, where they are the rows of a table.
        may_change: Whether a run may be resumed with another value. Of nested settings it holds
            for all of them.
        common: Whether `--help` shows it; `--help-all` shows every setting.
    """
    metadata = {"choices": choices, "may_change": may_change, "common": common}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings."""

    def __post_init__(self) -> None:
        """Raise InvalidSettings unless all types, choices and rules hold."""
        kinds, problems = type_hints(type(self)), []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, list):  # JSON has no tuples
                value = tuple(value)
                object.__setattr__(self, item.name, value)
            if not isinstance(value, Settings):
                kind = field_kind(item, kinds[item.name])
                if not takes(kind, value):
                    problems.append((item.name, f"({value!r}) must be {described(kind, value)}"))
        problems = problems or [
            (name, f"({getattr(self, name)!r}) {text}") for name, text in self.rules()
        ]
        if problems:
            raise InvalidSettings(problems)

    def rules(self) -> Iterator[Rule]:
        """The rules that are broken; called when all types are right."""
        return iter(())

    def flat(self) -> dict[str, object]:
        """Every setting by its dotted name; the values are JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, _, v in self.items()}

    def items(self, prefix: str = "", **inherited: bool) -> Iterator[tuple[str, Mapping, object]]:
        """Dotted name, metadata and value of every setting, with those of nested settings."""
        for item in dataclasses.fields(self):
            value, metadata = getattr(self, item.name), {**item.metadata, **inherited}
            if isinstance(value, Settings):
                shared = {"may_change": True} if metadata.get("may_change") else {}
                yield from value.items(f"{prefix}{item.name}.", **{**inherited, **shared})
            else:
                yield f"{prefix}{item.name}", metadata, value

    def replace(self, settings: Mapping[str, object]) -> Self:
        """The same with settings changed by dotted name; InvalidSettings names what is wrong."""
        known = self.flat()
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise InvalidSettings(
                (repr(name), f"is not a setting; {suggestion(name, known)}") for name in unknown
            )
        return self._replaced(settings, "")

    def _replaced(self, settings: Mapping[str, object], prefix: str) -> Self:
        changes: dict[str, object] = {}
        problems: list[Rule] = []
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
    """The rules that do not hold, from name=(whether the rule holds, what the value must be)."""
    return ((name, text) for name, (holds, text) in rules.items() if not holds)


@functools.cache
def type_hints(kind: type) -> dict[str, object]:
    """Annotations of a class, resolved."""
    return typing.get_type_hints(kind)


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, in one line."""
    docs: dict[str, str] = {}
    for cls in reversed([cls for cls in kind.__mro__ if dataclasses.is_dataclass(cls)]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for node, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                docs[node.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return docs


def field_kind(item: dataclasses.Field, kind: object) -> object:
    """The type of a field; the rows of its table as a Literal where it has one."""
    choices = item.metadata.get("choices")
    return typing.Literal[tuple(choices())] if choices else kind


def takes(kind: object, value: object) -> bool:
    """Whether a value is of a type; a whole number is a number, too."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return isinstance(value, str) and value in inner
    if origin in (typing.Union, types.UnionType):
        return any(takes(part, value) for part in inner)
    if origin is tuple:
        parts = value if isinstance(value, list | tuple) else None
        if parts is None:
            return False
        kinds = inner[:1] * len(parts) if inner[-1] is ... else inner
        return len(parts) == len(kinds) and all(map(takes, kinds, parts))
    if kind is type(None):
        return value is None
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


# more names than this would hide the suggestion
MAX_LISTED = 12
NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def described(kind: object, value: object = None) -> str:
    """A type in words, with the choice that is nearest to a wrong value."""
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
    """The known word that a wrong one was most likely meant to be."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return lower[close[0]] if close else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to say about an unknown word: the nearest one, and all of them if they are few."""
    near, names = nearest(word, known), list(known)
    listed = f"known: {', '.join(names)}"
    if not near:
        return listed
    return f"did you mean {near!r}?" + (f" {listed}" if len(names) <= MAX_LISTED else "")
