"""Command lines: one dispatcher for `python -m pipeline`, `python -m shards` and `python -m tune`.

A command is a dataclass: its docstring is its help, its fields are its arguments, and calling it
runs it. Its `Settings` become arguments by their dotted names, and are checked by their own rules.

Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted. Whatever is written is redacted.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, Self, get_type_hints

import tyro

from support.redact import excepthook, redact
from support.settings import Settings, field_docs, field_kind, suggestion

DISTRIBUTION = "vit-pretraining"
HELP_ALL = "--help-all"
EVERY_SETTING = f"{HELP_ALL} shows every setting."


class Command(Protocol):
    """What a command line can run."""

    def __call__(self) -> int:
        """Run the command; its exit status."""


class Prepared(Command, Protocol):
    """A command whose defaults follow from its first argument, such as a preset's name.

    Its `description` may say more than its docstring.
    """

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """The defaults, the arguments that they follow from, and the other arguments."""


def dispatch(
    prog: str, commands: Mapping[str, type[Command]], arguments: Sequence[str] | None
) -> int:
    """Run the command that the arguments name, by default those of the process; its status."""
    sys.excepthook = excepthook
    arguments = sys.argv[1:] if arguments is None else arguments
    names = [name for name in commands if arguments[: name.count(" ") + 1] == name.split()]
    if not names:
        return overview(prog, commands, arguments)
    (name,) = names
    command = None
    try:
        command = parse(f"{prog} {name}", commands[name], arguments[name.count(" ") + 1 :])
        return command()
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command resumes\n")
        return 130
    except (ValueError, FileNotFoundError) as error:
        return failed(error, 2, verbose=getattr(command, "verbose", False))
    except (ArithmeticError, OSError, RuntimeError) as error:
        return failed(error, 1, verbose=getattr(command, "verbose", False))


def failed(error: Exception, status: int, *, verbose: bool) -> int:
    """Say what went wrong, and return the status."""
    if verbose:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    sys.stderr.write(f"error: {redact(str(error))}\n")
    return status


def overview(prog: str, commands: Mapping[str, type[Command]], arguments: Sequence[str]) -> int:
    """Without a command: the help page, the version, or an error that suggests the nearest one."""
    first = arguments[0] if arguments else "--help"
    if first == "--version":
        sys.stdout.write(f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}\n")
        return 0
    if first in ("-h", "--help", HELP_ALL):
        width = max(map(len, commands))
        lines = (
            f"  {name:<{width}}  {' '.join(inspect.getdoc(command).partition('. ')[0].split())}"
            for name, command in commands.items()
        )
        sys.stdout.write(
            f"usage: {prog} COMMAND ...\n\n" + "\n".join(lines) + "\n\n"
            f"{prog} COMMAND --help shows a command's arguments; --version shows the version.\n"
        )
        return 0 if arguments else 2
    words = [word for word in arguments[:2] if not word.startswith("-")]
    sys.stderr.write(
        f"error: unknown command {redact(' '.join(words[:1]) or first)!r}; "
        f"{suggestion(' '.join(words), commands)}\n"
    )
    return 2


def parse(prog: str, kind: type[Command], arguments: Sequence[str]) -> Command:
    """The command with its arguments; SystemExit after help or an error of tyro's."""
    words = ["--help" if word == HELP_ALL else word for word in arguments]
    default = None
    if hasattr(kind, "prepare"):
        default, subject, words = kind.prepare(words)
        prog = " ".join([prog, *subject])
    # an argument that help leaves out could not be given either
    brief = HELP_ALL not in arguments and not {"-h", "--help"}.isdisjoint(words)
    shadow, hides = argument_type(kind, default, brief=brief)
    description = getattr(default, "description", None) or inspect.getdoc(kind)
    read = functools.partial(
        tyro.cli,
        shadow,
        prog=redact(prog),
        description=f"{description}\n\n{EVERY_SETTING}" if hides else description,
        config=(tyro.conf.PositionalMetavarFromFieldName, tyro.conf.SuppressFixed),
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed = read(args=words)
    except SystemExit as stop:
        if stop.code:  # tyro's message quotes the arguments, and wraps what it quotes
            read(args=[redact(word) for word in words])
        raise
    values = {}
    for item in dataclasses.fields(kind):
        value, own = getattr(parsed, item.name), default_of(item, default)
        values[item.name] = own.replace(flat(value)) if isinstance(own, Settings) else value
    return kind(**values)


def argument_type(
    kind: type, default: object, *, brief: bool, nested: bool = False
) -> tuple[type, bool]:
    """A dataclass that tyro can parse in place of `kind`, and whether its help leaves out anything.

    Its fields have the docs of `kind` without line breaks and the defaults of `default`. If
    `brief`, only the settings that are marked as common are in it.
    """
    hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
    fields: list[tuple] = []
    hides = False
    for item in dataclasses.fields(kind):
        value, hint = default_of(item, default), hints[item.name]
        if isinstance(value, Settings):
            inner, inner_hides = argument_type(type(value), value, brief=brief, nested=True)
            hides |= inner_hides
            # the settings of the command itself have no prefix
            named = inner if nested or item.name != "config" else Annotated[inner, NO_PREFIX]
            fields.append((item.name, named, dataclasses.field(default_factory=inner)))
            continue
        hint = Annotated[field_kind(item, hint), tyro.conf.arg(help=docs.get(item.name, ""))]
        if issubclass(kind, Settings) and not item.metadata.get("common") and brief:
            hint, hides = tyro.conf.Suppress[hint], True
        if value is dataclasses.MISSING:
            fields.append((item.name, hint))
        else:
            fields.append((item.name, hint, dataclasses.field(default=value)))
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True, kw_only=True), hides


NO_PREFIX = tyro.conf.arg(name="")


def default_of(item: dataclasses.Field, default: object) -> Any:  # noqa: ANN401
    """Default of a field: of the instance if there is one, otherwise of the class."""
    if default is not None:
        return getattr(default, item.name)
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def flat(parsed: object, prefix: str = "") -> dict[str, object]:
    """What tyro has parsed, by dotted name."""
    values = {}
    for item in dataclasses.fields(parsed):
        value = getattr(parsed, item.name)
        if dataclasses.is_dataclass(value):
            values |= flat(value, f"{prefix}{item.name}.")
        else:
            values[f"{prefix}{item.name}"] = value
    return values


def first_value(
    arguments: Sequence[str], settings: Settings, flags: Sequence[str]
) -> tuple[str | None, list[str]]:
    """The first argument that is neither an option nor its value, and the other arguments.

    Args:
        arguments: A command line; options may stand before the value.
        settings: What options there are.
        flags: Further options that take no value.
    """
    kinds = settings.flat() | dict.fromkeys((*flags, "h", "help"), True)
    place = 0
    while place < len(arguments):
        word = arguments[place]
        if not word.startswith("-"):
            return word, [*arguments[:place], *arguments[place + 1 :]]
        name = word.lstrip("-").replace("-", "_")
        kind = kinds.get(name, kinds.get(name.removeprefix("no_")))
        place += 1
        if "=" in word or isinstance(kind, bool):
            continue
        place += 1
        while isinstance(kind, list) and place < len(arguments) and arguments[place][:1] != "-":
            place += 1
    return None, list(arguments)
