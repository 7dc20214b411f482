"""A search from its command to its answer: on Ray, with runs that cost nothing."""

import dataclasses
import importlib
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from optuna.trial import TrialState
from ray import cloudpickle
from test_support_page import Page
from test_tune_space import DEMO

from pipeline.evaluation.config import CENTER
from pipeline.outcome import Outcome
from pipeline.settings.presets import find_preset, read_preset
from pipeline.tracking.journal import write_record
from tune.__main__ import main
from tune.config import SearchConfig
from tune.page import write_page
from tune.prepare import assemble, read_job
from tune.result import read_result
from tune.sampler import make_study
from tune.search_state import SearchState
from tune.summary import sentences
from tune.trial_log import DIVERGED, DONE, STARTED, TRIALS, Entry, TrialLog, read_entries
from tune.trial_slots import TrialSlots

# the processes of the trials cannot import a test
cloudpickle.register_pickle_by_value(sys.modules[__name__])

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def late_bloomer(config, share):
    """Accuracy on the way: best for lr 2e-3 and the longest warm-up, which shows it last."""
    warmup = config.optim.warmup
    area = share**2 / (2 * warmup) if share < warmup else share - warmup / 2
    rate = math.log(config.optim.lr / 2e-3)
    top = 0.55 + 0.35 * math.log(warmup / 0.02) / math.log(24) - 0.05 * rate**2
    return top * (1 - math.exp(-4 * area)) + 0.002 * config.seed


def fit(config, *, on_record, trial):
    """A run that costs nothing; a rate above 0.02 does not end well."""
    folder = Path(config.runs_dir) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    steps = config.steps(DEMO["samples"])
    for step in range(config.eval_every, steps + config.eval_every, config.eval_every):
        step = min(step, steps)
        if config.optim.lr > 0.05:
            raise FloatingPointError(f"loss nan in step {step}")
        loss = 50.0 if config.optim.lr > 0.02 else 1.0
        top1 = late_bloomer(config, step / steps)
        train = {"kind": "train", "step": step, "train/loss": loss, "images_per_s": 100.0}
        values = {"kind": "eval", "step": step, "val/top1": top1, "val/loss": 1 - top1}
        for record in (train, values):
            write_record(folder, record)
            if on_record(record):
                return None
        time.sleep(0.02)
    scores = {"top1": top1, "loss": 1 - top1}
    return Outcome(steps=steps, images_per_s=1.0, checkpoint="", protocols={CENTER: scores})


def plan_in(folder, changes=None, **settings):
    changes = {"runs_dir": str(folder), **(changes or {})}
    job = assemble("demo", changes, SearchConfig(**settings), **DEMO)
    from tune.search import open_folder

    open_folder(job, resume=False)
    return job


@pytest.fixture(scope="module")
def searched(tmp_path_factory, ray_cluster):
    """A search as shipped over a space that reaches into rates at which runs diverge."""
    from tune.search import run_search

    folder = tmp_path_factory.mktemp("search")
    wide = ("optim.lr=loguniform(3e-4,0.3)",)
    # the warm-up of the baseline is the shortest of the space
    job = plan_in(folder, {"optim.warmup": 0.005}, trials=20, set=wide)
    return job, run_search(job, fit=fit)


@pytest.mark.ray
def test_the_known_optimum_is_found_by_the_search_as_shipped(searched):
    _, found = searched
    assert found.best.sample["optim.warmup"] > 0.3
    assert 1e-3 < found.best.sample["optim.lr"] < 4e-3
    assert found.best.mean("val/top1") > found.baseline.mean("val/top1") + 0.2


@pytest.mark.ray
def test_divergence_is_a_result_and_no_error(searched):
    job, found = searched
    counts = found.counts()
    assert counts[DIVERGED] >= 1 and "failed" not in counts
    diverged = [e for e in read_entries(job.dir / TRIALS) if e.status == DIVERGED]
    assert all(entry.sample["optim.lr"] > 0.02 and "loss" in entry.reason for entry in diverged)


@pytest.mark.ray
def test_the_preset_comes_first_and_is_repeated_with_the_best(searched):
    job, found = searched
    entries = read_entries(job.dir / TRIALS)
    assert entries[0].number == 0 and entries[0].settings == {}
    repeated = {entry.number for entry in entries if entry.repeat}
    assert 0 in repeated and found.best.number in repeated
    assert len(repeated) in (2, 3)
    assert {len(group.runs) for group in found.groups if group.number in repeated} == {3}
    assert found.best.spread("val/top1") == pytest.approx(0.002, rel=0.01)


@pytest.mark.ray
def test_best_settings_are_a_preset_file(searched):
    job, found = searched
    config = read_preset(job.dir / "best.json")
    assert config.optim.lr == pytest.approx(found.best.sample["optim.lr"])
    assert config.optim.warmup_unit == "examples"
    share = found.best.sample["optim.warmup"] * job.horizon
    assert config.optim.warmup == pytest.approx(share * 40 * 1437, rel=1e-3)
    assert config.epochs == find_preset("demo").epochs
    assert config.name == f"{job.name}-best"


@pytest.mark.ray
def test_three_sentences_say_what_to_use_how_sure_and_what_it_rests_on(searched):
    _, found = searched
    use, flat, rest = sentences(found)
    assert "a warm-up of" in use and "over 3 seeds" in use and "the preset's settings" in use
    assert "optimum" in flat and "seeds" in flat
    assert "number of examples (--transfer)" in rest and "images" in rest


@pytest.mark.ray
def test_report_writes_the_result_again(searched):
    job, found = searched
    page = (job.dir / "report.html").read_bytes()
    (job.dir / "report.html").unlink()
    again = subprocess.run(
        [sys.executable, "-m", "tune", "report", str(job.dir)], capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert sentences(found)[0] in again.stdout
    assert (job.dir / "report.html").read_bytes() == page


def svg_of(page, name):
    """One chart of a page."""
    return ElementTree.fromstring(re.search(rf'<svg id="{name}".*?</svg>', page, re.DOTALL)[0])


def marks_of(svg, kind):
    """Elements of a chart with a CSS class."""
    return [each for each in svg.iter() if each.get("class") == kind]


@pytest.mark.ray
def test_page_has_the_map_the_curves_and_the_result(searched):
    job, result = searched
    content = (job.dir / "report.html").read_text()
    page = Page(content)
    page.assert_stands_alone()
    assert "http" not in content
    words = " ".join(page.words)
    for sentence in sentences(result):
        assert sentence in words
    assert f"--preset-file {job.dir / 'best.json'}" in words
    for word in ("no trial is stopped here", "The best settings", "What it cost", "fANOVA"):
        assert word in words
    entries = read_entries(job.dir / TRIALS)
    curves = svg_of(content, "curves")
    # a trial that diverged before its first evaluation has no curve
    drawn = [e for e in entries if "val/top1" in e.values or e.status != DIVERGED]
    assert len(marks_of(curves, "trial")) == len(marks_of(curves, "end")) == len(drawn)
    map_ = svg_of(content, "map")
    told = [each.find(".//title").text for each in marks_of(map_, "trial")]
    assert sorted(text.split(":")[0] for text in told) == [e.name for e in entries if not e.repeat]
    (surface,) = marks_of(map_, "surface")
    assert surface.tag == "image"
    assert {"best", "baseline"} <= {text.text for text in map_.iter("text")}
    # each seed of the trials that were repeated
    repeated = [group for group in result.groups if len(group.runs) > 1]
    seeds = marks_of(svg_of(content, "seeds"), "seed")
    assert [len(list(each.iter("use"))) for each in seeds] == [3] * len(repeated)
    assert len(marks_of(svg_of(content, "importance"), "bar")) == len(job.space.dimensions)


@pytest.mark.ray
@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_page_shows_map_and_curves_in_a_browser(searched, tmp_path):
    job, _ = searched
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars"]
    flags += [f"--screenshot={picture}", "--window-size=1200,1500"]
    page = (job.dir / "report.html").as_uri()
    subprocess.run([CHROMIUM, *flags, page], check=True, capture_output=True, timeout=120)
    colors = colours_of(picture)
    # the colours of the map's surface, and the line of the best trial
    assert len({c for c in colors if max(c) - min(c) > 60}) > 100
    assert any(abs(r - 219) + abs(g - 39) + abs(b - 119) < 12 for r, g, b in colors)


@pytest.mark.parametrize(
    ("space", "samples", "inside", "labels"),
    [
        ({"optim.lr": "loguniform(1e-4,1e-2)"}, [2e-3, 1e-3, 5e-3], 3, ["optim.lr", "val/top1"]),
        ({"optim.lr": "choice(0.001,0.004)", "epochs": "uniform(1,4)"}, [0.002, 0.001, 0.004], 2,
         ["optim.lr", "epochs", "0.001", "0.004"]),
    ],
)  # fmt: skip
def test_page_has_a_map_of_one_setting_and_of_options(tmp_path, space, samples, inside, labels):
    (tmp_path / "space.json").write_text(json.dumps(space))
    job = plan_in(tmp_path, trials=3, seeds=1, space=str(tmp_path / "space.json"))
    trial_log = TrialLog(job.dir / TRIALS)
    for number, rate in enumerate(samples):
        sample = {"optim.lr": rate, **({"epochs": 2.0} if "epochs" in space else {})}
        values = {"val/top1": 0.8 + number / 100, "val/loss": 0.2}
        entry = Entry(number=number, sample=sample, settings=sample, status=DONE, values=values)
        trial_log.keep(entry)
    write_page(job, read_result(job), tmp_path / "page.html")
    map_ = svg_of((tmp_path / "page.html").read_text(), "map")
    assert len(marks_of(map_, "trial")) == inside  # what is no option has no place
    assert len(marks_of(map_, "surface")) == len(space) - 1
    assert set(labels) <= {text.text for text in map_.iter("text")}


def colours_of(path):
    """The colours of a PNG of 8 bits per channel."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    return [color for _, color in image.getcolors(maxcolors=1 << 24)]


@pytest.mark.ray
def test_a_finished_search_only_shows_its_result_again(searched):
    from tune.search import open_folder, run_search

    job, found = searched
    before = (job.dir / TRIALS).read_bytes()
    with pytest.raises(ValueError, match="--resume, or choose another --name"):
        open_folder(job, resume=False)
    open_folder(job, resume=True)
    assert run_search(job, fit=fit).best == found.best
    assert (job.dir / TRIALS).read_bytes() == before


def fragile(config, *, on_record, trial):
    """A run that fails until somebody makes room."""
    if not (trial.search_dir / "room").exists():
        raise OSError("disk full")
    return fit(config, on_record=on_record, trial=trial)


@pytest.mark.ray
def test_failed_trials_are_tried_again_when_the_search_is_resumed(tmp_path, ray_cluster):
    from tune.search import run_search

    job = plan_in(tmp_path, trials=1, seeds=1, stopper="none", evals=2)
    with pytest.raises(ValueError, match="no trial of search .* was completed"):
        run_search(job, fit=fragile)
    (entry,) = read_entries(job.dir / TRIALS)
    assert entry.status == "failed" and "disk full" in entry.reason
    (job.dir / "room").touch()
    found = run_search(job, fit=fragile)
    assert found.counts() == {DONE: 1}


def finished(config, *, on_record, trial):
    """A run that was through before the driver of its search died: it only tells its outcome."""
    scores = {"top1": 0.5, "top5": 0.9, "loss": 1.5, "images": 360}
    return Outcome(steps=112, images_per_s=9.0, checkpoint="", protocols={CENTER: scores})


@pytest.mark.ray
def test_a_run_that_had_finished_before_the_driver_died_is_a_result(tmp_path, ray_cluster):
    from tune.search import run_search

    found = run_search(plan_in(tmp_path, trials=1, seeds=1), fit=finished)
    assert found.counts() == {DONE: 1}
    assert [entry.step for entry in found.entries] == [112]
    assert found.best.mean("val/top1") == 0.5


def test_ray_tune_sends_no_keys_to_its_actors(monkeypatch):
    """It sends those of AWS by itself, and Ray shows the environment of actors."""
    from ray.tune.execution.class_cache import _ActorClassCache

    importlib.import_module("tune.search")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "wJalrXUtnFEMI")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    actor = _ActorClassCache().get(type("Trainable", (), {}))
    sent = actor._default_options["runtime_env"]["env_vars"]
    assert sent["RAY_CHDIR_TO_TRIAL_DIR"] == "0" and "wJalrXUtnFEMI" not in sent.values()


def test_the_baseline_has_the_presets_own_values_of_any_type():
    dimensions = ("optim.name=choice(adamw,sgd)", "global_batch=choice(64,128)")
    config = SearchConfig(set=(*dimensions, "epochs=choice(20,40)"), horizon=0.5)
    job = assemble("demo", {}, config, **DEMO)
    sample = job.baseline_sample()
    expected = {"optim.name": "adamw", "global_batch": 128, "epochs": 40.0}
    assert {name: sample[name] for name in expected} == expected
    assert isinstance(sample["global_batch"], int)


def test_other_settings_under_the_same_name_are_refused(tmp_path):
    from tune.search import open_folder

    plan_in(tmp_path, trials=4)
    more = assemble("demo", {"runs_dir": str(tmp_path)}, SearchConfig(trials=9), **DEMO)
    open_folder(more, resume=True)
    other = assemble("demo", {"runs_dir": str(tmp_path)}, SearchConfig(horizon=0.5), **DEMO)
    with pytest.raises(ValueError, match="started with other settings"):
        open_folder(other, resume=True)
    with pytest.raises(ValueError, match="is not the folder of a search"):
        read_job(tmp_path)


def test_a_line_cut_off_by_a_crash_is_not_a_trial(tmp_path):
    path = tmp_path / TRIALS
    trial_log = TrialLog(path)
    trial_log.keep(Entry(number=0, sample={}, settings={}))
    trial_log.keep(Entry(number=0, sample={}, settings={}, status=DONE))
    path.write_bytes(path.read_bytes() + b'{"number": 1, "sam')
    assert len(read_entries(path)) == 1
    again = TrialLog(path)
    again.keep(Entry(number=1, sample={}, settings={}))
    assert [entry.status for entry in read_entries(path)] == [DONE, STARTED]


def test_a_trial_started_in_an_older_log_is_resumed(tmp_path):
    job = plan_in(tmp_path, trials=2, seeds=1)
    trial_log = TrialLog(job.dir / TRIALS)
    sample = {"optim.lr": 1e-3, "optim.warmup": 0.1}
    begun = Entry(number=1, sample=sample, settings=sample, status="begun")
    trial_log.keep(begun)
    study = make_study(job.space, [begun], job.config)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    state = SearchState(job, trial_log, SimpleNamespace(add=pytest.fail))
    assert state.unfinished([(0, 0), (1, 0)]) == [(1, 0), (0, 0)]
    assert state.begin((1, 0), judged=True).config.optim.lr == 1e-3
    assert read_entries(job.dir / TRIALS) == [dataclasses.replace(begun, status=STARTED)]


def test_the_best_of_many_single_runs_is_not_compared_with_a_mean(tmp_path):
    job = plan_in(tmp_path, trials=4)
    trial_log = TrialLog(job.dir / TRIALS)
    for number, repeat, top1 in [(0, 0, 0.90), (1, 0, 0.97), (2, 0, 0.93)] + [
        (0, 1, 0.90),
        (0, 2, 0.91),
        (2, 1, 0.94),
        (2, 2, 0.92),
    ]:
        values = {"val/top1": top1, "val/loss": 1 - top1}
        sample = {"optim.lr": 1e-3, "optim.warmup": 0.1}
        entry = Entry(number=number, repeat=repeat, sample=sample, settings=sample)
        trial_log.keep(dataclasses.replace(entry, status=DONE, values=values))
    found = read_result(job)
    assert [group.number for group in found.groups] == [2, 0, 1]
    assert found.tolerance == pytest.approx(2 * math.sqrt((0.01**2 + 1 / 30000) / 2), rel=0.01)


def test_room_follows_from_the_cluster_and_leaves_cores_for_the_data():
    assert TrialSlots.of(cpus=4, gpus=0, workers=1, wanted=None).trials == 2
    assert TrialSlots.of(cpus=64, gpus=8, workers=2, wanted=None).trials == 4
    # GPUs without cores for the data are not slots
    assert TrialSlots.of(cpus=9, gpus=8, workers=1, wanted=None).trials == 8
    assert TrialSlots.of(cpus=8, gpus=8, workers=1, wanted=None).trials == 7
    for cpus in range(2, 70):
        for workers in range(1, 5):
            if cpus >= 2 * workers:
                slots = TrialSlots.of(cpus=cpus, gpus=0, workers=workers, wanted=None)
                assert slots.trials * workers * slots.worker_cpus <= cpus // 2
    with pytest.raises(ValueError, match="would wait for each other"):
        TrialSlots.of(cpus=4, gpus=0, workers=1, wanted=3)
    with pytest.raises(ValueError, match="a trial of 4 workers needs 4 GPUs"):
        TrialSlots.of(cpus=64, gpus=2, workers=4, wanted=None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs, in which the embedded data is made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "nothing"], "unknown preset 'nothing'"),
        (["search", "demo", "--space", "warm"], "unknown space 'warm'"),
        (["search", "demo", "--set", "optim.lrr=uniform(1,2)"], "did you mean 'optim.lr'"),
        (["search", "demo", "--set", "optim.lr=loguniform(1,0.1)"], "optim.lr: range"),
        (["search", "demo", "--set", "optim.warmup=uniform(0.1,1.5)"], "optim.warmup"),
        (["search", "demo", "--horizon", "2"], "horizon (2.0) must be above 0"),
        (["search", "demo", "--objective", "top1"], "did you mean 'val/top1'"),
        (["search", "demo", "--resume"], "is not the folder of a search"),
        (["search", "demo", "--base.runs-dir", "s3://b/runs"], "must be a folder that every node"),
        (["report", "nowhere"], "nowhere is not the folder of a search"),
        (["tune"], "unknown command 'tune'; known: search, report"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(arguments, words, runs, capsys, monkeypatch):
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    if arguments[:2] == ["search", "demo"] and "--base.runs-dir" not in arguments:
        arguments = [*arguments, "--base.runs-dir", str(runs)]
    try:
        status = main(arguments)
    except SystemExit as left:
        status = left.code
    said = capsys.readouterr()
    assert status == 2
    assert words in said.out + said.err
    assert not list(runs.glob("*/trials.jsonl"))
