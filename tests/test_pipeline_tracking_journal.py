"""What is valid in the journal after rewinds, and that its length costs a start nothing."""

import json
import random

import mlflow
import pytest

from pipeline.report.run_data import RunData
from pipeline.settings.presets import find_preset
from pipeline.tracking import journal, mlflow_sync
from pipeline.tracking.recorder import Recorder
from support import files
from support.files import append_line, read_lines


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    """The embedded file as the server, looked after often."""
    monkeypatch.setattr(mlflow_sync, "PAUSE_S", 0.05)
    monkeypatch.setattr(mlflow_sync, "PATIENCE_S", 60)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def open_record(folder) -> Recorder:
    folder.mkdir(parents=True, exist_ok=True)
    config = find_preset("demo").flat()
    (folder / "config.json").write_text(json.dumps(config))
    return Recorder(folder, name="run", experiment="test", settings={"lr": 0.1})


def train(recorder, steps, factor=1.0) -> list[bool]:
    return [
        recorder.add({"kind": "train", "step": step, "train/loss": factor / step}) for step in steps
    ]


def run_at(tmp_path):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return client, run


# --- rewinding ---


def surviving(lines):
    """The valid records, as a reader would keep them who follows the file as it grows."""
    kept = []
    for line in lines:
        if line["kind"] == "rewind":
            kept = [each for each in kept if each["step"] <= line["step"]]
        else:
            kept.append(line)
    return kept


def test_valid_records_are_those_that_no_later_rewind_takes_back(tmp_path):
    choose = random.Random(5)
    for _ in range(200):
        kinds = choose.choices(["train", "eval", "rewind"], [6, 2, 1], k=40)
        lines = [
            {"kind": kind, "step": choose.randrange(20), "n": n} for n, kind in enumerate(kinds)
        ]
        path = tmp_path / journal.RECORDS
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = journal.read_records(tmp_path)
        assert [line for line, _ in found] == surviving(lines)
        ends = dict((line["n"], end) for line, end in read_lines(path))
        assert all(end == ends[line["n"]] for line, end in found)


def test_a_run_that_was_rewound_is_recorded_again_from_there(tmp_path):
    folder = tmp_path / "run"
    recorder = open_record(folder)
    assert all(train(recorder, range(1, 11)))
    recorder.add({"kind": "eval", "step": 10, "val/top1": 0.5})
    recorder.add({"kind": "system", "system/cpu": 7.0})
    recorder.finish("KILLED")
    journal.rewind(folder, 4)
    recorder = open_record(folder)
    assert train(recorder, range(1, 8), factor=2.0) == [False] * 4 + [True] * 3
    recorder.finish("KILLED")
    recorder = open_record(folder)  # a restart knows it, too
    assert train(recorder, range(6, 10), factor=2.0) == [False, False, True, True]
    assert recorder.add({"kind": "eval", "step": 9, "val/top1": 0.6})
    recorder.finish("FINISHED")
    run = RunData(folder)
    expected = [(step, (1 if step <= 4 else 2) / step) for step in range(1, 10)]
    assert run.lines["train/loss"] == expected
    assert run.lines["val/top1"] == [(9, 0.6)] and run.last_step == 9
    assert len(run.lines["system/cpu"]) == 1  # machines have no steps to take back
    assert run.tags()["rewound"].startswith("to step 4 at 20")
    # what MLflow was told before stays, with an earlier time; the last point of a step is valid
    client, at = run_at(tmp_path)
    assert at.data.tags["rewound"] == run.tags()["rewound"]
    history = client.get_metric_history(at.info.run_id, "train/loss")
    last = {p.step: p.value for p in sorted(history, key=lambda point: point.timestamp)}
    assert [(step, last[step]) for step in range(1, 10)] == expected
    points = [(point.step, point.timestamp, point.value) for point in history]
    assert len(points) == len(set(points))
    assert at.data.metrics["val/top1"] in (0.5, 0.6)


def test_every_rewind_is_tagged_by_the_starts_that_follow(tmp_path):
    folder = tmp_path / "run"
    recorder = open_record(folder)
    train(recorder, range(1, 11))
    recorder.finish("KILLED")
    for step in (8, 4):
        journal.rewind(folder, step)
        open_record(folder).finish("KILLED")
    open_record(folder).finish("KILLED")
    tags = [e["tags"]["rewound"] for e in journal.read_events(folder) if e["event"] == "tags"]
    assert tags[1].startswith(tags[0]) and "; to step 4 at " in tags[1] and tags[2:] == tags[1:2]


def test_a_server_that_comes_later_gets_only_the_valid_records(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    recorder = open_record(folder)
    train(recorder, range(1, 11))
    recorder.finish("KILLED")
    journal.rewind(folder, 4)
    recorder = open_record(folder)
    train(recorder, range(5, 9), factor=2.0)
    recorder.finish("FINISHED")
    (tmp_path / "later").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/later/mlflow.db")
    assert mlflow_sync.sync(folder) == 0
    client, at = run_at(tmp_path / "later")
    history = client.get_metric_history(at.info.run_id, "train/loss")
    expected = [(step, (1 if step <= 4 else 2) / step) for step in range(1, 9)]
    assert [(point.step, point.value) for point in history] == expected


# --- samples of the machines ---


def test_samples_have_their_own_file_and_reach_page_and_mlflow(tmp_path):
    folder = tmp_path / "run"
    for start in range(2):
        recorder = open_record(folder)
        train(recorder, range(1, 4))
        for number in range(5):
            value = float(10 * start + number)
            recorder.add({"kind": "system", "system/cpu_utilization_percentage": value})
        recorder.finish("FINISHED")
    kinds = {line["kind"] for line, _ in read_lines(folder / journal.RECORDS)}
    assert kinds == {"train"}
    samples = [line for line, _ in read_lines(folder / journal.SAMPLES)]
    assert [sample["step"] for sample in samples] == list(range(10))
    values = [float(10 * start + number) for start in range(2) for number in range(5)]
    run = RunData(folder)
    assert [value for _, value in run.lines["system/cpu_utilization_percentage"]] == values
    client, at = run_at(tmp_path)
    history = client.get_metric_history(at.info.run_id, "system/cpu_utilization_percentage")
    assert [(point.step, point.value) for point in history] == list(enumerate(values))


def test_an_old_folder_with_samples_among_its_records_is_still_read(tmp_path):
    folder = tmp_path / "run"
    recorder = open_record(folder)
    recorder.finish("FINISHED")
    line = {"kind": "system/0", "step": 0, "time": 1e9, "system/cpu": 1.0}
    append_line(folder / journal.RECORDS, line)
    open_record(folder).finish("FINISHED")
    assert [value for _, value in RunData(folder).lines["system/cpu"]] == [1.0]


def write_samples(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    line = {"kind": "system", "time": 1e9, **{f"system/{n}": float(n) for n in range(10)}}
    text = "".join(json.dumps({**line, "step": step}) + "\n" for step in range(count))
    (folder / journal.SAMPLES).write_text(text)


@pytest.mark.parametrize("count", [10, 100_000])
def test_a_start_reads_only_the_end_of_the_samples(tmp_path, monkeypatch, count):
    folder = tmp_path / "run"
    write_samples(folder, count)
    with (folder / journal.SAMPLES).open("a") as file:
        file.write('{"kind": "system", "st')  # cut off by a crash
    parsed = []
    loads = json.loads

    def counted(text, **more):
        parsed.append(len(text))
        return loads(text, **more)

    monkeypatch.setattr("pipeline.tracking.mlflow_sync.MlflowSync", lambda *_: None)
    monkeypatch.setattr(journal.json, "loads", counted)
    recorder = open_record(folder)
    assert sum(parsed) < 5_000
    recorder.add({"kind": "system", "system/1": 2.0})
    last, _ = journal.last_line(folder / journal.SAMPLES)
    assert last["step"] == count and last["system/1"] == 2.0


def test_a_page_reads_no_more_samples_than_it_can_draw(tmp_path):
    write_samples(tmp_path, 20_000)
    steps = [sample["step"] for sample, _ in journal.read_samples(tmp_path, most=1000)]
    assert 900 <= len(steps) <= 1000
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    assert steps[0] == 0 and steps[-1] > 19_900 and min(gaps) > 0 and max(gaps) <= 25


@pytest.mark.parametrize("count", [0, 1, 2, 37, 500])
def test_few_samples_are_all_read(tmp_path, count):
    write_samples(tmp_path, count)
    found = journal.read_samples(tmp_path, most=1000)
    assert [sample["step"] for sample, _ in found] == list(range(count))
    lines = list(read_lines(tmp_path / journal.SAMPLES))
    assert found == lines
    for start in (0, count // 2):  # from the middle on
        end = lines[start - 1][1] if start else 0
        assert journal.read_samples(tmp_path, end, most=1000) == lines[start:]


@pytest.mark.parametrize("size", [1, 100, (1 << 16) - 30, 1 << 16, 3 << 16])
@pytest.mark.parametrize("rest", ["", '{"cut'])
def test_the_last_line_is_found_whatever_its_length(tmp_path, size, rest):
    path = tmp_path / "lines"
    assert journal.last_line(path) == (None, 0)
    path.write_text(rest)
    assert journal.last_line(path) == (None, 0)
    for count in (1, 2, 3):
        whole = "".join(json.dumps({"n": n, "text": "x" * size}) + "\n" for n in range(count))
        path.write_text(whole + rest)
        line, end = journal.last_line(path)
        assert line["n"] == count - 1 and end == len(whole)


def test_of_a_long_backlog_of_samples_mlflow_gets_some_and_the_latest(tmp_path):
    folder = tmp_path / "run"
    open_record(folder).finish("KILLED")
    line = {"kind": "system", "time": 1e9, "system/cpu": 1.0}
    text = "".join(json.dumps({**line, "step": step}) + "\n" for step in range(5000))
    (folder / journal.SAMPLES).write_text(text)
    for _ in range(3):
        assert mlflow_sync.sync(folder) == 0
    client, at = run_at(tmp_path)
    history = client.get_metric_history(at.info.run_id, "system/cpu")
    steps = [point.step for point in history]
    assert 500 < len(steps) < 1100 and steps == sorted(set(steps)) and steps[-1] == 4999


# --- events ---


def test_an_event_is_compared_with_all_and_each_line_is_read_once(tmp_path, monkeypatch):
    reads = []
    real = files.read_lines

    def counted(path, start=0):
        for line in real(path, start):
            reads.append(line)
            yield line

    monkeypatch.setattr(journal, "read_lines", counted)
    for number in range(200):
        journal.write_event(tmp_path, "status", number=number % 150)
    assert len(journal.read_events(tmp_path)) == 150
    assert len(reads) == 150 + 150  # once by the log, and once here


def test_a_tag_or_data_that_returns_to_an_earlier_value_is_a_new_event(tmp_path):
    data = {"name": "x/val", "source": "s", "samples": 1}
    for value in ("4", "2", "2", "4"):
        journal.write_event(tmp_path, "tags", tags={"workers": value, "commit": "abc"})
        journal.write_event(tmp_path, "dataset", context="evaluation", digest=value, **data)
        journal.write_event(tmp_path, "dataset", context="training", digest="t", **data)
    events = journal.read_events(tmp_path)
    assert [e["tags"]["workers"] for e in events if e["event"] == "tags"] == ["4", "2", "4"]
    digests = [e["digest"] for e in events if e["event"] == "dataset"]
    assert digests == ["4", "t", "2", "4"]


def test_every_start_has_its_tags(tmp_path):
    for number in (1, 2):
        journal.write_event(tmp_path, "start", number=number)
        for _ in range(2):
            journal.write_event(tmp_path, "tags", tags={"workers": "4"})
    kinds = [event["event"] for event in journal.read_events(tmp_path)]
    assert kinds == ["start", "tags", "start", "tags"]


def test_events_of_another_process_and_of_a_new_folder_are_seen(tmp_path):
    journal.write_event(tmp_path, "tags", tags={"a": "1"})
    line = {"event": "tags", "tags": {"a": "2"}, "time": 1.0}
    append_line(tmp_path / journal.EVENTS, line)
    journal.write_event(tmp_path, "tags", tags={"a": "2"})
    assert len(journal.read_events(tmp_path)) == 2
    (tmp_path / journal.EVENTS).unlink()
    journal.write_event(tmp_path, "tags", tags={"a": "1"})
    assert len(journal.read_events(tmp_path)) == 1
