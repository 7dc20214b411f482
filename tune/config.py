"""What a search is told: how many trials, over what, how long each, and what is done with the best.

Nothing here imports PyTorch or Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.metrics import METRICS
from support.settings import Rule, Settings, setting, suggestion


def objectives() -> dict[str, bool]:
    """What can be searched for, and whether more of it is better: metrics, speed and memory."""
    metrics = {f"val/{name}": metric.higher_is_better for name, metric in METRICS.items()}
    return {**metrics, "images_per_s": True, "memory_gib": False}


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Settings):
    """One search: many short runs of one preset, and the answer."""

    name: str = setting("", common=True)
    """Name of the search: its folder under the preset's runs_dir, and its name in MLflow; empty is
    PRESET-SPACE."""
    space: str = setting("warmup-lr", common=True)
    """Named space, or a JSON file of {dotted setting: range}."""
    set: tuple[str, ...] = setting((), common=True)
    """More of the space, over what it has: optim.lr=loguniform(1e-4,1e-2), randint(1,4),
    choice(0.03,0.1), or a plain value that all trials share."""
    trials: int = setting(32, may_change=True, common=True)
    """Trials of the search; the first one is the preset with its own settings."""
    sampler: Literal["tpe", "random", "grid"] = setting("tpe", common=True)
    """Tree-structured Parzen estimator (Optuna) after a first third at random; all at random
    (scrambled Sobol points); or a grid, as fine as `trials` allows."""
    objective: tuple[str, ...] = setting(("val/top1",), common=True)
    """What the best is best in: val/top1, val/top5, val/loss, images_per_s or memory_gib. With
    several, TPE looks for the settings that no other beats in all of them."""
    stopper: Literal["asha", "median", "none"] = "asha"
    """Stop trials that are behind: asynchronous successive halving, the median rule, or never."""
    reduction: int = 2
    """ASHA: of the trials that reach a rung, one in this many goes on."""
    rungs_from: float = 0.5
    """Share of a trial's own way down from its peak rate before which it is not stopped; nor is it
    before the longest warm-up of the space is over."""
    horizon: float | None = setting(None, common=True)
    """Length of a trial as a share of the real run, with a complete schedule of its own; None:
    0.25, and 1 for finetune."""
    evals: int = 10
    """Evaluations of each trial, equally spaced; the stopper looks at these."""
    decay: Literal["alone", "product"] = "alone"
    """What stays while the rate is searched: weight_decay alone, or lr x weight_decay."""
    global_batch: int | None = None
    """Batch of the trials; None: that of the preset."""
    transfer: Literal["examples", "fraction"] = "examples"
    """How a warm-up is carried from trials to the real run: as the same number of examples, or as
    the same share of the run."""
    lr_rule: Literal["sqrt", "linear", "same"] = "sqrt"
    """How a learning rate is carried to another batch: times the root of their ratio, times the
    ratio, or unchanged. It has no effect on trials with the batch of the real run."""
    seeds: int = setting(3, may_change=True, common=True)
    """Seeds that the best trials, and the preset's own settings, are run with; 1 repeats none."""
    top: int = setting(2, may_change=True)
    """Trials that are repeated, besides the preset's own settings."""
    workers: int = setting(1, common=True)
    """Ray Train workers of each trial. Global batches are the same with any number, and trials side
    by side wait for each other less than workers do."""
    concurrent: int | None = setting(None, may_change=True, common=True)
    """Trials at the same time; None: as many as the cluster holds with their data."""
    seed: int = 0
    """Seed of the samples, and of the first run of each."""

    def rules(self) -> Iterator[Rule]:
        """Counts that are positive, shares in range, objectives that there are."""
        for name, least in (
            *(("trials", 1), ("reduction", 2), ("evals", 2), ("seeds", 1), ("top", 1)),
            *(("workers", 1), ("concurrent", 1), ("global_batch", 1)),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                yield name, f"must be at least {least}"
        for name, highest in (("horizon", 1.0), ("rungs_from", 0.95)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= highest:
                yield name, f"must be above 0 and at most {highest:g}"
        if not self.objective:
            yield "objective", f"must name at least one of {', '.join(objectives())}"
        for name in self.objective:
            if name not in objectives():
                yield (
                    "objective",
                    f"has {name!r}, which is unknown; {suggestion(name, objectives())}",
                )
        if len(self.objective) > 1 and self.stopper != "none":
            yield (
                "stopper",
                f"compares trials in one objective, and there are {len(self.objective)}; set "
                "--stopper none",
            )
        if "/" in self.name or self.name.startswith("."):
            yield "name", "must be a plain folder name"
