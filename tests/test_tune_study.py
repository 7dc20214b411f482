"""The study of a search: Optuna's file, read by plain Optuna, and mended after a crash."""

import math

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tune_runs import plan_in

from tune.ladder import planned
from tune.study import STUDY, Study
from tune.trial import DIVERGED, DONE, FAILED, RUNNING, WAITING, Outcome

NAMES = [f"rung-1-{place:02d}" for place in range(4)]


def outcome(status=DONE, loss=1.0):
    values = {"val/loss": loss, "val/top1": 0.25} if status == DONE else {}
    return Outcome(status=status, values=values, step=449, reason="" if values else "why")


def plain(folder):
    """The study as anyone with Optuna opens it."""
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY)))
    return optuna.load_study(study_name="demo-warmup-lr", storage=storage)


def states(folder):
    return [trial.state.name for trial in plain(folder).trials]


def study_in(folder, **settings):
    folder.mkdir(exist_ok=True)
    plan = plan_in(folder, rungs=["4/16", "3/4"], **settings)
    study = Study.open(plan, folder)
    study.plan(planned(plan, []))
    return plan, study


def test_optuna_opens_it_with_one_trial_for_each_run_and_its_facts(tmp_path):
    plan, study = study_in(tmp_path)
    study.plan(planned(plan, study.trials()))  # those that are known are not planned again
    for status in (DONE, DIVERGED, FAILED):
        study.end(study.begin().name, outcome(status))
    assert states(tmp_path) == ["COMPLETE", "PRUNED", "FAIL", "WAITING"]
    first, second = plain(tmp_path).trials[:2]
    assert first.params == plan.preset_sample() and first.value == 1.0
    assert second.params == study.trials()[1].sample and second.value is None
    assert first.distributions["optim.lr"].log
    facts = {"trial": "rung-1-00", "rung": 0, "place": 0, "sample": None, "seed": 0}
    assert facts.items() <= first.user_attrs.items()
    assert first.user_attrs["outcome"]["values"] == {"val/loss": 1.0, "val/top1": 0.25}


def test_a_new_process_finds_running_trials_running_and_ends_them_once(tmp_path):
    plan, study = study_in(tmp_path)
    first, second = study.begin(), study.begin()
    study.end(first.name, outcome())
    again = Study.open(plan, tmp_path)
    assert again.trials() == study.trials()
    assert [trial.status for trial in again.trials()] == [DONE, RUNNING, WAITING, WAITING]
    assert [again.begin().name, again.begin().name, again.begin()] == [*NAMES[2:], None]
    assert again.end(second.name, outcome(loss=2.0))
    assert not again.end(second.name, outcome(loss=3.0))
    assert Study.open(plan, tmp_path).trials()[1].value("val/loss") == 2.0


@pytest.mark.parametrize("cut", [b'{"op_code": 6, "worker', b"\xff\xfe", b'{"cut": 1}'])
def test_a_last_line_that_a_crash_cut_off_is_removed(tmp_path, cut):
    plan, study = study_in(tmp_path)
    study.end(study.begin().name, outcome())
    path, before = tmp_path / STUDY, study.trials()
    whole = path.read_bytes()
    path.write_bytes(whole + cut)
    again = Study.open(plan, tmp_path)
    assert again.trials() == before
    assert path.read_bytes().startswith(whole) and cut not in path.read_bytes()
    again.end(again.begin().name, outcome())
    assert [trial.status for trial in Study.open(plan, tmp_path).trials()[:2]] == [DONE, DONE]


def test_a_failed_trial_is_run_again_under_its_name_and_displaces_none(tmp_path):
    plan, study = study_in(tmp_path)
    study.end(study.begin().name, outcome(FAILED))
    assert study.trials()[0].status == FAILED
    again, begun = Study.open(plan, tmp_path), []
    again.retry()
    while trial := again.begin():
        begun.append(trial)
        assert again.end(trial.name, outcome()), "what began is not what ends"
    facts = {(trial.name, trial.seed, str(trial.sample)) for trial in begun}
    assert facts == {(t.name, t.seed, str(t.sample)) for t in planned(plan, [])}
    assert [(t.name, t.status) for t in again.trials()] == [(name, DONE) for name in NAMES]
    assert states(tmp_path) == ["FAIL"] + ["COMPLETE"] * 4  # the failure stays on record


def test_options_that_are_lists_and_a_preset_outside_of_its_range_are_recorded(tmp_path):
    changes = ["optim.lr=loguniform(0.1,0.2)", "optim.betas=choice([0.9,0.99],[0.9,0.999])"]
    _, study = study_in(tmp_path, set=changes)
    preset, other = study.begin(), study.begin()
    assert preset.sample is None and other.sample["optim.betas"] in ([0.9, 0.99], [0.9, 0.999])
    assert plain(tmp_path).trials[0].params["optim.lr"] == 2e-3


def test_the_best_is_by_the_objective_and_one_that_is_no_number_has_diverged(tmp_path):
    _, study = study_in(tmp_path, objective="val/top1")
    study.end(study.begin().name, outcome())
    assert (plain(tmp_path).direction.name, plain(tmp_path).best_value) == ("MAXIMIZE", 0.25)
    _, study = study_in(tmp_path / "other")
    study.end(study.begin().name, outcome(loss=math.nan))
    assert states(tmp_path / "other")[0] == "PRUNED"
    assert study.trials()[0].outcome.reason == "val/loss is nan"


def test_reading_it_changes_nothing_while_its_driver_writes_a_line(tmp_path):
    plan, _ = study_in(tmp_path)
    with (tmp_path / STUDY).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    before = (tmp_path / STUDY).read_bytes()
    assert len(Study.read(plan, tmp_path).trials()) == 4
    assert (tmp_path / STUDY).read_bytes() == before
    with pytest.raises(FileNotFoundError, match="has not begun"):
        Study.read(plan, tmp_path / "none")
