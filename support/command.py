"""Command lines: one dispatcher for `python -m pipeline`, `python -m shards` and `python -m tune`.

A command is a dataclass: its docstring is its help, its fields are its arguments, and calling it
runs it. Its `Settings` become arguments with dotted names and are checked by their own rules.

Exit status: 0 success, 1 failure, 2 invalid input, 130 interrupted. All output is redacted.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import io
import itertools
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, get_type_hints

import tyro

from support import code
from support.redact import excepthook, redact
from support.settings import Settings, field_docs, field_kind, nearest, suggestion

DISTRIBUTION = "vit-pretraining"
HELP_ALL = "--help-all"
EVERY_SETTING = f"{HELP_ALL} shows every setting."


class Command(Protocol):
    """A command that a command line can run.

    If its defaults depend on an argument, such as the name of a preset, it has a class method
    `prepare(arguments) -> (defaults, the arguments that they depend on, the other arguments)`.
    An attribute `description` replaces its docstring in the help. An attribute `interrupted`
    says what to do after Ctrl-C, if it is not that the same command resumes.
    """

    def __call__(self) -> int:
        """Run the command and return its exit status."""


def dispatch(
    prog: str, commands: Mapping[str, type[Command]], arguments: Sequence[str] | None
) -> int:
    """Run the command that the arguments (default: sys.argv) name; return its exit status."""
    sys.excepthook = excepthook
    arguments = sys.argv[1:] if arguments is None else arguments
    name = named(commands, arguments)
    if not name:
        return overview(prog, commands, arguments)
    command = None
    try:
        command = parse(f"{prog} {name}", commands[name], arguments[name.count(" ") + 1 :])
        return command()
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        remedy = getattr(commands[name], "interrupted", "the same command resumes")
        sys.stderr.write(f"interrupted; {remedy}\n")
        return 130
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
        if getattr(command, "verbose", False):
            sys.stderr.write(redact("".join(traceback.format_exception(error))))
        sys.stderr.write(f"error: {redact(str(error))}\n")
        return 2 if isinstance(error, ValueError | FileNotFoundError) else 1


def named(commands: Mapping[str, type[Command]], arguments: Sequence[str]) -> str | None:
    """The command that the arguments begin with; None if they begin with none."""
    for name in commands:
        if list(arguments[: name.count(" ") + 1]) == name.split():
            return name
    return None


def unknown(commands: Mapping[str, type[Command]], arguments: Sequence[str]) -> str:
    """What is wrong with arguments that begin with no command."""
    words = [word for word in arguments[:2] if not word.startswith("-")]
    first = " ".join([*words, *arguments, ""][:1])
    two = nearest(" ".join(words), commands)
    return f"unknown command {redact(first)!r}; {suggestion(two or first, commands)}"


def overview(prog: str, commands: Mapping[str, type[Command]], arguments: Sequence[str]) -> int:
    """Write the help page, the version, or an error that suggests the nearest command."""
    first = arguments[0] if arguments else "--help"
    if first == "--version":
        commit = code.commit()
        version = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
        sys.stdout.write(version + (f", commit {code.shortened(commit)}" if commit else "") + "\n")
        return 0
    if first in ("-h", "--help", HELP_ALL):
        width = max(map(len, commands))
        sys.stdout.write(f"usage: {prog} COMMAND ...\n\n")
        for name, command in commands.items():
            first = inspect.getdoc(command).partition("\n\n")[0]
            summary = " ".join(first.partition(". ")[0].split())
            sys.stdout.write(f"  {name:<{width}}  {summary}\n")
        sys.stdout.write(
            f"\n{prog} COMMAND --help shows a command's arguments; --version shows the version.\n"
        )
        return 0 if arguments else 2
    sys.stderr.write(f"error: {unknown(commands, arguments)}\n")
    return 2


def parse(prog: str, kind: type[Command], arguments: Sequence[str]) -> Command:
    """Parse the arguments of a command; SystemExit after the help or an error message of tyro."""
    words = ["--help" if word == HELP_ALL else word for word in arguments]
    default = None
    if hasattr(kind, "prepare"):
        default, subject, words = kind.prepare(words)
        prog = " ".join([prog, *subject])
    # tyro rejects arguments that the help omits, so only the help itself is brief
    brief = HELP_ALL not in arguments and not {"-h", "--help"}.isdisjoint(words)
    parsed_type, hides = argument_type(kind, default, brief=brief)
    description = getattr(default, "description", None) or inspect.getdoc(kind)
    read = functools.partial(
        tyro.cli,
        parsed_type,
        prog=redact(prog),
        description=f"{description}\n\n{EVERY_SETTING}" if hides else description,
        config=(tyro.conf.PositionalMetavarFromFieldName, tyro.conf.SuppressFixed),
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed = read(args=words)
    except SystemExit as stop:
        if stop.code:  # redact the arguments first: tyro's message wraps the ones that it quotes
            read(args=[redact(word) for word in words])
        raise
    values = {}
    for item in dataclasses.fields(kind):
        value, preset = getattr(parsed, item.name), default_of(item, default)
        is_settings = isinstance(preset, Settings)
        values[item.name] = preset.replace(value.flat()) if is_settings else value
    return kind(**values)


class Unchecked(Settings):
    """Settings as tyro has parsed them, to be checked with the settings that they replace."""

    def __post_init__(self) -> None:
        """Accept all values."""


def argument_type(
    kind: type, default: object, *, brief: bool, nested: bool = False
) -> tuple[type, bool]:
    """Create a dataclass that tyro can parse in place of `kind`; also whether its help is partial.

    Its fields have the docs of `kind` in one line and the defaults of `default`. If `brief`, it
    shows only settings that are marked as common.
    """
    hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
    fields: list[tuple] = []
    hides = False
    for item in dataclasses.fields(kind):
        value, hint = default_of(item, default), hints[item.name]
        if isinstance(value, Settings):
            inner, inner_hides = argument_type(type(value), value, brief=brief, nested=True)
            hides |= inner_hides
            hint = inner
            if item.name == "config" and not nested:  # its settings have no prefix
                hint = Annotated[inner, tyro.conf.arg(name="")]
            fields.append((item.name, hint, dataclasses.field(default_factory=inner)))
            continue
        hint = Annotated[field_kind(item, hint), tyro.conf.arg(help=docs.get(item.name, ""))]
        if issubclass(kind, Settings) and not item.metadata.get("common") and brief:
            hint, hides = tyro.conf.Suppress[hint], True
        fields.append((item.name, hint, dataclasses.field(default=value)))
    options = {"bases": (Unchecked,), "frozen": True, "kw_only": True}
    return dataclasses.make_dataclass(kind.__name__, fields, **options), hides


def default_of(item: dataclasses.Field, default: object) -> Any:  # noqa: ANN401
    """Default of a field: of the instance `default` if it is given, otherwise of the class."""
    if default is not None:
        return getattr(default, item.name)
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option such as --init-from; None if it is not given."""
    for word, after in itertools.zip_longest(arguments, arguments[1:]):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            return value if equals else after
    return None


def first_value(
    arguments: Sequence[str], settings: Settings, flags: Sequence[str]
) -> tuple[str | None, list[str]]:
    """Split off the first argument that is neither an option nor the value of one.

    The options are the settings and the flags, which take no value. Returns the argument, or None
    if there is none, and the other arguments.
    """
    options = settings.flat() | dict.fromkeys((*flags, "h", "help"), True)
    place = 0
    while place < len(arguments):
        word = arguments[place]
        if not word.startswith("-"):
            return word, [*arguments[:place], *arguments[place + 1 :]]
        name = word.lstrip("-").replace("-", "_")
        default = options.get(name, options.get(name.removeprefix("no_")))
        place += 1
        if "=" in word or isinstance(default, bool):
            continue
        place += 1
        while isinstance(default, list) and place < len(arguments) and arguments[place][:1] != "-":
            place += 1
    return None, list(arguments)
