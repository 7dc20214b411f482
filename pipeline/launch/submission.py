"""A command of this project as a job: its entrypoint, its name, its settings, and its code.

    Submission.of(["train", "demo", ...], run="demo") -> python -m pipeline train demo ...

The code is a copy of the packages as they are here, and of small JSON files that the command names
(a preset file, a search space).
"""

import contextlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from support import code
from support.redact import NAMED, redact

# packages with a command line of their own; every other command is one of `python -m pipeline`
PROGRAMS = ("shards", "tune")
# a JSON file that a command names goes with it up to this size
MAX_FILE_BYTES = 1 << 20
TRACKING = "MLFLOW_TRACKING_URI"
# where a tracking server of this machine alone is
LOCAL_SCHEMES, LOCAL_HOSTS = ("sqlite", "file"), ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One job that is to be submitted."""

    words: tuple[str, ...]
    """The command as it is typed after `python -m pipeline`, `shards ...` or `tune ...`."""
    name: str
    """Id of the job."""
    env: Mapping[str, str]
    """Environment variables of the job, which all who see the dashboard can read."""

    @classmethod
    def of(cls, words: Sequence[str], subject: str, env: Sequence[str]) -> "Submission":
        """A job about a subject, such as the name of a run, with `NAME=VALUE` variables.

        Raises ValueError if the command or a variable holds a secret, which Ray would show.
        """
        if redact(shlex.join(words)) != shlex.join(words):
            raise ValueError(
                f"the command holds a secret, and Ray shows it to all who see the dashboard: "
                f"{redact(shlex.join(words))}. Give the nodes rights of their own"
            )
        names = [Path(word).name for word in words if travels(word)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two files of the command have the same name: {twice[0]}")
        label = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{words[0]}-{subject}")
        name = f"{label}-{time.strftime('%m%d-%H%M%S')}"
        return cls(words=tuple(words), name=name, env=variables(env))

    @property
    def text(self) -> str:
        """The command, without secrets."""
        return redact(shlex.join(self.words))

    @property
    def entrypoint(self) -> str:
        """The shell command of the job, in the folder with its code."""
        program = self.words[0] if self.words[0] in PROGRAMS else "pipeline"
        words = [Path(word).name if travels(word) else word for word in self.words]
        # without a shell in between, the job gets the signal to stop once
        return f"exec python -m {program} {shlex.join(words[program in words[:1] :])}"

    @contextlib.contextmanager
    def code(self) -> Iterator[Path]:
        """A folder with what the job needs of this machine, for the block."""
        with code.copied() as folder:
            for word in filter(travels, self.words):
                shutil.copy(word, folder)
            yield folder


def travels(word: str) -> bool:
    """Whether a word of a command is a small JSON file of this machine."""
    path = Path(word)
    if not word.endswith(".json") or not path.is_file():
        return False
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{word} is too large to be sent with a job; put it where nodes see it")
    return True


def variables(settings: Sequence[str]) -> dict[str, str]:
    """Environment variables of a job from `NAME=VALUE`; ValueError if one would show a secret."""
    env = {TRACKING: os.environ[TRACKING]} if os.environ.get(TRACKING) else {}
    for setting in settings:
        name, mark, value = setting.partition("=")
        if not mark or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"env ({redact(setting)}) must be NAME=VALUE")
        env[name] = value
    server = urlsplit(env.get(TRACKING, ""))
    if server.scheme in LOCAL_SCHEMES or server.hostname in LOCAL_HOSTS:
        raise ValueError(
            f"{TRACKING} ({redact(env[TRACKING])}) is on this machine, where the cluster does not "
            f"find it: unset it, and the cluster gets a server of its own"
        )
    for name, value in env.items():
        if NAMED.search(name) or redact(value) != value:
            raise ValueError(
                f"the environment variable {name} holds a secret, and Ray shows the variables of a "
                f"job to all who see its dashboard: put it on the nodes (the role of the machine, "
                f"~/.aws/credentials, ~/.mlflow/credentials)"
            )
    return env
