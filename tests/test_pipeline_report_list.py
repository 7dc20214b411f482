"""The list of runs: how each stands, what it measured and cost, by a few small reads."""

import json
import os
import time

import pytest
import s3_server
from recorded_runs import begun, ended, finished, record, started

from pipeline.__main__ import main
from pipeline.report.run_list import list_runs, rows
from pipeline.report.run_summary import TAIL
from shards.dataset import store
from support.lease import LEASE, LIFETIME_S, owner

NOW = 1_700_000_000.0


def listed(runs):
    """The runs by name."""
    return {run.name: run for run in list_runs(str(runs))}


def test_a_run_is_named_with_its_preset_figures_hours_and_cost(tmp_path):
    """All figures are worked out by hand; the first start was cut short half an hour after it."""
    events = [*started(NOW, 4), *started(NOW + 7200, 2), *ended(NOW + 9000, "FINISHED")]
    run = begun(tmp_path / "one", *events, optim__lr=0.5, workers=4, record__price_per_hour=3.0)
    record(run, "train", 50, NOW + 1800, images_per_s=100.0)
    record(run, "eval", 100, NOW + 8900, val__top1=0.4)
    finished(run, top1=0.625)
    assert rows(list_runs(str(tmp_path)), NOW + 9060, None)[1] == [
        *("one", "demo +2", "finished", "100/100", "100%", "500"),
        *("0.6250 +-0.0150", "val/ten-logits"),
        # 0.5 h of 4 workers, and 0.5 h of 2
        *("1.00", "3.00", "9.00", "1m00s ago"),
    ]
    assert listed(tmp_path)["one"].changed == ("optim.lr", "epochs")  # workers decide no result
    assert rows(list_runs(str(tmp_path)), NOW, 2.0)[1][10] == "6.00"


def test_an_unfinished_run_has_its_place_and_its_last_evaluation(tmp_path):
    run = begun(tmp_path / "one", *started(NOW))
    for step in (10, 20, 30):
        record(run, "train", step, NOW + step, images_per_s=100.0 + step)
        record(run, "eval", step, NOW + step, val__top1=step / 100)
    record(run, "rewind", 20, NOW + 40)  # the records of step 30 are void
    cells = rows(list_runs(str(tmp_path)), NOW + 100, None)[1]
    assert cells[3:8] == ["20/100", "20%", "120", "0.2000", "val/center"]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "interrupted"),  # killed before it opened its data
        (started(NOW), "interrupted"),
        ([*started(NOW), *ended(NOW, "KILLED")], "interrupted"),
        ([*started(NOW), *ended(NOW, "FAILED")], "failed"),
        ([*started(NOW), *ended(NOW, "FAILED", outcome="diverged")], "diverged"),
        ([*started(NOW), *ended(NOW, "FINISHED", outcome="far above chance")], "stopped"),
        ([*started(NOW), *ended(NOW, "FAILED", outcome="diverged"), *started(NOW)], "interrupted"),
    ],
)
def test_a_run_without_a_result_says_how_it_ended(events, state, tmp_path):
    run = begun(tmp_path / "one", *events)
    (run / LEASE).write_text("{}")
    assert listed(tmp_path)["one"].state == state


@pytest.mark.parametrize(
    ("changes", "age_s", "state"),
    [
        ({}, 0, "running"),
        ({"host": "another"}, 0, "running"),
        ({"host": "another"}, LIFETIME_S + 5, "interrupted"),  # it was not renewed
        ({"pid": 1 << 22}, 0, "interrupted"),  # known to be gone
    ],
)
def test_a_run_is_running_while_its_driver_renews_the_lease(changes, age_s, state, tmp_path):
    run = begun(tmp_path / "one", *started(NOW), *ended(NOW, "FAILED"), *started(NOW))
    (run / LEASE).write_text(json.dumps({"owner": {**owner(), **changes}, "number": 7}))
    os.utime(run / LEASE, (time.time() - age_s,) * 2)
    assert listed(tmp_path)["one"].state == state
    finished(run, top1=0.5)
    assert listed(tmp_path)["one"].state == "finished"


def test_trials_of_a_search_are_one_row(tmp_path):
    search = tmp_path / "demo-warmup-lr"
    for number, workers in enumerate((1, 2)):
        events = [*started(NOW, workers), *ended(NOW + 3600, "FINISHED")]
        finished(begun(search / f"trials/rung-1-0{number}", *events), top1=0.5)
    owned = begun(search / "trials/rung-1-02", *started(NOW))
    record(owned, "train", 10, NOW + 1800, images_per_s=250.0)
    (owned / LEASE).write_text(json.dumps({"owner": owner(), "number": 1}))
    plan = {"preset": "demo", "rungs": ["8/16", "2/4"], "search": {"seeds": 3}, "run": {}}
    (search / "search.json").write_text(json.dumps(plan))
    (cells,) = rows(list_runs(str(tmp_path)), NOW, 2.0)[1:]
    # 8 + 2 trials and 3 pairs; 1 h of one worker, 1 h of two, half an hour of one
    assert cells[:5] == ["demo-warmup-lr", "demo", "interrupted", "2/16 trials", "12%"]
    assert cells[5:11] == ["250", "-", "-", "-", "3.50", "7.00"]
    assert len(list_runs(str(search / "trials"))) == 3


def test_a_broken_folder_is_named_and_hides_no_other(tmp_path, caplog):
    finished(begun(tmp_path / "good", *started(NOW), *ended(NOW, "FINISHED")), top1=0.5)
    for name, file, text in (
        ("cut", "config.json", '{"name": '),
        ("other", "events.jsonl", '{"event": "start"}\n'),
        ("list", "result.json", "[1]"),
        ("words", "result.json", '{"protocols": {"ten": {"top1": "a"}}}'),
        ("bare", "events.jsonl", '{"event": "tags", "time": 1.0, "tags": {}}\n'),
    ):
        (begun(tmp_path / name, *started(NOW)) / file).write_text(text)
    (tmp_path / "lost" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mlartifacts" / "1").mkdir(parents=True)  # no run
    (tmp_path / "mlflow.db").touch()
    found = listed(tmp_path)
    assert {name: run.state for name, run in found.items()} == {
        **dict.fromkeys(("cut", "other", "list", "lost", "words", "bare"), "unreadable"),
        "good": "finished",
    }
    assert main(["list", str(tmp_path)]) == 0
    for text in (
        *("lost cannot be read: it has no config.json", "cut cannot be read: config.json is no"),
        *("other cannot be read: a line or file lacks 'time'", "result.json is no JSON object"),
        *("top1 is 'a', which is no number", "events.jsonl has no start"),
    ):
        assert text in caplog.text


def test_json_has_every_field_and_no_secret(tmp_path, capsys):
    events = [*started(NOW), *ended(NOW + 3600, "FINISHED")]
    finished(begun(tmp_path / "one", *events, data__classes="s3://K:S3CR3T@b/x"), top1=0.5)
    assert main(["list", str(tmp_path), "--json", "--price-per-hour", "4"]) == 0
    said = capsys.readouterr().out
    (run,) = json.loads(said)
    assert run["name"] == "one" and run["cost"] == 4.0 and run["changed_at"] == NOW + 3600
    assert "data.classes" in run["changed"] and "S3CR3T" not in said


def test_a_place_that_is_none_or_one_run_is_refused(tmp_path, capsys):
    begun(tmp_path / "runs" / "one")
    assert main(["list", str(tmp_path / "nowhere")]) == 2
    assert main(["list", str(tmp_path / "runs" / "one")]) == 2
    said = capsys.readouterr().err
    assert "nowhere does not exist" in said and "is one run; give the folder" in said


def test_of_a_long_run_in_a_store_only_the_end_is_read(tmp_path, monkeypatch):
    events = [*started(NOW), *ended(NOW + 9, "FAILED")]
    run = begun(tmp_path / "long", *events)
    record(run, "eval", 0, NOW, val__top1=0.1)
    lines = [
        {"kind": "train", "step": step, "time": NOW, "images_per_s": 5.0} for step in range(20_000)
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)
    record(run, "eval", 20_000, NOW, val__top1=0.7)
    assert (run / "metrics.jsonl").stat().st_size > 10 * TAIL
    objects = s3_server.Objects()
    with s3_server.serving("bucket", objects) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for number in range(3):
            for path in run.iterdir():
                place = store.locate(f"s3://bucket/runs/run-{number}/{path.name}")
                store.write_bytes(*place, path.read_bytes())
        objects.requests.clear()
        objects.reads.clear()
        found = list_runs("s3://bucket/runs")
    assert [(run.name, run.step, run.top1) for run in found] == [
        (f"run-{number}", 20_000, 0.7) for number in range(3)
    ]
    assert len(objects.requests) <= 3 + 3 * 8
    assert sum(size for _, size in objects.reads) < 3 * 2 * TAIL
