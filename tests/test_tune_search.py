"""A search from its command to its answer: on Ray, with runs that cost nothing."""

import json
import shutil
import subprocess
import sys

import optuna
import pytest
from ray import cloudpickle
from tune_runs import fit, loss_of, optimum, plan_in

from pipeline.run import prepared
from pipeline.settings.presets import find_preset, read_preset
from tune.__main__ import main
from tune.study import STUDY, Study
from tune.trial import DIVERGED, DONE, FAILED
from vit.model import ViT
from vit.weights import save_weights

# the processes of the trials cannot import a test
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# rates at which runs diverge are in the space
WIDE = {"set": ["optim.lr=loguniform(3e-4,0.1)"]}


@pytest.fixture(scope="module")
def searched(tmp_path_factory, ray_cluster):
    """A search as shipped, over a space that reaches into rates at which runs diverge."""
    from tune.search import run_search

    plan = plan_in(tmp_path_factory.mktemp("search"), **WIDE)
    return plan, run_search(plan, fit=fit)


@pytest.mark.ray
def test_the_known_optimum_is_found_and_carried_to_the_real_run(searched):
    _, answer = searched
    assert not answer.keeps
    for horizon, sample in ((0.5, answer.found), (1.0, answer.carried)):
        rate, warmup = optimum(horizon)
        assert sample["optim.lr"] == pytest.approx(rate, rel=0.1)
        assert sample["optim.warmup"] == pytest.approx(warmup, rel=0.3)


@pytest.mark.ray
def test_the_gain_is_the_true_one(searched):
    plan, answer = searched
    preset = plan.preset_sample()
    true = loss_of(*preset.values(), 0.5, 0) - loss_of(*answer.found.values(), 0.5, 0)
    low, high = answer.gain.interval
    assert low < true + 0.002
    assert high > true - 0.002


@pytest.mark.ray
def test_divergence_is_a_result_and_no_error(searched):
    plan, answer = searched
    diverged = [trial for trial in answer.trials if trial.status == DIVERGED]
    assert diverged and not any(trial.status == FAILED for trial in answer.trials)
    assert all(trial.sample["optim.lr"] > 0.05 for trial in diverged)
    assert all("loss" in trial.outcome.reason for trial in diverged)
    # it is not promoted
    assert {trial.rung for trial in diverged} == {0}


@pytest.mark.ray
def test_each_rung_is_complete_with_the_preset_first(searched):
    plan, answer = searched
    for rung, expected in enumerate(plan.rungs):
        trials = [trial for trial in answer.trials if trial.rung == rung]
        assert len(trials) == expected.trials
        assert trials[0].sample is None and all(trial.sample for trial in trials[1:])


@pytest.mark.ray
def test_best_settings_are_a_preset_file(searched):
    plan, answer = searched
    config = read_preset(plan.dir / "best.json")
    assert config.optim.lr == pytest.approx(answer.carried["optim.lr"])
    assert config.optim.warmup == pytest.approx(answer.carried["optim.warmup"])
    assert config.optim.warmup_unit == "fraction"
    assert config.epochs == plan.run.epochs
    assert config.name == f"{plan.name}-best"


@pytest.mark.ray
def test_report_computes_the_same_answer_from_the_folder(searched):
    plan, answer = searched
    page = (plan.dir / "report.html").read_bytes()
    (plan.dir / "report.html").unlink()
    command = [sys.executable, "-m", "tune", "report", str(plan.dir)]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert all(sentence in again.stdout for sentence in answer.sentences())
    assert (plan.dir / "report.html").read_bytes() == page


@pytest.mark.ray
def test_report_writes_into_the_folder_that_it_is_given(searched, tmp_path):
    plan, answer = searched
    moved = tmp_path / "moved"
    shutil.copytree(plan.dir, moved, ignore=shutil.ignore_patterns("trials", "*.html", "best.json"))
    assert main(["report", str(moved)]) == 0
    assert read_preset(moved / "best.json") == read_preset(plan.dir / "best.json")
    assert (moved / "report.html").exists()


@pytest.mark.ray
def test_ray_tunes_own_analysis_has_all_trials_with_flat_settings_and_metrics(searched):
    from ray.tune import ExperimentAnalysis

    plan, answer = searched
    analysis = ExperimentAnalysis(
        str(plan.dir / "tune"), default_metric="val/loss", default_mode="min"
    )
    assert len(analysis.trials) == len(answer.trials)
    best = min(
        (trial for trial in answer.trials if trial.status == DONE),
        key=lambda trial: trial.value("val/loss"),
    )
    assert analysis.best_config["trial"] == best.name
    assert analysis.best_config["optim.lr"] == best.sample["optim.lr"]
    assert analysis.best_result["val/loss"] == best.value("val/loss")


@pytest.mark.ray
def test_optuna_opens_the_study_as_it_is(searched):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    plan, answer = searched
    storage = JournalStorage(JournalFileBackend(str(plan.dir / STUDY)))
    study = optuna.load_study(study_name=plan.name, storage=storage)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    found = {t.user_attrs["trial"]: (t.params["optim.lr"], t.value) for t in study.trials}
    for trial in answer.trials:
        rate, value = found[trial.name]
        assert rate == (trial.sample or plan.preset_sample())["optim.lr"]
        assert value == trial.value("val/loss")


@pytest.mark.ray
def test_an_ended_search_runs_nothing_again(searched, ray_cluster):
    from tune.search import run_search

    plan, answer = searched
    again = run_search(plan, resume=True, fit=None)
    assert again.sentences() == answer.sentences()
    with pytest.raises(ValueError, match="already exists .* --resume"):
        run_search(plan, fit=None)


@pytest.mark.ray
def test_a_later_search_begins_with_what_was_best(searched, ray_cluster, tmp_path):
    from tune.search import opened

    plan, answer = searched
    later = plan_in(tmp_path, name="later", warm_start=[str(plan.dir)])
    later.dir.mkdir()
    first = opened(later, resume=False).first
    last = [t for t in answer.trials if t.rung == len(plan.rungs) and t.sample]
    assert first[0] == last[0].sample
    assert len({json.dumps(sample) for sample in first}) == len(first) == 3


def failing(config, *, on_record, trial):
    """A run that fails in one trial until a file says that what was broken is mended."""
    if config.name == "rung-1-02" and not (trial.search.path.parent / "mended").exists():
        raise RuntimeError("the disk is full")
    return fit(config, on_record=on_record, trial=trial)


@pytest.mark.ray
def test_a_failed_trial_holds_the_next_rung_and_is_run_again(tmp_path, ray_cluster):
    from tune.search import run_search

    plan = plan_in(tmp_path, rungs=["5/8", "3/4"], seeds=2)
    with pytest.raises(RuntimeError, match="1 trials failed, rung-1-02 .*disk is full.* --resume"):
        run_search(plan, fit=failing)
    trials = Study.read(plan, plan.dir).trials()
    assert [trial.status for trial in trials].count(DONE) == len(trials) - 1 == 4
    (tmp_path / "mended").touch()
    answer = run_search(plan, resume=True, fit=failing)
    assert [trial.status for trial in answer.trials].count(DONE) == 5 + 3 + 4
    names = [trial.name for trial in answer.trials]
    assert len(set(names)) == len(names)


def from_the_copy(config, *, on_record, trial):
    """A run that starts from the copy of the weights in the folder of its search."""
    weights = prepared(config, trial.search).weights
    if weights.copy.home != trial.search or weights.on_node.parent != trial.search.path / "init":
        raise RuntimeError(f"it starts from {weights.on_node}")
    return fit(config, on_record=on_record, trial=trial)


@pytest.mark.ray
def test_all_trials_start_from_one_copy_of_the_weights_in_mlflow(
    tmp_path, ray_cluster, monkeypatch
):
    import mlflow

    from tune.search import run_search

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    number = client.create_experiment("vit", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(number).info.run_id
    model = find_preset("demo").replace({"model.num_classes": 10}).model
    save_weights(tmp_path / "vit.safetensors", ViT(model), head="drop")
    client.log_artifact(run, str(tmp_path / "vit.safetensors"))
    start = {"init_from": f"runs:/{run}/vit.safetensors"}
    plan = plan_in(tmp_path, start, rungs=["5/8"], seeds=2)
    weights = prepared(plan.run.replace({"name": plan.name})).weights
    run_search(plan, weights=weights, fit=from_the_copy)
    copies = [path.parent for path in plan.dir.rglob("vit.safetensors")]
    assert copies == [plan.dir / "init"]
    client.delete_run(run)  # the search goes on without the address
    assert prepared(plan.run.replace({"name": plan.name})).weights.copy


def everything_diverges(config, *, on_record, trial):
    """A run whose loss is no number, unless it is the preset's."""
    if config.optim.lr != 2e-3:
        raise FloatingPointError("loss nan in step 3")
    return fit(config, on_record=on_record, trial=trial)


@pytest.mark.ray
def test_a_search_whose_trials_all_diverge_says_so(tmp_path, ray_cluster):
    from tune.search import run_search

    plan = plan_in(tmp_path, rungs=["3/8", "3/4"], seeds=2)
    with pytest.raises(
        ValueError, match="all trials of rung 1 but the preset diverged .*lower learning rates"
    ):
        run_search(plan, fit=everything_diverges)


def test_bad_input_is_status_2_and_names_what_to_do(tmp_path, capsys):
    for words, said in (
        (["search"], "needs a PRESET"),
        (["search", "demos"], "demo"),
        (["search", "demo", "--rungs", "32"], "TRIALS/PARTS"),
        (["search", "demo", "--rungs", "8/4", "32/8"], "grow longer"),
        (["search", "demo", "--objective", "val/top2"], "val/top1"),
        (["search", "demo", "--budget", "3"], "choose the --rungs"),
        (["report", str(tmp_path)], "not the folder of a search"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err


def test_the_package_is_named_by_nothing_that_needs_torch():
    code = "import sys, tune.plan, tune.ladder, tune.prepare; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == "False"
