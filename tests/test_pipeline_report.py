"""The page about a run, and MLflow's page of it, as a browser shows them."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from mlflow_server import MlflowServer
from PIL import Image
from test_support_page import Page

from pipeline.evaluation.metrics import METRICS, Metric
from pipeline.report.calibration_chart import calibration_chart
from pipeline.report.run_data import RunData, sessions
from pipeline.report.run_page import tiles, together, write_report
from pipeline.report.run_state import RUNNING
from pipeline.run import fit
from pipeline.settings.presets import find_preset
from pipeline.tracking import journal
from support.files import append_line, read_lines
from support.lease import LEASE, owner

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--window-size=1200,2400"),
)
CHARTS = ("loss", "gradient-norm")
browser = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium; install Debian's")


# --- a folder of a run ---


def test_time_of_a_run_is_that_of_its_starts():
    events = [
        {"event": "start", "time": 100.0},
        {"event": "tags", "time": 101.0, "tags": {"workers": "4"}},
        {"event": "start", "time": 1000.0},  # the first start was cut short
        {"event": "tags", "time": 1001.0, "tags": {"workers": "2"}},
        {"event": "status", "time": 1100.0, "status": "FINISHED"},
        {"event": "evaluation", "time": 9000.0},  # later, by hand
    ]
    starts = sessions(events, [150.0, 200.0, 1050.0])
    assert [(s.start, s.end, s.workers) for s in starts] == [(100, 200, 4), (1000, 1100, 2)]


def test_a_folder_without_a_run_has_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        write_report(tmp_path)


def test_a_run_that_has_only_started_has_a_page(tmp_path):
    config = find_preset("demo").replace({"data.dir": "s3://KEY:S3CR3T@bucket/x"})
    (tmp_path / "config.json").write_text(json.dumps(config.flat()))
    journal.write_event(
        tmp_path, "start", name="demo", experiment="x", settings={}, parent=None, number=1
    )
    page = write_report(tmp_path).read_text()
    assert ">interrupted</span>" in page  # there is no driver
    assert "S3CR3T" not in page
    assert ">running on 20" in write_report(tmp_path, state=RUNNING).read_text()
    (tmp_path / LEASE).write_text(json.dumps({"owner": owner(), "number": 1}))
    assert ">running on 20" in write_report(tmp_path).read_text()
    (tmp_path / "there").mkdir()  # a store, of which this is a copy: the lease is there
    (tmp_path / LEASE).rename(tmp_path / "there" / LEASE)
    assert RunData(tmp_path).state == "interrupted"
    assert RunData(tmp_path, (tmp_path / "there").as_uri()).state == RUNNING


def evaluated(names, classes):
    """The result of an evaluation with these metrics, of made-up figures."""
    own = {"views": 1, "images": 90, "ece": 0.1234, "mean_per_class": 0.5}
    own |= {"tail": 0.25, "tail_low": 0.2, "tail_high": 0.3}
    for place, name in enumerate(names, start=1):
        own |= {name: place / 16, f"{name}_low": place / 17, f"{name}_high": place / 15}
    wnids = [f"n{number:08}" for number in range(classes)]
    change = {"gained": 7, "lost": 2, "gain": 0.05, "gain_low": 0.01, "gain_high": 0.09, "p": 0.03}
    return {
        **{"checkpoint": "/runs/x/checkpoints/step-000000100", "data": "s3://A:S3CR3T@b/set"},
        **{"images": 90, "split": "val", "average": "logits", "missing": ["n01440764"] * 60},
        **{"step": 100, "selected_on": {"data": "s3://A:S3CR3T@b/set", "split": "val"}},
        "resized": {"center": [36], "five": []},
        "unreadable": [["val-00000.tar/cat_7", "cannot identify image file"]],
        "classes": {
            "classes": 20,
            "thirds": {"tail": {"classes": 6, "fewest": 9, "most": 1412}},
            "left_out": ["figures over WordNet: the classes have no common ancestor in WordNet"],
        },
        "protocols": {"center": own, "five": {**own, "views": 5}},
        "changes": {"five": change},
        "real": {"protocols": {"center": {"top1": 0.8125}, "five": {"top1": 0.875}}},
        "calibration": {name: [[0, 0.0, 0.0], [9, 0.5, 0.4]] for name in ("center", "five")},
        "confusions": {name: [[wnids[0], wnids[1], 5]] for name in ("center", "five")},
    }


@pytest.fixture
def begun(tmp_path):
    """A function that makes the folder of a run with records of metrics and an evaluation."""

    def make(names, classes=20):
        (tmp_path / "config.json").write_text(json.dumps(find_preset("demo").flat()))
        facts = {"name": "demo", "experiment": "x", "settings": {}, "parent": None, "number": 1}
        journal.write_event(tmp_path, "start", **facts)
        for step in range(0, 1000, 10):
            record = {"kind": "train", "step": step, "train/loss": 1.0, "time": 1.0 + step}
            append_line(tmp_path / journal.RECORDS, record, durable=False)
        for step in (500, 999):
            values = {f"val/{name}": step / 2000 for name in names}
            record = {"kind": "eval", "step": step, "time": 1.0 + step, **values}
            append_line(tmp_path / journal.RECORDS, record, durable=False)
        folder = tmp_path / "evaluations" / "one"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(evaluated(names, classes)))
        rows = [f"n{number:08},{10 + number},0.5,{number / classes}" for number in range(classes)]
        text = "\n".join(["wnid,images,top1 center,top1 five", *rows])
        (folder / "classes.csv").write_text(text)
        return tmp_path

    return make


def rows_of(page):
    """Texts of the cells of every table, row by row."""
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[re.sub("<[^>]*>", "", cell) for cell in row] for row in cells]


def test_metrics_of_the_table_are_columns_and_curves_of_the_page(begun, monkeypatch):
    more = {
        "brier": Metric(title="Brier score", values=lambda p: p.loss, higher_is_better=False),
        "top3": Metric(
            title="top-3", values=lambda p: p.hits(3), higher_is_better=True, is_share=True
        ),
    }
    for name, metric in more.items():
        monkeypatch.setitem(METRICS, name, metric)
    page = write_report(begun(list(METRICS))).read_text()
    rows = rows_of(page)
    first = next(place for place, row in enumerate(rows) if row[0] == "crops")
    head, center, five, changes, _, change = rows[first : first + 6]
    cells = dict(zip(head, center, strict=True))
    assert cells["loss"] == "0.0625 [0.0588, 0.0667]" and cells["views"] == "1"
    assert cells["top-1"] == "12.50% [11.76, 13.33]" and cells["ECE"] == "0.1234"
    assert cells["Brier score"] == "0.2500 [0.2353, 0.2667]"  # no share
    assert cells["top-3"] == "31.25% [29.41, 33.33]"
    assert five[:3] == ["five", "whole", "5"] and cells["resized to"] == "36"
    cells = dict(zip(changes, change, strict=True))
    assert cells["gain on center, points"] == "+5.00 [+1.00, +9.00]"
    assert cells["right / wrong"] == "+7 / -2" and cells["p"] == "0.03"
    assert cells["ReaL, top-1"] == "87.50%"
    told = Page(page)
    told.assert_stands_alone()
    words = " ".join(told.words)
    assert "val/brier" in words and "val/top3: 49.95% at 999" in words  # hover texts of the curves
    assert page.count('<svg id="metric-brier"') == 1


def test_the_page_shows_all_records_classes_and_what_the_head_lacks(begun):
    page = write_report(begun(["loss", "top1"]), price_per_hour=2.0).read_text()
    chart = page.split('<svg id="loss"')[1].split("</svg>")[0]
    paths = re.findall(r'class="line".*? d="([^"]+)"', chart)
    lengths = [len(re.findall("[ML]", path)) for path in paths]
    assert lengths == [100, 2]  # train/loss and val/loss
    words = " ".join(Page(page).words)
    assert "60 classes of the data are not in the head" in words
    assert words.count("tench (n01440764)") == 50
    assert "The 12 worst of 20 classes" in words and "by top-1 under five" in words
    assert "All 20 classes, worst first" in words
    names = [f"digit {number} n{number:08}" for number in range(10)]
    names += [f"n{number:08}" for number in range(10, 20)]
    assert [row[0] for row in rows_of(page) if row[0] in names and len(row) == 4] == [
        *names[:12],
        *names,
    ]
    assert "S3CR3T" not in page and "s3://***@b/set" in words
    assert "top-5" not in words  # it was not measured
    assert "worker-hours in all, at 2 an hour:" in words


def test_what_changed_the_course_of_a_run_is_marked_at_its_step(begun):
    run_dir = begun(["top1"])
    settings = json.loads((run_dir / "config.json").read_text())
    changes = {"skip_steps": ["200:210"], "lr_factors": ["300:0.5", "5000:0.1"]}
    (run_dir / "config.json").write_text(json.dumps(settings | changes))
    event = {"event": "start", "time": 450.5, "name": "demo", "number": 2}
    append_line(run_dir / journal.EVENTS, event, durable=False)
    for step, workers in ((1000, 8), (1010, 8), (1020, 7)):
        record = {"kind": "train", "step": step, "time": 1.0 + step, "workers": workers}
        append_line(run_dir / journal.RECORDS, record, durable=False)
    events = read_lines(run_dir / journal.EVENTS)
    starts = [line | {"time": 0.5 if line["number"] == 1 else 450.5} for line, _ in events]
    (run_dir / journal.EVENTS).write_text("".join(json.dumps(line) + "\n" for line in starts))
    assert RunData(run_dir).moments() == {
        440: "resumed",  # the time of its record is 441
        200: "steps 200 to 210 skipped",
        300: "learning rate times 0.5",
        1010: "8 workers before, 7 after",
    }
    page = write_report(run_dir).read_text()
    assert page.count("<title>resumed</title>") == page.count('<g class="moment"') / 4 > 1


def test_the_loss_of_a_run_has_its_extremes_and_its_spikes(begun):
    run_dir = begun(["top1"])
    records = [json.loads(line) for line in (run_dir / journal.RECORDS).read_text().splitlines()]
    for record in records:
        if record["kind"] == "train":
            high = 40.0 if record["step"] == 500 else 1.1
            record |= {"train/loss_min": 0.9, "train/loss_max": high, "grad_norm": 2.0}
            record["grad_norm_max"] = 3.0
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run_dir / journal.RECORDS).write_text(text)
    page = write_report(run_dir).read_text()
    loss, norm = (page.split(f'<svg id="{name}"')[1].split("</svg>")[0] for name in CHARTS)
    assert "train/loss: 40 at step 500, mean 1<" in loss and loss.count('class="band"') == 1
    assert ">100<" in loss  # an axis that is logarithmic
    assert norm.count('class="band"') == 1 and 'class="spike"' not in norm


def test_many_machines_are_shown_by_their_median_their_extremes_and_the_odd_one_out():
    lines = {f"gpu_{n}": [(x, 90.0 + n % 3) for x in range(4)] for n in range(99)}
    lines["gpu_37"] = [(x, 20.0 + x) for x in range(3)]  # it was lost
    shown, bands = together(lines)
    middle, odd = shown
    assert shown[middle] == [(x, 91.0) for x in range(4)]
    assert odd.startswith("gpu_37,") and shown[odd] == lines["gpu_37"]
    lows, highs = bands[middle]
    assert lows == [(0, 20.0), (1, 21.0), (2, 22.0), (3, 90.0)]
    assert highs == [(x, 92.0) for x in range(4)]
    few = {"gpu_0": lines["gpu_0"]}
    assert together(few) == (few, {})


def test_every_figure_of_the_page_says_what_it_is_of(begun):
    page = write_report(begun(["loss", "top1"])).read_text()
    words = " ".join(Page(page).words)
    assert "split val of set, 90 images, 1 of them unreadable, which count as wrong" in words
    assert "logits averaged over the crops of an image" in words
    assert "Wilson's of shares, normal of other means, Tango's of gains" in words
    assert "Top-1 on val selects" in words and "optimistic" in words
    tile = "top-1 on val of set, five, 5 crops, logits averaged, step 100"
    assert f"{tile} (Wilson 95 %: 11.8 to 13.3)" in words  # the run has no result
    assert ["val-00000.tar/cat_7", "cannot identify image file"] in rows_of(page)
    assert "the classes have no common ancestor in WordNet" in words
    head, *rows = [row for row in rows_of(page) if row[1:] and "%" in row[1] or "over" in row[0]]
    cells = dict((row[0], row[1]) for row in rows if len(row) == len(head))
    assert cells["mean per class 20 classes"] == "50.00%"
    assert cells["tail 6 classes with 9 to 1,412 training images"] == "25.00% [20.00, 30.00]"


def test_the_headline_is_of_what_the_run_reports_whatever_was_evaluated_later(begun):
    run_dir = begun(["top1"])
    later = run_dir / "evaluations" / "later"
    later.mkdir()
    result = evaluated(["top1"], 20) | {"step": 50}
    for name in ("one", "later"):  # copies from a store are as old as each other
        (run_dir / "evaluations" / name / "result.json").write_text(json.dumps(result))
        os.utime(run_dir / "evaluations" / name / "result.json", (1.0, 1.0))
    journal.write_artifact(run_dir, later / "result.json", "evaluations/later")
    assert [item.folder.name for item in RunData(run_dir).evaluations] == ["later", "one"]
    assert "top-1 on val of set, one centre crop, step 50 (" in next(iter(tiles_of(run_dir)))
    reported = {"evaluation": "/elsewhere/evaluations/one", "checkpoint": "step-000000100"}
    (run_dir / "result.json").write_text(json.dumps(reported))
    assert [item.folder.name for item in RunData(run_dir).evaluations] == ["one", "later"]
    assert next(iter(tiles_of(run_dir))).startswith("top-1 on val, one centre crop (Wilson")


def tiles_of(run_dir):
    """The key numbers of a run."""
    return tiles(RunData(run_dir), None)


def test_calibration_shows_how_many_images_a_dot_is_and_joins_none():
    bins = [(0, 0.0, 0.0), (1, 0.2, 1.0), (99, 0.62, 0.58)]
    svg = calibration_chart({"center": bins})
    assert svg.count('class="line"') == 1  # the ideal alone
    assert "center: 0.62 sure, 0.58 right, 99 images" in svg and "1.00 right, 1 images" in svg
    assert calibration_chart({"center": bins[:1]}) == ""
    halves = diameters(calibration_chart({"center": [(50, 0.2, 0.5), (50, 0.8, 0.5)]}))
    (whole,) = diameters(calibration_chart({"center": [(100, 0.2, 0.5)]}))
    assert list(halves) == [pytest.approx(whole / 2**0.5, rel=0.01)]  # the area is as the number


def diameters(svg):
    """Widths of the dots of a chart, without those of its legend."""
    dots = "".join(re.findall(r'<g class="dots">.*?</g>', svg))
    return {2 * float(top) for top in re.findall(r'<path d="M0 ([\d.]+)C', dots)}


# --- a run, its page, and MLflow's ---


@pytest.fixture(scope="module")
def run(digits, ray_cluster, tmp_path_factory):
    """A short run that was recorded at a real server, and the server."""
    folder = tmp_path_factory.mktemp("report")
    server = MlflowServer(folder)
    server.start()
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", server.uri)
    small = {"model.depth": 1, "model.width": 64, "model.mlp_width": 64, "model.heads": 2}
    config = find_preset("demo").replace(
        {
            **small,
            "name": "short",
            "runs_dir": str(folder / "runs"),
            "data.dir": str(digits),
            "epochs": 4,
            "workers": 1,
            "log_every": 5,
            "eval_every": 20,
            "crops": "ten",
            "record.system_every_s": 0.5,
            "record.price_per_hour": 3.0,
            "probe.data": [str(digits)],
            "probe.every": 30,
        }
    )
    try:
        yield fit(config), folder / "runs" / "short", server
    finally:
        patch.undo()
        server.kill()


def shown(url: str, folder: Path, wait_ms: int) -> tuple[str, Image.Image]:
    """What a browser makes of an address: its elements, and a picture."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    command += [f"--virtual-time-budget={wait_ms}"]
    picture = folder / f"{time.monotonic_ns()}.png"
    elements = subprocess.run(
        [*command, "--dump-dom", url], capture_output=True, text=True, timeout=180, check=True
    )
    subprocess.run(
        [*command, f"--screenshot={picture}", url], capture_output=True, timeout=180, check=True
    )
    return elements.stdout, Image.open(picture)


@pytest.mark.ray
@pytest.mark.server
def test_the_page_stands_alone_and_shows_the_run(run):
    outcome, folder, _ = run
    content = (folder / "report.html").read_text()
    page = Page(content)
    page.assert_stands_alone()
    assert "http" not in content
    words = " ".join(page.words)
    for word in (
        *("Loss", "Learning rate", "Accuracy", "Throughput", "Wait for data", "Probes"),
        *("One crop against many", "center", "ten", "Classes", "Predictions and their crops"),
        *("Checkpoints", "Machines", "Versions and hardware", "Configuration", "optim.lr"),
        *("worker-hours", "cost", "version.torch", "finished", "manifest SHA-256"),
    ):
        assert word in words, word
    assert page.tags.count("svg") >= 9 and page.tags.count("img") >= 12
    for name in METRICS:
        assert f"val/{name}" in words, name
    assert "top-1 on val, one crop" in words  # of the checkpoints
    run = RunData(folder)
    assert f"{outcome.protocols['ten']['top1']:.1%}" in words
    assert 0 < run.hours() < 1 and run.worker_hours() == run.hours()
    assert any(name.startswith("system/") for name in run.lines)


@pytest.mark.ray
@pytest.mark.server
@browser
def test_a_browser_shows_the_page(run, tmp_path):
    _, folder, _ = run
    elements, picture = shown((folder / "report.html").as_uri(), tmp_path, 3000)
    assert elements.count('<g class="line">') >= 9
    colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 200  # curves, pictures and text, not an empty sheet
    blue = sum(count for count, (r, g, b) in colours if b > 180 and r < 100 and g < 140)
    assert blue > 500  # the first curve of each chart


@pytest.mark.ray
@pytest.mark.server
@browser
def test_mlflows_page_shows_curves_checkpoint_and_evaluation(run, tmp_path):
    import mlflow

    outcome, folder, server = run
    at = next(iter(json.loads((folder / "mlflow.json").read_text())["servers"].values()))
    base = f"{server.uri}/#/experiments/{at['experiment_id']}/runs/{at['run_id']}"
    overview, _ = shown(base, tmp_path, 30_000)
    assert "Finished" in overview and "short" in overview
    assert f"short-step-{outcome.steps}" in overview  # the logged model
    assert "eval/val/ten-logits/top1" in overview
    plot = {
        "runs": json.dumps([at["run_id"]]),
        "metric": '"train/loss"',
        "experiments": json.dumps([at["experiment_id"]]),
        "plot_metric_keys": '["train/loss"]',
        "plot_layout": '{"autosize": true, "xaxis": {}, "yaxis": {}}',
        "x_axis": "step",
        "y_axis_scale": "linear",
        "line_smoothness": "1",
        "show_point": "true",
        "deselected_curves": "[]",
        "last_linear_y_axis_range": "[]",
    }
    address = f"{server.uri}/#/metric?{urlencode(plot, quote_via=quote)}"
    curves, _ = shown(address, tmp_path, 30_000)
    drawn = re.findall(r'<path class="js-line"[^>]* d="([^"]+)"', curves)
    assert drawn and max(line.count("L") for line in drawn) > 3  # the curve of the loss
    client = mlflow.MlflowClient(server.uri)
    model = client.get_logged_model(at["models"][Path(outcome.checkpoint).name])
    figures = {metric.key: metric.value for metric in model.metrics}
    assert figures["eval/val/ten-logits/top1"] == outcome.protocols["ten"]["top1"]
    paths = {item.path for item in client.list_artifacts(at["run_id"])}
    assert {"report.html", "result.json", "evaluations"} <= paths
