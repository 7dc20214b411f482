"""Runs beside each other: figures equal to those worked out by hand, and a page to look at."""

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
from recorded_runs import begun, ended, evaluated, finished, predictions, record, started
from test_pipeline_report import browser, rows_of, shown
from test_support_page import Page

from pipeline.__main__ import main
from pipeline.evaluation.examples import first_name
from pipeline.evaluation.metrics import comparison
from pipeline.evaluation.paired import PairedTest, read
from pipeline.report.compare_page import curves, run_lines, titles
from pipeline.report.comparison import Comparison
from pipeline.report.contender import Contender
from pipeline.tracking.journal import write_artifact

NOW = 1_700_000_000.0
CLASSES = ("n01440764", "n01443537", "n01484850")
LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
BEFORE = predictions(LABELS, [0, 0, 1, 1, 1, 1, 1, 0, 0, 0])  # right: 2 + 3 + 0
MIDDLE = predictions(LABELS, [0, 0, 0, 1, 1, 1, 1, 0, 0, 0])
AFTER = predictions(LABELS, [0, 0, 0, 0, 1, 1, 2, 2, 2, 2])  # right: 4 + 2 + 3


def test_the_paired_test_is_that_worked_out_by_hand(tmp_path):
    tables = [
        (evaluated(tmp_path / name, {"center": found}, CLASSES) / "predictions.parquet", "center")
        for name, found in (("before", BEFORE), ("after", AFTER))
    ]
    test = PairedTest.of(*tables)
    assert (test.images, test.before, test.after) == (10, 0.5, 0.9)
    assert (test.change["gained"], test.change["lost"]) == (5, 1)
    assert test.change["gain"] == pytest.approx(0.4)
    assert test.change["p"] == pytest.approx(2 * (1 + 6) / 2**6)  # at most 1 of 6 coins
    assert test.change == comparison(BEFORE, AFTER)  # with its interval
    assert [(c.number, c.images, c.before, c.after) for c in test.classes] == [
        (1, 3, 3, 2),
        (0, 4, 2, 4),
        (2, 3, 0, 3),
    ]
    reverse = PairedTest.of(*reversed(tables))
    assert reverse.change["gain"] == -test.change["gain"]
    assert reverse.change["p"] == test.change["p"]


def test_what_is_read_is_what_was_evaluated(tmp_path):
    """Images of several classes, and one that could not be read: it has no prediction."""
    several = replace(
        BEFORE,
        labels=np.stack([BEFORE.labels[:, 0], np.resize([1, -1], 10)], axis=1),
        top=np.where(np.arange(10)[:, None] == 3, -2, np.hstack([BEFORE.top, BEFORE.top + 1])),
    )
    folder = evaluated(tmp_path / "one", {"center": BEFORE, "ten": several}, CLASSES)
    _, found = read(folder / "predictions.parquet", "ten")
    assert (found.top == several.top).all() and (
        found.hits(1) == replace(several, labels=BEFORE.labels).hits(1)
    ).all()
    folder = evaluated(tmp_path / "two", {"center": several}, CLASSES)
    _, found = read(folder / "predictions.parquet", "center")
    assert (found.labels == several.labels).all() and not found.hits(1)[3]


@pytest.mark.parametrize(
    ("other", "facts"),
    [
        (AFTER, {"keys": [f"picture-{number}" for number in range(10)]}),
        (predictions(LABELS[1:], [0] * 9), {}),
        (predictions(LABELS[::-1], [0] * 10), {}),
    ],
)
def test_other_images_or_classes_are_not_compared(other, facts, tmp_path):
    first = evaluated(tmp_path / "before", {"center": BEFORE}, CLASSES)
    second = evaluated(tmp_path / "after", {"center": other}, CLASSES, **facts)
    with pytest.raises(ValueError, match="not of the same images"):
        PairedTest.of(*((each / "predictions.parquet", "center") for each in (first, second)))


@pytest.fixture
def runs(tmp_path):
    """Two runs that differ in the learning rate and in the workers, with evaluations."""
    for name, found, settings in (
        ("slow", BEFORE, {"workers": 1}),
        ("fast", AFTER, {"optim__lr": 0.5, "workers": 2, "record__price_per_hour": 2.0}),
    ):
        workers = settings.get("workers", 1)
        # an hour, a pause of nine, and an hour
        events = [*started(NOW, workers), *ended(NOW + 3600, "KILLED")]
        events += [*started(NOW + 36_000, workers, digest=name), *ended(NOW + 39_600, "FINISHED")]
        run = begun(tmp_path / name, *events, **settings)
        for step, seconds in ((25, 1800), (50, 3600), (75, 37_800), (100, 39_600)):
            values = {"train__loss": 4 - step / 50, "lr": 0.1, "images_per_s": 100.0 * workers}
            record(run, "train", step, NOW + seconds, **values)
            record(run, "eval", step, NOW + seconds, val__loss=1.0, val__top1=step / 400)
        protocols = {"center": found, "ten": found}
        evaluated(run / "evaluations/step-000000100-val-ten", protocols, CLASSES)
        before = {"center": BEFORE, "ten": BEFORE}
        older = {"checkpoint": "step-000000050", "step": 50}
        evaluated(run / "evaluations/step-000000050-val-ten", before, CLASSES, **older)
        finished(run, top1=0.5)
    return tmp_path


AXES_BY_HAND = {
    "steps": [25, 50, 75, 100],
    "images": [25 * 128, 50 * 128, 75 * 128, 100 * 128],
    "hours": [0.5, 1.0, 1.5, 2.0],
}


def test_curves_lie_over_steps_images_and_hours_without_the_pause(runs):
    run = Contender.open(str(runs / "fast"))
    places = {axis: [x for x, _ in run_lines(run, axis)["train/loss"]] for axis in AXES_BY_HAND}
    assert places == AXES_BY_HAND


def test_page_and_console_show_the_same_and_only_what_differs(runs, tmp_path, caplog):
    out = tmp_path / "page.html"
    assert main(["compare", str(runs / "slow"), str(runs / "fast"), "--out", str(out)]) == 0
    page = out.read_text()
    Page(page).assert_stands_alone()
    rows = {row[0]: row[1:] for row in rows_of(page)}
    assert rows["steps"] == ["100", "100"] and rows["images seen"] == ["12,800", "12,800"]
    assert rows["hours"] == ["2.00", "2.00"] and rows["worker-hours"] == ["2.00", "4.00"]
    assert rows["cost"] == ["-", "8.00"] and rows["images/s, median"] == ["100", "200"]
    assert rows["loss in training, last"] == ["2.0000 on train"] * 2
    assert rows["top-1 in training, one crop, last"] == ["0.2500 on val"] * 2
    assert rows["preset"] == ["demo +1", "demo +2"]
    assert rows["optim.lr"] == ["0.002", "0.5"] and rows["workers"] == ["1", "2"]
    assert rows["data for training"] == ["set/train slow", "set/train fast"]
    assert "epochs" not in rows and "name" not in rows
    assert rows["top-1, in1k val/ten-logits"][1].startswith("90.00% [")
    (test,) = [row for row in rows_of(page) if row[1:2] == ["in1k val/ten-logits"]]
    assert test[0] == "fast" and test[2:5] == ["10", "50.00%", "90.00%"]
    assert test[5].startswith("+40.00 [") and test[6:] == ["+5 / -1", "0.22"]
    assert rows[f"{first_name(CLASSES[2])} {CLASSES[2]}"] == ["3", "0.0%", "100.0%", "+3"]
    assert "S3CR3T" not in page and page.count('<g class="line">') == 3 * 5 * 2
    said = re.sub(" +", " ", caplog.text)
    for line in ("cost - 8.00", "optim.lr 0.002 0.5", "fast in1k val/ten-logits 10 50.00% 90.00%"):
        assert line in said


def test_an_evaluation_stands_for_its_own_model(runs):
    older = str(runs / "fast/evaluations/step-000000050-val-ten")
    found = Comparison.of([str(runs / "slow"), older])
    test = found.tests[-1]
    assert str(test.measure) == "val/ten-logits" and test.test.change["gain"] == 0.0
    assert test.other.name == "fast, step-000000050-val-ten"


def test_images_that_only_one_model_has_seen_lead_to_a_command(runs):
    run = begun(runs / "new name", *started(NOW))
    facts = {"fingerprint": "e" * 64, "split": "test", "average": "probabilities"}
    evaluated(run / "evaluations/other", {"center": AFTER, "five": AFTER}, CLASSES, **facts)
    (command,) = Comparison.of([str(run), str(runs / "slow")]).advice
    assert shlex.split(command) == [
        *("python", "-m", "pipeline", "evaluate", str(runs / "slow")),
        *("--data", "s3://K:S3CR3T@bucket/in1k", "--split", "test", "--crops", "five"),
        *("--average", "probabilities"),
    ]
    (runs / "slow/evaluations/step-000000100-val-ten/predictions.parquet").unlink()
    found = Comparison.of([str(runs / "fast"), str(runs / "slow")])
    assert not found.tests and len(found.advice) == 1
    bare = begun(runs / "bare", *started(NOW))
    found = Comparison.of([str(bare), str(runs / "slow")])
    words = [shlex.split(each)[4:] for each in found.advice]
    options = ["--data", "runs/data/digits/shards", "--split", "val", "--crops", "five"]
    assert words == [[str(bare), *options], [str(runs / "slow"), *options]]
    assert "S3CR3T" not in found.text()


def test_runs_of_one_name_are_told_apart_by_the_ends_of_their_places(runs, tmp_path):
    other = begun(tmp_path / "elsewhere/slow", *started(NOW))
    found = Comparison.of([str(runs / "slow"), str(other), str(runs / "fast")])
    names = [each.name for each in found.contenders]
    assert names == [f"{runs.name}/slow", "elsewhere/slow", "fast"]


def test_a_run_in_a_store_is_read_from_there(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = (runs / "fast").as_uri()
    whole, part = map(Contender.open, (place, f"{place}/evaluations/step-000000100-val-ten"))
    assert len(whole.run.records) == len(part.run.records) == 8
    assert whole.run.state == part.run.state == "finished"
    assert whole.measured.keys() == part.measured.keys() and len(whole.measured) == 2


def test_corners_of_earlier_results_are_compared_with_each_other_alone(runs):
    """A result that does not say to what it resized had `ten` in the corners of the rectangle."""
    for name in ("slow", "fast"):
        path = runs / name / "evaluations/step-000000100-val-ten/result.json"
        result = json.loads(path.read_text())
        del result["resized"]
        path.write_text(json.dumps(result))
        found = Comparison.of([str(runs / "slow"), str(runs / "fast")])
        measures = [str(test.measure) for test in found.tests]
        assert measures == ["val/center", *["val/ten-logits, corners as before"] * (name == "fast")]
    bare = begun(runs / "bare", *started(NOW))
    found = Comparison.of([str(runs / "slow"), str(bare)])
    assert len(found.advice) == 2  # both, because crops are others now


def test_of_two_evaluations_alike_but_for_preparation_the_newest_counts_and_is_named(runs):
    run = runs / "fast"
    for name, found in (("a-newer", BEFORE), ("z-older", MIDDLE)):
        crops = {"center": found, "ten": found}
        evaluated(run / "evaluations" / name, crops, CLASSES, precision="bf16")
    evaluated(run / "evaluations/0-same", {"center": BEFORE, "ten": BEFORE}, CLASSES)
    folders = [run / f"evaluations/{name}" for name in ("z-older", "a-newer")]
    for folder in folders:
        write_artifact(run, folder / "result.json", f"evaluations/{folder.name}")
    found = Comparison.of([str(runs / "slow"), str(run)])
    assert [test.test.change["gain"] for test in found.tests] == [0.0, 0.0]
    assert "fast: val/ten-logits is that of a-newer, not of z-older" in found.passed_over
    assert not any("0-same" in each for each in found.passed_over)  # its figures are the same
    assert "is that of a-newer, not of step-000000100-val-ten" in found.text()
    assert not found.first.passed_over
    finished(run, top1=0.5, evaluation=str(run / "evaluations/step-000000100-val-ten"))
    found = Comparison.of([str(runs / "slow"), str(run)])
    assert [test.test.change["gain"] for test in found.tests] == [pytest.approx(0.4)] * 2


def test_extremes_of_loss_and_norm_are_around_the_curves_of_each_run(runs):
    for name in ("slow", "fast"):
        for step in (110, 120, 130):
            values = {"train__loss": 2.0, "train__loss_min": 1.0, "train__loss_max": 900.0}
            record(runs / name, "train", step, NOW, **values, grad_norm=1.0, grad_norm_max=4.0)
    charts = curves(Comparison.of([str(runs / "slow"), str(runs / "fast")]).runs, "steps")
    assert charts["Loss in training"].count('class="band"') == 2
    assert charts["Gradient norm"].count('class="band"') == 2
    assert ">100<" in charts["Loss in training"]  # the axis is logarithmic
    assert dict(titles({"wait": None}))["wait"].endswith("of the slowest worker")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("events.jsonl", '{"event": "tags", "time": 1.0, "tags": {}}\n', "has no start"),
        ("events.jsonl", "{not\n", "events.jsonl is no JSON"),
        ("metrics.jsonl", "{not\n", "metrics.jsonl is no JSON"),
        ("evaluations/step-000000050-val-ten/result.json", "{", "result.json is no JSON"),
        ("evaluations/step-000000050-val-ten/result.json", "{}", "result.json has no protocols"),
        ("events.jsonl", None, "is a run that has not started"),
    ],
)
def test_a_damaged_run_is_refused_by_the_name_of_its_file(file, text, message, runs, capsys):
    path = runs / "slow" / file
    path.write_text(text) if text else path.unlink()
    assert main(["compare", str(runs / "slow"), str(runs / "fast")]) == 2
    said = capsys.readouterr().err
    assert message in said and str(runs / "slow") in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slow"], "two runs or more"),
        (["slow", "slow"], "is given twice"),
        (["slow", "nothing"], "nothing is neither the folder of a run"),
        (["slow", "fast", "--out", "no/page.html"], "--out (no/page.html) must be a file"),
        (["slow", "fast", "--out", "slow"], "--out (slow) must be a file"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(arguments, message, runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(runs.rglob("*.html"))


@browser
def test_a_browser_shows_the_axis_that_was_chosen(runs, tmp_path):
    page = tmp_path / "page.html"
    assert main(["compare", str(runs / "slow"), str(runs / "fast"), "--out", str(page)]) == 0
    text = page.read_text()
    assert text.count(" checked") == 1
    text = text.replace(" checked", "").replace('id="axis-3"', 'id="axis-3" checked')  # a click
    text = re.sub('<svg id="(steps|images)-.*?</svg>', "", text, flags=re.DOTALL)
    page.write_text(text)
    _, picture = shown(page.as_uri(), tmp_path, 3000)
    red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), 2, 0)
    assert ((blue > 180) & (red < 100) & (green < 140)).sum() > 500  # the lines of one run
    assert ((red > 180) & (green > 90) & (green < 150) & (blue < 60)).sum() > 500  # of the other
