"""The runs below a folder or a prefix, newest first; the trials of a search are one row.

RUNS_DIR -> RunSummary of each folder, read side by side -> table
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pyarrow import fs as pafs

from pipeline.checkpoint.local import CONFIG
from pipeline.checkpoint.run_folder import CHECKPOINTS, SEARCH
from pipeline.evaluation.metrics import METRICS
from pipeline.report.run_data import preset_text
from pipeline.report.run_files import Folder
from pipeline.report.run_state import FINISHED, RUNNING, STOPPED, UNREADABLE, state
from pipeline.report.run_summary import BROKEN, RunSummary, run_summary
from pipeline.tracking.journal import EVENTS
from shards.dataset import store
from support.console import duration
from support.lease import LEASE

# folders that are read at the same time, and trials of each search: requests to a store are waiting
THREADS, TRIAL_THREADS = 32, 8
TRIALS = "trials"
TOP1 = f"{METRICS['top1'].title}, 95 %"
HEAD = ("run", "preset", "state", "step", "done", "images/s", TOP1, "on")
HEAD += ("hours", "worker-h", "cost", "last change")
# columns of words
WORDS = (0, 1, 2, 7)


def list_runs(runs_dir: str) -> list[RunSummary]:
    """All runs of a folder or prefix, the one that changed last first.

    Raises FileNotFoundError if there is no such folder, ValueError if it is that of one run.
    """
    system, root = store.locate(runs_dir)
    where = store.absolute(runs_dir)
    entries = listed(system, root)
    if not entries and not store.has_folder(system, root):
        raise FileNotFoundError(f"{where} does not exist; give the folder or prefix of all runs")
    if CONFIG in {entry.base_name for entry in entries}:
        raise ValueError(f"{where} is one run; give the folder or prefix that holds it")
    with ThreadPoolExecutor(THREADS) as pool:
        found = filter(None, pool.map(partial(summary, system), folders(entries)))
        return sorted(found, key=lambda run: (-run.changed_at, run.name))


def listed(system: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """Entries of a folder; empty if it does not exist."""
    return store.retried(system, path, partial(store.listing, system, path))


def folders(entries: Sequence[pafs.FileInfo]) -> list[str]:
    """Paths of the folders among the entries of one, without hidden ones."""
    is_folder = pafs.FileType.Directory
    return [e.path for e in entries if e.type == is_folder and not e.base_name.startswith(".")]


def summary(system: pafs.FileSystem, path: str) -> RunSummary | None:
    """The run or search in a folder; None if it holds neither. A broken one has a `problem`."""
    name, changed_at = path.rpartition("/")[2], 0.0
    try:
        folder = Folder(system, path)
        changed_at = folder.changed_at
        if SEARCH in folder.infos:
            return search_summary(system, folder)
        names = folder.infos.keys()
        begun = {CHECKPOINTS, EVENTS} & names or {CONFIG, LEASE} <= names
        return run_summary(folder) if begun or folder.has_driver() else None
    except BROKEN as error:
        about = {"name": name, "changed_at": changed_at, "problem": described(error)}
        return RunSummary(state=UNREADABLE, **about)


def described(error: Exception) -> str:
    """An error of a folder in one line."""
    text = " ".join(str(error).split())
    return f"a line or file lacks {text}" if isinstance(error, KeyError) else text


def search_summary(system: pafs.FileSystem, folder: Folder) -> RunSummary:
    """Read a search, with what its trials have used."""
    plan, events = folder.json(SEARCH), folder.lines(EVENTS)
    rungs = [int(rung.partition("/")[0]) for rung in plan["rungs"]]
    planned = sum(rungs) + 2 * plan["search"]["seeds"]  # with the pairs that confirm the answer
    ended = state(events, is_done=False, has_driver=folder.has_driver())
    with ThreadPoolExecutor(TRIAL_THREADS) as pool:
        below = folders(listed(system, f"{folder.path}/{TRIALS}"))
        trials = list(filter(None, pool.map(partial(summary, system), below)))
    running = [trial for trial in trials if trial.state == RUNNING]
    problems = [f"{TRIALS}/{trial.name}: {trial.problem}" for trial in trials if trial.problem]
    latest = [event["time"] for event in events[-1:]] + [trial.changed_at for trial in trials]
    return RunSummary(
        name=folder.name,
        state=FINISHED if ended == STOPPED else ended,
        preset=plan["preset"],
        trials=(len(trials) - len(running), planned),
        images_per_s=sum(trial.images_per_s or 0.0 for trial in running) or None,
        worker_hours=sum(trial.worker_hours for trial in trials),
        price_per_hour=plan["run"].get("record.price_per_hour"),
        changed_at=max(latest, default=folder.changed_at),
        problem="; ".join(problems),
    )


def rows(runs: Sequence[RunSummary], now: float, price_per_hour: float | None) -> list[list[str]]:
    """The table, with its head; `now` in seconds since the epoch."""
    return [list(HEAD), *(row(run, now, run.cost(price_per_hour)) for run in runs)]


def row(run: RunSummary, now: float, cost: float | None) -> list[str]:
    """The cells of a run; "-" where something is not known."""
    done, total = run.trials or (run.step, run.total_steps)
    is_known = run.state != UNREADABLE
    place = f"{done:,}" + (f"/{total:,}" if total else "") if is_known else "-"
    return [
        run.name,
        preset_text(run.preset, run.changed) or "-",
        run.state,
        place + (" trials" if run.trials else ""),
        f"{done / total:.0%}" if total else "-",
        f"{run.images_per_s:,.0f}" if run.images_per_s else "-",
        top1_text(run),
        run.figure or "-",
        "-" if run.hours is None else f"{run.hours:,.2f}",
        f"{run.worker_hours:,.2f}" if is_known else "-",
        "-" if cost is None else f"{cost:,.2f}",
        f"{duration(max(0.0, now - run.changed_at))} ago" if run.changed_at else "-",
    ]


def top1_text(run: RunSummary) -> str:
    """The top-1 of a run with half its 95 % interval, if that is known."""
    if run.top1 is None:
        return "-"
    return f"{run.top1:.4f}" + (f" +-{run.half_width:.4f}" if run.half_width is not None else "")
