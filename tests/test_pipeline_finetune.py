"""A run that starts from another one: its head by class, its first evaluation, what it hands on."""

import json

import pytest

from pipeline.evaluation.config import CENTER
from pipeline.evaluation.evaluate import evaluate_model, open_dataset
from pipeline.evaluation.model import EvalModel
from pipeline.initial_weights import fetched
from pipeline.run import fit
from pipeline.settings.presets import find_preset
from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.dataset.format import open_set
from vit.weights import MODEL_FILE, read_weights

SMALL = {
    **{"model.depth": 2, "model.width": 64, "model.mlp_width": 64, "model.heads": 2},
    **{"workers": 1, "crops": "center", "optim.warmup": 0.1, "record.models": "none"},
    **{"log_every": 5, "checkpoint_every": 1000, "keep_checkpoints": 1},
}
# six of the ten digits, in another order
CLASSES = tuple(f"n{digit:08d}" for digit in (7, 3, 9, 0, 1, 4))

pytestmark = pytest.mark.ray


def config(runs, data, **settings):
    given = {**SMALL, "runs_dir": str(runs), "data.dir": str(data), **settings}
    return find_preset("demo").replace(given)


def records(run, kind):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["kind"] == kind}


@pytest.fixture(scope="module")
def runs(ray_cluster, digits, tmp_path_factory):
    """A folder of runs with one that was trained on ten digits: 44 steps."""
    folder = tmp_path_factory.mktemp("runs")
    fit(config(folder, digits, name="ten", epochs=4, eval_every=1000))
    return folder


@pytest.fixture(scope="module")
def six(digits, tmp_path_factory):
    """Shards of six digits in another order, with a minival of the training images."""
    folder = tmp_path_factory.mktemp("six")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    settings = BuildConfig(classes=str(folder / "classes.txt"), minival_per_class=9)
    build([digits], folder / "shards", settings)
    return folder / "shards"


def tuned(runs, six, name, **settings):
    """Fine-tune the run on six digits for about 12 steps, evaluated after every 4."""
    start = {"init_from": str(runs / "ten"), "init_head": "map", "data.select_split": "minival"}
    plan = {"epochs": 0.5, "global_batch": 32, "eval_every": 4, "optim.lr": 1e-4}
    return config(runs, six, name=name, **start, **plan, **settings)


def test_the_minival_is_apart_from_train_and_from_the_val_that_the_sources_have(six, digits):
    sets = {}
    for split, shards in open_set(str(six)).manifest.splits.items():
        tables = [open_set(str(six)).read_index(shard) for shard in shards]
        sets[split] = {key for table in tables for key in table["key"].to_pylist()}
    assert sets.keys() == {"train", "val", "minival"}
    assert len(sets["minival"]) == 9 * len(CLASSES) and len(sets["val"]) == 36 * len(CLASSES)
    assert not sets["train"] & sets["minival"] and not sets["val"] & sets["minival"]


def test_a_mapped_head_is_evaluated_before_the_first_step_and_minival_selects(runs, six, caplog):
    caplog.set_level("INFO")
    outcome = fit(tuned(runs, six, "tuned"))
    found = records(runs / "tuned", "eval")
    assert found.keys() == {0, *range(4, outcome.steps, 4), outcome.steps}
    # the zero-shot accuracy is that of the old model's outputs for the classes of the data
    before = EvalModel.open(fetched(str(runs / "ten"), str(runs)))
    settings = before.evaluation(data=str(six), crops=(CENTER,), precision="fp32")
    data = open_dataset(settings)
    known = evaluate_model(before, settings, data, runs / "zero-shot", lambda *_: None)
    zero_shot = known["protocols"][CENTER]["top1"]
    assert found[0]["val/top1"] == pytest.approx(zero_shot) and zero_shot > 0.3
    assert 0 < found[0]["select/top1"] <= 1
    trained = {step: record for step, record in found.items() if step}
    best = max(trained, key=lambda step: (trained[step]["select/top1"], -step))
    assert outcome.checkpoint.endswith(f"step-{best:09d}")
    top1 = trained[best]["select/top1"]
    assert outcome.chosen == f"step {best:,}, the highest top-1 on minival: {top1:.4f}"
    assert json.loads((runs / "tuned/result.json").read_text())["chosen"] == outcome.chosen
    assert fetched(str(runs / "tuned"), str(runs)).name == "tuned"
    assert EvalModel.open(runs / "tuned").step == best
    assert "init_from   31 tensors of " in caplog.text
    assert "head: 6 of 6 classes mapped" in (runs / "tuned/events.jsonl").read_text()


def test_a_run_that_is_stopped_goes_on_with_the_same_bits_and_one_evaluation_of_step_0(runs, six):
    stops = iter([None, None, "enough"])

    def stop(record):
        return next(stops, None) if record["kind"] in ("eval", "train") else None

    settings = tuned(runs, six, "stopped")
    assert fit(settings, on_record=stop) is None
    assert not (runs / "stopped/result.json").exists()
    outcome = fit(settings)
    lines = (runs / "stopped/metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if line["kind"] == "eval"]
    assert steps == sorted(set(steps)) and steps[0] == 0
    path = fetched(str(runs / "tuned/checkpoints"), str(runs))
    last = sorted(path.glob("step-*"))[-1]
    again = runs / "stopped/checkpoints" / last.name
    assert (again / MODEL_FILE).read_bytes() == (last / MODEL_FILE).read_bytes()
    assert outcome.chosen == json.loads((runs / "tuned/result.json").read_text())["chosen"]


def test_without_a_split_that_selects_the_last_step_is_reported(runs):
    result = json.loads((runs / "ten/result.json").read_text())
    assert result["chosen"] == "the last step"
    assert result["checkpoint"].endswith(max(p.name for p in (runs / "ten/checkpoints").iterdir()))


def test_weights_at_an_address_are_kept_in_the_folder_of_the_run(runs, six):
    """A head of zeros: nothing is evaluated before the first step."""
    address = (runs / "ten").as_uri()
    settings = {"init_from": address, "init_head": "drop", "data.select_split": None}
    fit(tuned(runs, six, "fetched").replace(settings))
    assert 0 not in records(runs / "fetched", "eval")
    kept = read_weights(runs / "fetched/init")
    (last,) = (runs / "ten/checkpoints").iterdir()
    assert kept.keys() == read_weights(last).keys()
