"""Ray Tune as the search uses it: one experiment, whose trials the driver of the search chooses.

    Tuner -> Proposer -> driver: what is next    Tuner -> TrialCallback -> driver: how it ended

The driver decides by its study, so the experiment is a copy: Ray Tune saves it now and then, makes
its parts anew when it restores it, and lacks what happened since it saved it last.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping

import ray.tune
from ray.tune import CheckpointConfig, ExperimentAnalysis, FailureConfig, RunConfig, TuneConfig
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from pipeline.cluster.autoscaler import HEAD
from support.redact import NAMED
from tune.actor import Fit, TrialActor
from tune.plan import Plan
from tune.trial import FAILED, Outcome

log = logging.getLogger(__name__)

# Ray Tune would send the keys of AWS in the environment of its actors, which logs and the dashboard
# show; the nodes have keys of their own
ENV_VARS_TO_PROPAGATE.difference_update(set(filter(NAMED.search, ENV_VARS_TO_PROPAGATE)))

TUNE = "tune"
# memory of the process that drives a trial, mostly its imports
TRIAL_BYTES = 512 * 2**20
# times that the process of a trial may die and be started again
MAX_DEATHS = 2
# the `tune.search.Search` that this process runs, for what Ray Tune pickles and makes anew
DRIVERS = []


def make_tuner(
    plan: Plan, ended: Mapping[str, Outcome], fit: Fit
) -> tuple[ray.tune.Tuner, dict[str, TuneTrial]]:
    """The experiment of a search, new or of an earlier start, and its trials by name."""
    actor = ray.tune.with_resources(
        ray.tune.with_parameters(TrialActor, plan=plan, ended=ended, fit=fit),
        # the workers belong to Ray Train; this process only follows them and takes no core. It is
        # on the head, which is no spot machine, and alone reaches a cluster's MLflow server
        {"memory": TRIAL_BYTES, HEAD: 0.001},
    )
    path, config = plan.dir / TUNE, plan.config
    if ray.tune.Tuner.can_restore(path):
        try:
            trials = {trial.config["trial"]: trial for trial in ExperimentAnalysis(path).trials}
            return ray.tune.Tuner.restore(str(path), actor, resume_unfinished=True), trials
        except Exception as error:  # noqa: BLE001 - a full disk, another version: it is a copy
            aside = path.with_name(f"{TUNE}-{time.time_ns()}")
            log.warning("tune      its experiment is damaged and is now in %s: %s", aside, error)
            path.rename(aside)
    objective = {"metric": config.objective, "mode": "min" if config.sign > 0 else "max"}
    tuner = ray.tune.Tuner(
        actor,
        tune_config=TuneConfig(
            **objective,
            search_alg=Proposals(Proposer(**objective)),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['trial']}-{trial.trial_id}",
        ),
        run_config=RunConfig(
            name=TUNE,
            storage_path=str(plan.dir),
            failure_config=FailureConfig(max_failures=MAX_DEATHS),
            # the runs write their own
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            callbacks=[JsonLoggerCallback(), TrialCallback()],
            verbose=0,
        ),
    )
    return tuner, {}


class Proposer(Searcher):
    """Asks the driver of the search for the next trial."""

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:  # noqa: ARG002
        """The next trial; None while none can start, Searcher.FINISHED after the last."""
        return DRIVERS[-1].propose()

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """Do nothing, since `TrialCallback` tells the driver, whose state is in the study."""

    save_to_dir = restore_from_dir = on_trial_complete


class Proposals(SearchGenerator):
    """Ray Tune's wrapper of the proposer; an experiment that had ended goes on with new trials."""

    def set_state(self, state: dict[str, object]) -> None:
        """Take up the state of an earlier start."""
        super().set_state({**state, "finished": False})


class TrialCallback(ray.tune.Callback):
    """Tells the driver of the search how trials end."""

    def on_trial_complete(self, *_: object, trial: TuneTrial, **__: object) -> None:
        """Take the result of a trial."""
        names = {field.name for field in dataclasses.fields(Outcome)}
        outcome = Outcome(**{k: v for k, v in trial.last_result.items() if k in names})
        DRIVERS[-1].end(trial.config["trial"], outcome)

    def on_trial_error(self, *_: object, trial: TuneTrial, **__: object) -> None:
        """Take the end of a process that died while it started, or again and again."""
        lines = str(trial.get_pickled_error() or "its process died").strip().splitlines()
        outcome = Outcome(status=FAILED, reason=lines[-1], ended=time.time())
        DRIVERS[-1].end(trial.config["trial"], outcome, died=True)
