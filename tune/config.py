"""Settings of a search: number and length of trials, space, objective, repeats of the best.

Nothing here imports PyTorch or Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.metrics import METRICS
from support.settings import Rule, Settings, below, setting, suggestion


def objectives() -> dict[str, bool]:
    """The possible objectives, and whether more is better: metrics, speed and memory."""
    metrics = {f"val/{name}": metric.higher_is_better for name, metric in METRICS.items()}
    return {**metrics, "images_per_s": True, "memory_gib": False}


def sign_of(objective: str) -> int:
    """1 if more of an objective is better, otherwise -1."""
    return 1 if objectives()[objective] else -1


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """One search: many short runs of one preset."""

    name: str = setting("", common=True)
    """Name of the search in MLflow, and of its folder under runs_dir; empty: PRESET-SPACE."""
    space: str = setting("warmup-lr", common=True)
    """Named space, or a JSON file of {dotted setting: range}."""
    set: tuple[str, ...] = setting((), common=True)
    """Changes of the space: optim.lr=loguniform(1e-4,1e-2), randint(1,4), choice(0.03,0.1), or a
    plain value that all trials share."""
    trials: int = setting(32, may_change=True, common=True)
    """Number of trials; the first one is the baseline, the preset with its own settings."""
    sampler: Literal["tpe", "random", "grid"] = setting("tpe", common=True)
    """Tree-structured Parzen estimator (Optuna) after a first third at random; all at random (an
    evenly spread sequence); or a grid, as fine as `trials` allows."""
    objective: tuple[str, ...] = setting(("val/top1",), common=True)
    """Metrics to optimize: val/top1, val/top5, val/loss, images_per_s or memory_gib. Settings are
    ranked by the first one; with several, TPE searches for the Pareto front."""
    stopper: Literal["asha", "median", "none"] = "asha"
    """Stop trials that are behind: asynchronous successive halving, the median rule, or never."""
    reduction: int = 2
    """ASHA: of the trials that reach a rung, one in this many continues."""
    rungs_from: float = 0.5
    """Share of a trial's decay from its peak rate before which it is not stopped; nor is it stopped
    before the longest warm-up of the space is over."""
    horizon: float | None = setting(None, common=True)
    """Length of a trial as a share of the real run; its schedule is complete. None: 0.25, and 1 for
    the space finetune."""
    evals: int = 10
    """Evaluations of each trial, equally spaced; after each one the stopper decides."""
    decay: Literal["alone", "product"] = "alone"
    """What is constant while the rate is searched: weight_decay alone, or lr x weight_decay."""
    global_batch: int | None = None
    """Global batch of the trials; None: that of the preset."""
    transfer: Literal["examples", "fraction"] = "examples"
    """How a warm-up is carried from trials to the real run: as the same number of examples, or as
    the same share of the run."""
    lr_rule: Literal["sqrt", "linear", "same"] = "sqrt"
    """How a learning rate is carried to another batch: times the square root of their ratio, times
    the ratio, or unchanged. No effect on trials with the batch of the real run."""
    seeds: int = setting(3, may_change=True, common=True)
    """Seeds that the best trials and the baseline are run with; 1 repeats none."""
    top: int = setting(2, may_change=True)
    """Number of best trials that are repeated, in addition to the baseline."""
    workers: int = setting(1, common=True)
    """Ray Train workers of each trial; they do not change the global batch. Concurrent trials wait
    for each other less than workers do."""
    concurrent: int | None = setting(None, may_change=True, common=True)
    """Trials that run at the same time; None: as many as the cluster can run and feed with data."""
    seed: int = 0
    """Seed of the sampler, and of the first run of each trial."""

    def rules(self) -> Iterator[Rule]:
        """Counts must be large enough, shares in range, objectives known."""
        yield from below(self, 2, "reduction", "evals")
        yield from below(self, 1, "trials", "seeds", "top", "workers", "concurrent", "global_batch")
        for name, highest in (("horizon", 1.0), ("rungs_from", 0.95)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= highest:
                yield name, f"must be above 0 and at most {highest:g}"
        if not self.objective:
            yield "objective", f"must name at least one of {', '.join(objectives())}"
        for name in self.objective:
            if name not in objectives():
                text = f"has {name!r}, which is unknown; {suggestion(name, objectives())}"
                yield "objective", text
        if len(self.objective) > 1 and self.stopper != "none":
            count = len(self.objective)
            text = f"compares trials in one objective, and there are {count}; set --stopper none"
            yield "stopper", text
        if "/" in self.name or self.name.startswith("."):
            yield "name", "must be a plain folder name"
