"""Settings by dotted name: what kind of value each takes, before a config is made of it.

The rules of a config refuse values out of range. A file or a command line can also bring a word
where a number belongs, which Python's dataclasses take without a word; that is refused here.
"""

import types
import typing

from pipeline.settings.config import TrainConfig


def kind_of(base: TrainConfig, name: str) -> object:
    """The declared type of a setting."""
    known = base.flat()
    if name not in known:
        raise ValueError(f"unknown setting {name!r}; known: {', '.join(known)}")
    *path, last = name.split(".")
    config: object = base
    for part in path:
        config = getattr(config, part)
    return typing.get_type_hints(type(config))[last]


def takes(kind: object, value: object) -> bool:
    """Whether a value is of a declared type; a whole number is a number, too."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(takes(part, value) for part in inner)
    if origin is tuple:
        parts = value if isinstance(value, list | tuple) else []
        kinds = inner[:1] * len(parts) if inner[-1:] == (...,) else inner
        return len(parts) == len(kinds) > 0 and all(map(takes, kinds, parts))
    if kind is type(None):
        return value is None
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def check_value(base: TrainConfig, name: str, value: object, where: str) -> None:
    """Refuse an unknown setting, and a value that is not of its type; `where` opens the message."""
    try:
        kind = kind_of(base, name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not takes(kind, value):
        shown = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        raise ValueError(f"{where}: {name} cannot be {value!r}; it takes {shown}")
