"""The page about a run that one would send to a colleague: one HTML file that stands alone.

runs/NAME (run_data) -> numbers, charts and tables -> templates/run.html -> runs/NAME/report.html
"""

import datetime
from collections.abc import Mapping
from pathlib import Path

from pipeline.evaluation.metrics import METRICS
from pipeline.report.evaluation_section import crop_table, crops, evaluation_values, metric_text
from pipeline.report.run_data import RunData
from pipeline.settings.config import TrainConfig
from support.chart import line_chart
from support.console import duration
from support.files import write_bytes
from support.page import Table, render

PAGE = "report.html"


def write_report(
    run_dir: Path, *, price_per_hour: float | None = None, status: str | None = None
) -> Path:
    """Write the page about a run, finished or not; its path.

    `price_per_hour` of one worker overrides the run's setting, `status` what its record says.
    """
    run = RunData.read(run_dir)
    price = price_per_hour or run.settings.get("record.price_per_hour")
    defaults = TrainConfig().flat()
    page = render(
        "pipeline.report/run.html",
        settings=run.settings,
        begun=clock(run.sessions[0].start),
        status=(status or run.status()).lower(),
        tiles=tiles(run, price),
        curves=curves(run.lines),
        evaluation=evaluation_values(run.evaluations[0]) if run.evaluations else None,
        others=[(item.result, crop_table(item.result)) for item in run.evaluations[1:]],
        machines=machines(run.lines),
        checkpoints=checkpoint_table(run),
        data=data_table(run),
        sessions=session_table(run),
        cost=cost(run, price),
        tags=pairs(run.tags()),
        changed=pairs({k: v for k, v in run.settings.items() if defaults.get(k) != v}),
        all_settings=pairs(run.settings),
        written=clock(datetime.datetime.now().timestamp()),
        run_dir=run.dir,
    )
    path = run_dir / PAGE
    write_bytes(path, page.encode())
    return path


def tiles(run: RunData, price: float | None) -> dict[str, str]:
    """The few numbers that matter, by their names."""
    top1, values = METRICS["top1"].title, {}
    if run.evaluations:
        for name, own in run.evaluations[0].result["protocols"].items():
            half = (own["top1_high"] - own["top1_low"]) / 2
            values[f"{top1}, {crops(name, own)}"] = f"{own['top1']:.1%} ±{100 * half:.1f}"
    elif line := run.lines.get("val/top1"):
        step, last = line[-1]
        values[f"{top1} at step {step:,}"] = f"{last:.2%}"
    values["steps"] = f"{run.last_step:,}"
    if rates := run.lines.get("images_per_s"):
        values["images/s"] = f"{sorted(y for _, y in rates)[len(rates) // 2]:,.0f}"
    values["time"] = duration(3600 * run.hours())
    if price:
        values["cost"] = f"{run.worker_hours() * price:,.2f}"
    return values


def curves(lines: Mapping[str, list]) -> dict[str, str]:
    """The charts of the training, by their titles; `val/NAME` of every metric among them."""
    shares = [f"val/{name}" for name, metric in METRICS.items() if metric.is_share]
    means = [name for name, metric in METRICS.items() if not metric.is_share and name != "loss"]

    def chart(name: str, *names: str, percent: bool = False) -> str:
        own = {each: lines[each] for each in names if each in lines}
        return line_chart(own, name=name, label="step", percent=percent)

    probes = [name for name in lines if name.startswith("probe/") and "seed" not in name]
    return {
        "Loss": chart("loss", "train/loss", "val/loss"),
        "Accuracy": chart("accuracy", *shares, percent=True),
        **{METRICS[name].title: chart(f"metric-{name}", f"val/{name}") for name in means},
        "Learning rate": chart("learning-rate", "lr"),
        "Throughput, images/s": chart("throughput", "images_per_s"),
        "Wait for data, share of step time": chart("wait", "wait", percent=True),
        "Gradient norm": chart("gradient-norm", "grad_norm"),
        "Model FLOP utilisation": chart("utilisation", "mfu", percent=True),
        "Probes, top-1": chart("probes", *probes, percent=True),
    }


def machines(lines: Mapping[str, list]) -> dict[str, str]:
    """The charts of the machines, by their titles."""
    own = {n.removeprefix("system/"): v for n, v in lines.items() if n.startswith("system/")}

    def chart(name: str, ending: str) -> str:
        kept = {each: line for each, line in own.items() if each.endswith(ending)}
        return line_chart(kept, name=f"machine-{name}", label="minutes")

    return {
        "Utilisation, %": chart("utilisation", "utilization_percentage"),
        "Memory, %": chart("memory", "memory_usage_percentage"),
        "Network, MB/s": chart("network", "megabytes_per_s"),
        "GPU power, W": chart("power", "power_usage_watts"),
    }


def checkpoint_table(run: RunData) -> Table:
    """The checkpoints that are on disk, with the metrics of each."""
    names = [n for n in METRICS if any(f"val/{n}" in item.metrics for item in run.checkpoints)]
    rows = [
        [
            item.path.name,
            f"{item.samples:,}",
            *(metric_text(n, item.metrics, "val/") for n in names),
        ]
        for item in run.checkpoints
    ]
    heads = [f"{METRICS[name].title}, one crop" for name in names]
    return Table(head=["checkpoint", "images seen", *heads], rows=rows)


def data_table(run: RunData) -> Table:
    """The shard sets by their hash."""
    rows = [
        [e["name"], e["context"], e["source"], e["digest"][:16], f"{e['samples']:,}"]
        for e in run.events
        if e["event"] == "dataset"
    ]
    head = ["data", "for", "place", "manifest SHA-256", "images"]
    return Table(head=head, rows=rows, words=range(4))


def session_table(run: RunData) -> Table:
    """The starts of the run."""
    rows = []
    for session in run.sessions:
        seconds = session.end - session.start
        hours = f"{seconds * session.workers / 3600:.3f}"
        rows.append([clock(session.start), duration(seconds), str(session.workers), hours])
    return Table(head=["started", "lasted", "workers", "worker-hours"], rows=rows)


def cost(run: RunData, price: float | None) -> str:
    """Worker-hours in all, and what they cost."""
    total = run.worker_hours()
    known = f", at {price:g} an hour: {total * price:,.2f}" if price else "; no price was given"
    return f"{total:.3f} worker-hours in all{known}."


def pairs(values: Mapping[str, object]) -> Table:
    """Names and values."""
    rows = [[name, str(value)] for name, value in sorted(values.items())]
    return Table(head=["name", "value"], rows=rows, words=(0, 1))


def clock(seconds: float) -> str:
    """A point in time, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
