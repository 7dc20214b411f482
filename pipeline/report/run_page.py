"""The page about a run: one self-contained HTML file to send to a colleague.

runs/NAME (run_data) -> numbers, charts and tables -> templates/run.html -> runs/NAME/report.html
"""

import datetime
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.dataset import set_name
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.result_table import INTERVALS, averaged
from pipeline.report.evaluation_section import evaluation_values, metric_text, summary
from pipeline.report.run_data import Evaluation, RunData
from pipeline.report.run_state import RUNNING
from pipeline.settings.config import TrainConfig
from support.chart import MAX_NAMES, line_chart
from support.console import duration
from support.curve import Band, Line
from support.files import write_bytes
from support.page import Table, render

PAGE = "report.html"
# machines of a run that is longer are shown by the hour
LONG_MINUTES = 300


def write_report(
    run_dir: Path,
    *,
    price_per_hour: float | None = None,
    state: str | None = None,
    place: str | None = None,
) -> Path:
    """Write the page about a run, finished or not; returns its path.

    `price_per_hour`, of one worker, overrides the run's setting. A driver says by `state` how its
    run stands (`pipeline.report.run_state`); otherwise the record and the lease tell, which for a
    copy of a run in a store is in its `place`, a URI.
    """
    run, written = RunData(run_dir, place), clock(datetime.datetime.now().timestamp())
    state, defaults = state or run.state, TrainConfig().flat()
    page = render(
        "pipeline.report/run.html",
        settings=run.settings,
        started=clock(run.sessions[0].start),
        # the page of a driver that is gone may be its last one, so it says when that was true
        state=f"{state} on {written}" if state == RUNNING else state,
        tiles=tiles(run, price_per_hour),
        curves=curves(run),
        log_every=run.settings["log_every"],
        evaluation=evaluation_values(run.evaluations[0]) if run.evaluations else None,
        intervals=INTERVALS,
        others=[summary(item.result) for item in run.evaluations[1:]],
        machines=machines(run.lines),
        checkpoints=checkpoint_table(run),
        data=data_table(run),
        sessions=session_table(run),
        cost=cost_text(run, price_per_hour),
        tags=pairs(run.tags()),
        changed=pairs({k: v for k, v in run.settings.items() if defaults.get(k) != v}),
        all_settings=pairs(run.settings),
        written=written,
        run_dir=run.dir,
    )
    write_bytes(run_dir / PAGE, page.encode())
    return run_dir / PAGE


def tiles(run: RunData, price_per_hour: float | None) -> dict[str, str]:
    """The key numbers by name."""
    top1, values = METRICS["top1"].title, {}
    if run.evaluations:
        values |= headline(run, run.evaluations[0])
    elif line := run.lines.get("val/top1"):
        (step, last), split = line[-1], run.settings.get("data.eval_split", "val")
        values[f"{top1} on {split}, one centre crop, at step {step:,}"] = f"{last:.2%}"
    values["steps"] = f"{run.last_step:,}"
    if rate := run.images_per_s:
        values["images/s"] = f"{rate:,.0f}"
    values["time"] = duration(3600 * run.hours())
    if cost := run.cost(price_per_hour):
        values["cost"] = f"{cost:,.2f}"
    return values


def headline(run: RunData, evaluation: Evaluation) -> dict[str, str]:
    """The top-1 of an evaluation; one that the run does not report is named with data and step."""
    result, values = evaluation.result, {}
    where, step = result["split"], ""
    if not run.reports(evaluation):
        where, step = f"{where} of {set_name(result['data'])}", f", step {result['step'] or 0:,}"
    for name, item in result["protocols"].items():
        low, high = (100 * item[f"top1_{end}"] for end in ("low", "high"))
        title = f"{METRICS['top1'].title} on {where}, {averaged(name, item, result)}{step}"
        values[f"{title} (Wilson 95 %: {low:.1f} to {high:.1f})"] = f"{item['top1']:.1%}"
    return values


def curves(run: RunData) -> dict[str, str]:
    """Charts of the training by title, among them `val/NAME` of every metric."""
    lines, moments = run.lines, run.moments()
    shares = [name for name, metric in METRICS.items() if metric.is_share]
    shares = [f"{split}/{name}" for split in ("val", "select") for name in shares]
    means = [name for name, metric in METRICS.items() if not metric.is_share and name != "loss"]

    def chart(name: str, *names: str, percent: bool = False) -> str:
        shown = {each: lines[each] for each in names if each in lines}
        return line_chart(
            shown,
            name=name,
            label="step",
            logarithmic=None,
            percent=percent,
            bands={each: band(lines, each) for each in shown if f"{each}_max" in lines},
            moments=moments,
            until=run.last_step,
        )

    probes = [name for name in lines if name.startswith("probe/") and "seed" not in name]
    return {
        "Loss": chart("loss", "train/loss", "val/loss", "select/loss"),
        "Accuracy": chart("accuracy", *shares, percent=True),
        **{METRICS[name].title: chart(f"metric-{name}", f"val/{name}") for name in means},
        "Learning rate": chart("learning-rate", "lr"),
        "Gradient norm": chart("gradient-norm", "grad_norm"),
        "Throughput, images/s": chart("throughput", "images_per_s"),
        "Wait for data, and stall by checkpoints, of the slowest worker": chart(
            "wait", "wait", "stall", percent=True
        ),
        "Memory of the fullest worker, GiB": chart("worker-memory", "memory_gib"),
        "Model FLOP utilisation": chart("utilisation", "mfu", percent=True),
        "Probes, top-1": chart("probes", *probes, percent=True),
    }


def band(lines: Mapping[str, list], name: str) -> Band:
    """Minima and maxima of the intervals around a curve of means; of norms only maxima are kept."""
    return lines.get(f"{name}_min", ()), lines[f"{name}_max"]


def machines(lines: Mapping[str, list]) -> dict[str, str]:
    """Charts of the machines by title."""
    system = {k.removeprefix("system/"): v for k, v in lines.items() if k.startswith("system/")}
    until = max((line[-1][0] for line in system.values()), default=0.0)
    unit, minutes = ("hours", 60) if until > LONG_MINUTES else ("minutes", 1)

    def chart(name: str, ending: str, *, gpus: bool) -> str:
        names = [each for each in system if each.endswith(ending) and ("gpu_" in each) == gpus]
        shown, bands = together({k: [(x / minutes, y) for x, y in system[k]] for k in names})
        about = {"label": unit, "bands": bands, "until": until / minutes}
        return line_chart(shown, name=f"machine-{name}", **about)

    return {
        "GPU utilisation, %": chart("gpus", "utilization_percentage", gpus=True),
        "GPU memory, %": chart("gpu-memory", "memory_usage_percentage", gpus=True),
        "GPU power, W": chart("power", "power_usage_watts", gpus=True),
        "CPU utilisation, %": chart("cpus", "utilization_percentage", gpus=False),
        "Memory, %": chart("memory", "memory_usage_percentage", gpus=False),
        "Network, MB/s": chart("network", "megabytes_per_s", gpus=False),
    }


def together(lines: Mapping[str, Line]) -> tuple[Mapping[str, Line], dict[str, Band]]:
    """The lines as a chart can show them, and bands: many become a median within their extremes.

    The one that is farthest from the median, on average over its points, is shown beside it.
    """
    if len(lines) <= MAX_NAMES:
        return lines, {}
    values: dict[float, list[float]] = defaultdict(list)
    for line in lines.values():
        for x, y in line:
            values[x].append(y)
    middle = {x: statistics.median(ys) for x, ys in sorted(values.items())}
    extremes = [[(x, end(values[x])) for x in middle] for end in (min, max)]
    apart = {k: statistics.fmean(abs(y - middle[x]) for x, y in v) for k, v in lines.items()}
    odd, name = max(apart, key=apart.get), f"median of {len(lines):,}, within their extremes"
    return {name: list(middle.items()), f"{odd}, farthest from it": lines[odd]}, {
        name: (extremes[0], extremes[1])
    }


def checkpoint_table(run: RunData) -> Table:
    """The checkpoints on disk, with the metrics of each."""
    names = [n for n in METRICS if any(f"val/{n}" in item.metrics for item in run.checkpoints)]
    on = f"on {run.settings.get('data.eval_split', 'val')}, one crop"
    head = ["checkpoint", "images seen", *(f"{METRICS[name].title} {on}" for name in names)]
    rows = []
    for item in run.checkpoints:
        values = (metric_text(name, item.metrics, "val/") for name in names)
        rows.append([item.path.name, f"{item.samples:,}", *values])
    return Table(head=head, rows=rows)


def data_table(run: RunData) -> Table:
    """The shard sets and their hashes."""
    rows = [
        [e["name"], e["context"], e["source"], e["digest"][:16], f"{e['samples']:,}"]
        for e in run.events
        if e["event"] == "dataset"
    ]
    head = ["data", "for", "place", "manifest SHA-256", "images"]
    return Table(head=head, rows=rows, words=range(4))


def session_table(run: RunData) -> Table:
    """The starts of the run."""
    rows = [
        [clock(s.start), duration(3600 * s.hours), str(s.workers), f"{s.hours * s.workers:.3f}"]
        for s in run.sessions
    ]
    return Table(head=["started", "lasted", "workers", "worker-hours"], rows=rows)


def cost_text(run: RunData, price_per_hour: float | None) -> str:
    """Total worker-hours, and what they cost."""
    price, cost = run.price(price_per_hour), run.cost(price_per_hour)
    note = f", at {price:g} an hour: {cost:,.2f}" if price else "; no price was given"
    return f"{run.worker_hours():.3f} worker-hours in all{note}."


def pairs(values: Mapping[str, object]) -> Table:
    """A table of names and values."""
    rows = [[name, str(value)] for name, value in sorted(values.items())]
    return Table(head=["name", "value"], rows=rows, words=(0, 1))


def clock(seconds: float) -> str:
    """A point in time, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
