"""The CHECKPOINT of a command, from which its settings have their defaults."""

from collections.abc import Callable, Sequence

from support.command import first_value
from support.settings import Settings


def split_off(
    arguments: Sequence[str], flags: Settings, defaults: Callable[[str], Settings], needs: str
) -> tuple[dict[str, object], Sequence[str], Sequence[str]]:
    """The fields `checkpoint` and `config` of a command, its CHECKPOINT, and the other arguments.

    `flags` are settings without a checkpoint, for the help, and `defaults` gives those for one.
    Without a CHECKPOINT raises ValueError, which says what the command `needs`.
    """
    path, rest = first_value(arguments, flags, flags=("verbose",))
    if path:
        return {"checkpoint": path, "config": defaults(path)}, [path], rest
    if {"-h", "--help"} & {*arguments}:
        return {"checkpoint": "", "config": flags}, ["CHECKPOINT"], rest
    raise ValueError(needs)
