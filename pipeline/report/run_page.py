"""The page about a run that one would send to a colleague: one HTML file that stands alone.

runs/NAME (run_data) -> curves, one crop against many, classes, predictions, settings,
versions, time and cost -> runs/NAME/report.html
"""

import datetime
from collections.abc import Mapping
from pathlib import Path

from pipeline.evaluation.predictions import write_whole
from pipeline.report.chart import chart
from pipeline.report.evaluation_section import crops, evaluation_parts, others
from pipeline.report.page import document, figures, folded, section, table, text, tiles
from pipeline.report.run_data import RunData
from pipeline.settings.config import TrainConfig
from support.console import duration

PAGE = "report.html"


def write_report(
    run_dir: Path, *, price_per_hour: float | None = None, status: str | None = None
) -> Path:
    """Write the page about a run, finished or not; its path.

    `price_per_hour` of one worker overrides the run's own setting, `status` what its record says.
    """
    run = RunData.read(run_dir)
    price = price_per_hour or run.settings.get("record.price_per_hour")
    body = [
        heading(run, status or run.status()),
        tiles(numbers(run, price)),
        section("Curves", figures(curves(run.lines))),
        *(evaluation_parts(run.evaluations[0]) if run.evaluations else []),
        section("Other evaluations", others(run.evaluations[1:])),
        section("Machines", figures(machines(run.lines))),
        section("Checkpoints", checkpoint_table(run)),
        section("Data", data_table(run)),
        section("Time and cost", time_table(run, price)),
        section("Versions and hardware", pairs(run.tags())),
        section("Configuration", configuration(run.settings)),
        f"<footer>Written {clock(datetime.datetime.now().timestamp())} from "
        f"<code>{text(run.dir)}</code></footer>",
    ]
    path = run_dir / PAGE
    write_whole(path, document(f"{run.settings['name']}: a training run", body).encode())
    return path


def heading(run: RunData, status: str) -> str:
    """Name, state and one sentence on what was trained."""
    s = run.settings
    model = (
        f"ViT of {s['model.depth']} blocks, width {s['model.width']}, patches of "
        f"{s['model.patch_size']} on {s['model.image_size']} pixels"
    )
    kind = {"FINISHED": "good", "FAILED": "bad"}.get(status, "soft")
    return (
        f'<h1>{text(s["name"])}</h1><p class="soft">{text(model)}; {text(s["model.num_classes"])} '
        f"classes; begun {clock(run.sessions[0].start)}; "
        f'<span class="{kind}">{text(status.lower())}</span></p>'
    )


def numbers(run: RunData, price: float | None) -> dict[str, str]:
    """The few numbers that matter."""
    found = {}
    if run.evaluations:
        for name, values in run.evaluations[0].result["protocols"].items():
            half = (values["top1_high"] - values["top1_low"]) / 2
            found[f"top-1, {crops(name, values)}"] = f"{values['top1']:.1%} ±{100 * half:.1f}"
    elif "val/top1" in run.lines:
        found["top-1, best so far"] = f"{max(y for _, y in run.lines['val/top1']):.2%}"
    found["steps"] = f"{run.last_step:,}"
    if rates := run.lines.get("images_per_s"):
        found["images/s"] = f"{sorted(y for _, y in rates)[len(rates) // 2]:,.0f}"
    found["time"] = duration(3600 * run.hours())
    if price:
        found["cost"] = f"{run.worker_hours() * price:,.2f}"
    return found


def curves(lines: Mapping[str, list]) -> dict[str, str]:
    """The charts of the training."""

    def of(*names: str) -> dict[str, list]:
        return {name: lines[name] for name in names if name in lines}

    probes = {n.removeprefix("probe/"): v for n, v in lines.items() if n.startswith("probe/")}
    means = {name: line for name, line in probes.items() if "seed" not in name}
    return {
        "Loss": chart(of("train/loss", "val/loss"), label="step"),
        "Accuracy": chart(of("val/top1", "val/top5"), label="step", percent=True),
        "Learning rate": chart(of("lr"), label="step"),
        "Throughput, images/s": chart(of("images_per_s"), label="step"),
        "Wait for data, share of step time": chart(of("wait"), label="step", percent=True),
        "Gradient norm": chart(of("grad_norm"), label="step"),
        "Model FLOP utilisation": chart(of("mfu"), label="step", percent=True),
        "Probes, top-1": chart(means, label="step", percent=True),
    }


def machines(lines: Mapping[str, list]) -> dict[str, str]:
    """The charts of the machines."""

    def ending(*words: str) -> dict[str, list]:
        own = {n.removeprefix("system/"): v for n, v in lines.items() if n.startswith("system/")}
        return {n: v for n, v in own.items() if any(n.endswith(word) for word in words)}

    return {
        "Utilisation, %": chart(ending("utilization_percentage"), label="minutes"),
        "Memory, %": chart(ending("memory_usage_percentage"), label="minutes"),
        "Network, MB/s": chart(ending("megabytes_per_s"), label="minutes"),
        "GPU power, W": chart(ending("power_usage_watts"), label="minutes"),
    }


def checkpoint_table(run: RunData) -> str:
    """The checkpoints that are on disk."""
    rows = []
    for item in run.checkpoints:
        top1 = item.metrics.get("val/top1")
        rows.append(
            [text(item.path.name), f"{item.samples:,}", f"{top1:.2%}" if top1 is not None else ""]
        )
    return table(["checkpoint", "images seen", "top-1, one crop"], rows)


def data_table(run: RunData) -> str:
    """The shard sets by their hash."""
    rows = [
        [
            text(e["name"]),
            text(e["context"]),
            text(e["source"]),
            text(e["digest"][:16]),
            f"{e['samples']:,}",
        ]
        for e in run.events
        if e["event"] == "dataset"
    ]
    return table(["data", "for", "place", "manifest SHA-256", "images"], rows, words=(0, 1, 2, 3))


def time_table(run: RunData, price: float | None) -> str:
    """Each start of the run; worker-hours, and what they cost."""
    rows = [
        [
            clock(s.start),
            duration(s.end - s.start),
            str(s.workers),
            f"{(s.end - s.start) * s.workers / 3600:.3f}",
        ]
        for s in run.sessions
    ]
    total = run.worker_hours()
    cost = f", at {price:g} an hour: {total * price:,.2f}" if price else "; no price was given"
    return table(["started", "lasted", "workers", "worker-hours"], rows) + (
        f"<p>{total:.3f} worker-hours in all{cost}.</p>"
    )


def pairs(values: Mapping[str, object]) -> str:
    """Names and values."""
    return table(
        ["name", "value"], [[text(k), text(v)] for k, v in sorted(values.items())], words=(0, 1)
    )


def configuration(settings: Mapping[str, object]) -> str:
    """What differs from the defaults, and everything to unfold."""
    defaults = TrainConfig().flat()
    changed = {k: v for k, v in settings.items() if defaults.get(k) != v}
    return (
        f'<p class="soft">{len(changed)} of {len(settings)} settings differ from the defaults.</p>'
        + pairs(changed)
        + folded("All settings", pairs(settings))
    )


def clock(seconds: float) -> str:
    """A point in time, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
