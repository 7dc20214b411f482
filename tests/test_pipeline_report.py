"""The page about a run, and MLflow's page of it, as a browser shows them."""

import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from mlflow_server import MlflowServer
from PIL import Image

from pipeline.report.chart import chart, thinned, ticks
from pipeline.report.page import document, table, text
from pipeline.report.run_data import RunData, sessions
from pipeline.report.run_page import write_report
from pipeline.run import fit
from pipeline.settings.presets import find_preset
from pipeline.tracking import journal

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--window-size=1200,2400"),
)
browser = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium; install Debian's")


class Page(HTMLParser):
    """Words, tags and addresses of a page; tags that are not closed are an error."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


# --- spans ---


def test_ticks_are_round_and_cover_the_values():
    assert ticks(0.0, 1.0, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(3, 97, 5) == [0, 20, 40, 60, 80, 100]
    low, *_, high = ticks(7.0, 7.0, 4)
    assert low < 7 < high


def test_a_chart_has_a_line_for_each_curve_and_none_for_what_is_not_there():
    svg = chart({"a": [(0, 1.0), (10, 2.0)], "b": [(0, float("nan"))], "c": []}, label="step")
    assert svg.count("<polyline") == 1 and "legend" not in svg
    assert chart({}) == chart({"a": []}) == ""
    points = re.search(r'points="([^"]+)"', svg)[1].split()
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points)
    assert x0 < x1 and y0 > y1  # up is less


def test_long_curves_are_thinned_to_means():
    line = [(float(i), float(i % 2)) for i in range(6000)]
    short = thinned(line)
    assert len(short) <= 601 and short[-1] == line[-1] and short[0][1] == pytest.approx(0.5)


def test_what_is_shown_is_escaped_and_has_no_secrets():
    shown = document("<b>", [table(["x"], [[text("<script>s3://A:B@c</script>")]])])
    page = Page(shown)
    assert "script" not in page.tags and "s3://***@c" in "".join(page.words)


def test_time_of_a_run_is_that_of_its_starts():
    events = [
        {"event": "start", "time": 100.0},
        {"event": "tags", "time": 101.0, "tags": {"workers": "4"}},
        {"event": "start", "time": 1000.0},  # the first start was cut short
        {"event": "tags", "time": 1001.0, "tags": {"workers": "2"}},
        {"event": "status", "time": 1100.0, "status": "FINISHED"},
        {"event": "evaluation", "time": 9000.0},  # later, by hand
    ]
    found = sessions(events, [150.0, 200.0, 1050.0])
    assert [(s.start, s.end, s.workers) for s in found] == [(100, 200, 4), (1000, 1100, 2)]


def test_what_is_no_run_has_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        write_report(tmp_path)


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    config = find_preset("demo").replace({"data.dir": "s3://KEY:S3CR3T@bucket/x"})
    (tmp_path / "config.json").write_text(json.dumps(config.flat()))
    journal.tell(tmp_path, "start", name="demo", experiment="x", settings={}, parent=None, number=1)
    page = write_report(tmp_path).read_text()
    assert "running" in "".join(Page(page).words)
    assert "S3CR3T" not in page


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
def test_the_page_stands_alone_and_tells_the_run(run):
    outcome, folder, _ = run
    page = Page((folder / "report.html").read_text())
    assert all(address.startswith("data:") for address in page.addresses)
    assert "script" not in page.tags and "link" not in page.tags
    words = " ".join(page.words)
    for word in (
        *("Loss", "Learning rate", "Accuracy", "Throughput", "Wait for data", "Probes"),
        *("One crop against many", "center", "ten", "Classes", "Predictions and their crops"),
        *("Checkpoints", "Machines", "Versions and hardware", "Configuration", "optim.lr"),
        *("worker-hours", "cost", "version.torch", "finished", "manifest SHA-256"),
    ):
        assert word in words, word
    assert page.tags.count("svg") >= 9 and page.tags.count("img") >= 12
    run = RunData.read(folder)
    assert f"{outcome.protocols['ten']['top1']:.1%}" in words
    assert 0 < run.hours() < 1 and run.worker_hours() == run.hours()
    assert any(name.startswith("system/") for name in run.lines)


@pytest.mark.ray
@browser
def test_a_browser_shows_the_page(run, tmp_path):
    _, folder, _ = run
    elements, picture = shown((folder / "report.html").as_uri(), tmp_path, 3000)
    assert elements.count("<polyline") >= 9
    colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 200  # curves, pictures and text, not an empty sheet
    blue = sum(count for count, (r, g, b) in colours if b > 180 and r < 100 and g < 140)
    assert blue > 500  # the first curve of each chart


@pytest.mark.ray
@browser
def test_mlflows_page_shows_curves_checkpoint_and_evaluation(run, tmp_path):
    import mlflow

    outcome, folder, server = run
    at = next(iter(json.loads((folder / "mlflow.json").read_text())["servers"].values()))
    base = f"{server.uri}/#/experiments/{at['experiment_id']}/runs/{at['run_id']}"
    overview, _ = shown(base, tmp_path, 30_000)
    assert "Finished" in overview and "short" in overview
    assert Path(outcome.checkpoint).name in overview  # the logged model
    assert "eval/val/ten/top1" in overview or "final/ten/top1" in overview
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
    assert figures["eval/val/ten/top1"] == outcome.protocols["ten"]["top1"]
    paths = {item.path for item in client.list_artifacts(at["run_id"])}
    assert {"report.html", "result.json", "evaluations", "checkpoint"} <= paths
