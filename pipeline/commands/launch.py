"""The commands for clusters: `python -m pipeline launch CLUSTER -- COMMAND ...`, `job ...`."""

import contextlib
import importlib
import logging
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tyro

from pipeline.commands.jobs import opened, place, reached
from pipeline.launch.submission import PROGRAMS
from pipeline.settings.config import TrainConfig
from support import command
from support.console import open_console

if TYPE_CHECKING:
    from pipeline.launch.cluster_file import ClusterFile
    from pipeline.launch.head import Head
    from pipeline.launch.submission import Submission

log = logging.getLogger(__name__)

EXAMPLE = "python -m pipeline launch cluster.yaml -- train in21k-s16-30ep --runs-dir s3://..."
# fields of commands that name places which the cluster must see
PLACES = ("sources", "out", "location", "checkpoint", "run", "file", "search")
# commands that make sense on a cluster
ALLOWED = {
    "pipeline": ("train", "evaluate", "probe", "rollback", "report", "export", "track sync"),
    "shards": ("build", "index", "verify"),
    "tune": ("search", "report"),
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Run a command on a cluster: start it, submit the command as a job, follow its output.

    The command comes after --: train, evaluate, ..., `shards build` or `tune search`. Ctrl-C leaves
    the job running. The same command again follows a job that runs, or goes on with its run.
    """

    cluster: tyro.conf.Positional[str | None] = None
    """Cluster file, such as cluster.yaml; it may be omitted with --address."""
    command: tyro.conf.Fixed[tuple[str, ...]] = ()
    address: str | None = None
    """Dashboard of a cluster that runs, such as http://10.0.0.1:8265: nothing is started."""
    attach: str | None = None
    """Follow the job of this id, which was launched before; no command."""
    down: bool = False
    """Take the cluster down when the job has ended, however it has ended; without a job, now. This
    command does it: after Ctrl-C use it again with --attach."""
    dry_run: bool = False
    """Show what would be done and what it would cost, and start nothing."""
    env: tuple[str, ...] = ()
    """Environment variables of the job as NAME=VALUE; no secrets, because Ray shows them."""

    @classmethod
    def prepare(cls, arguments: Sequence[str]) -> tuple[Self, Sequence[str], Sequence[str]]:
        """Take the command from after the dashes."""
        arguments = list(arguments)
        place = arguments.index("--") if "--" in arguments else len(arguments)
        return cls(command=tuple(arguments[place + 1 :])), [], arguments[:place]

    def __call__(self) -> int:
        """Launch; returns the exit status of the command."""
        open_console(verbose=False)
        # the end of a terminal, or of this process, is that of the display and not of the job
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        self._check()
        cluster = opened(self.cluster, self.address)
        from pipeline.launch import launch
        from pipeline.launch.mlflow_job import data_folder
        from pipeline.launch.submission import TRACKING, Submission

        if self.attach:
            with staying(cluster), reached(cluster, self.address) as head:
                return self._follow(cluster, head, self.attach, earlier=launch.EARLIER)
        if not self.command:
            with reached(cluster, None) as head:
                launch.take_down(cluster, head)
            return 0
        parsed = parse(self.command)
        check_places(parsed)
        config = getattr(parsed, "config", None)
        config = config if isinstance(config, TrainConfig) else None
        subject = config.name if config else "-".join(self.command[1:2]) or "job"
        submission = Submission.of(self.command, subject, self.env)
        self._describe(cluster, submission, config)
        runs = runs_dir(parsed)
        if self.dry_run:
            if cluster:
                log.info("it would    start the cluster, or bring it up to date")
            if runs and TRACKING not in submission.env:
                log.info("            start MLflow there, with its data in %s", data_folder(runs))
            log.info("            submit %s", submission.entrypoint)
            return 0
        with staying(cluster):
            if cluster:
                log.info("up          the cluster is started, or brought up to date")
                launch.bring_up(cluster)
            with reached(cluster, self.address) as head:
                name = launch.submit(head, submission, runs)
                return self._follow(cluster, head, name)

    def _check(self) -> None:
        """Raise ValueError for options that do not fit."""
        if not self.cluster and not self.address:
            raise ValueError(f"launch needs a CLUSTER file, or --address: {EXAMPLE}")
        if self.cluster and self.address:
            raise ValueError("give the CLUSTER file or --address, not both")
        if self.attach and self.command:
            raise ValueError("--attach follows a job that runs already: give no command with it")
        if not self.attach and not self.command and not self.down:
            raise ValueError(f"launch needs a command after --: {EXAMPLE}")
        if self.down and not self.cluster:
            raise ValueError("--down needs the CLUSTER file of a cluster that was launched with it")

    def _describe(
        self, cluster: "ClusterFile | None", submission: "Submission", config: TrainConfig | None
    ) -> None:
        """Say what will run, where, and what it will cost."""
        log.info("command     %s", submission.text)
        if cluster:
            from pipeline.launch.cost import estimate

            log.info("cluster     %s of %s", cluster.name, cluster.path)
            log.info("\n%s\n", estimate(cluster, config))
        else:
            log.info("cluster     at %s", self.address)

    def _follow(
        self, cluster: "ClusterFile | None", head: "Head", name: str, earlier: int | None = None
    ) -> int:
        """Follow a job to its end, and end the cluster with it if that was asked for."""
        from pipeline.launch import launch
        from pipeline.launch.head import DASHBOARD

        where = place(self.cluster, self.address)
        log.info("job         %s", name)
        log.info("dashboard   %s", head.address(DASHBOARD))
        try:
            status = launch.follow(head, name, earlier=earlier)
        except KeyboardInterrupt:
            log.info(
                "\nThe job goes on. To follow it again, or to stop it:\n"
                "python -m pipeline launch %s --attach %s%s\npython -m pipeline job stop %s %s",
                *(where, name, " --down" if self.down else "", where, name),
            )
            return 130
        if self.down:
            launch.take_down(cluster, head)
        elif cluster:
            log.info("the cluster stays up; python -m pipeline launch %s --down ends it", where)
        return status


@contextlib.contextmanager
def staying(cluster: "ClusterFile | None") -> Iterator[None]:
    """Say, if the block fails, that the machines of a cluster stay."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if cluster:
            log.warning(
                "machines that run stay, and cost; to end them: "
                "python -m pipeline launch %s --down",
                cluster.path,
            )
        raise


def parse(words: Sequence[str]) -> command.Command:
    """The command as the cluster will read it; ValueError or SystemExit if it is not valid."""
    package = words[0] if words[0] in PROGRAMS else "pipeline"
    # by name, as `python -m` does it: nothing here depends on these packages
    main = importlib.import_module(f"{package}.__main__")
    commands = {name: main.COMMANDS[name] for name in ALLOWED[package]}
    arguments = words[package in words[:1] :]
    name = command.named(commands, arguments)
    if name is None:
        raise ValueError(command.unknown(commands, arguments))
    kind = getattr(main, "ELSEWHERE", {}).get(commands[name], commands[name])
    rest = arguments[name.count(" ") + 1 :]
    parsed = command.parse(f"python -m {package} {name}", kind, rest)
    if getattr(parsed, "plan", False) or getattr(parsed, "dry_run", False):
        raise ValueError("--plan and --dry-run need no cluster: give the command without launch")
    return parsed


def check_places(parsed: command.Command) -> None:
    """Raise ValueError if a command names a place that is relative to a folder of this machine."""
    for value in vars(parsed).values():
        if hasattr(value, "absolute"):
            there = value.absolute().flat()
            for name, here in value.flat().items():
                if here != there[name]:
                    raise ValueError(refusal(name, here))
    for name in PLACES:
        value = getattr(parsed, name, ())
        for path in [value] if isinstance(value, str) else value:
            if "://" not in path and not Path(path).is_absolute():
                raise ValueError(refusal(name, path))


def refusal(name: str, path: object) -> str:
    """What is wrong with a relative path."""
    return (
        f"{name} ({path}) is relative to this machine, and the job runs on the cluster: "
        f"give an s3:// or gs:// URI, or the absolute path of a disk that every node mounts"
    )


def runs_dir(parsed: command.Command) -> str | None:
    """Where the runs of a command are, beside which MLflow keeps its data; None if it has none."""
    for name in ("config", "base"):
        config = getattr(parsed, name, None)
        if isinstance(config, TrainConfig):
            return config.runs_dir
    location = getattr(parsed, "checkpoint", "")
    if "://" not in location:
        return None
    from pipeline.checkpoint.run_folder import run_of

    # an evaluation of a run, or of a checkpoint of it
    place, mark, options = run_of(location).place.partition("?")
    return place.rpartition("/")[0] + mark + options
