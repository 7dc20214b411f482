"""The section of the report on evaluations: crop protocols, calibration, classes, predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.evaluation.class_figures import class_figure_names, note
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.examples import GROUPS, class_label, first_name
from pipeline.evaluation.metrics import FIGURES, METRICS
from pipeline.evaluation.result_table import (
    CLASS_INTERVALS,
    INTERVALS,
    caption,
    interval,
    protocol_name,
    selection,
    sides,
)
from pipeline.report.calibration_chart import calibration_chart
from pipeline.report.run_data import Evaluation
from support.page import Cell, Table

# rows of the table of classes that are visible, and with those to unfold; pairs of confused
# classes; classes that the head lacks; images that could not be read
SHOWN_CLASSES, MOST_CLASSES, SHOWN_PAIRS, SHOWN_MISSING, SHOWN_UNREADABLE = 12, 1500, 12, 50, 50
# evaluations on other labels and other images, which are compared in top-1
OTHERS = {"real": "ReaL", "v2": "ImageNet-V2"}


def evaluation_values(item: Evaluation) -> dict[str, object]:
    """The values that templates/evaluation.html shows."""
    result = item.result
    columns = [name for name in (item.classes or [{}])[0] if name.startswith("top1 ")]
    worst = sorted(item.classes, key=lambda row: float(row[columns[-1]]))
    groups = {
        title: [entry for entry in item.sheet if entry["group"] == group]
        for group, title in GROUPS.items()
    }
    return {
        **summary(result),
        "result": result,
        "intervals": INTERVALS,
        "class_intervals": CLASS_INTERVALS,
        "missing": [class_label(wnid) for wnid in result["missing"][:SHOWN_MISSING]],
        "over_classes": class_figure_table(result),
        "left_out": result.get("classes", {}).get("left_out", []),
        "unreadable": unreadable_table(result),
        "calibration": calibration_chart(result["calibration"]),
        "confusions": confusion_table(result),
        "num_classes": len(worst),
        "order": columns[-1].replace("top1", "top-1 under") if columns else "",
        "worst": class_table(worst[:SHOWN_CLASSES], columns),
        "classes": class_table(worst[:MOST_CLASSES], columns),
        "groups": {title: entries for title, entries in groups.items() if entries},
        "crop_words": protocol_name,
    }


def summary(result: Mapping) -> dict[str, object]:
    """An evaluation in brief: checkpoint, caption, how the checkpoint was chosen, tables."""
    return {
        "checkpoint": Path(result["checkpoint"]).name,
        "caption": caption(result),
        "selection": selection(result),
        "crops": crop_table(result),
        "changes": change_table(result),
    }


def crop_table(result: Mapping) -> Table:
    """Protocols side by side."""
    protocols = result["protocols"]
    names = [name for name in METRICS if any(name in values for values in protocols.values())]
    about = ["resized to"] if "resized" in result else []
    rows = [
        [
            *(Cell(protocol, kind="name"), *(sides(result, protocol) for _ in about)),
            str(values["views"]),
            *(metric_cell(name, values) for name in names),
            f"{values['ece']:.4f}",
        ]
        for protocol, values in protocols.items()
    ]
    head = ["crops", *about, "views", *(METRICS[name].title for name in names), FIGURES["ece"]]
    return Table(head=head, rows=rows)


def change_table(result: Mapping) -> Table:
    """How protocols differ from the single crop, and their top-1 on ReaL and V2."""
    changes, others = result["changes"], [key for key in OTHERS if key in result]
    rows = [
        [
            Cell(protocol, kind="name"),
            *change_cells(changes.get(protocol)),
            *(metric_cell("top1", result[k]["protocols"].get(protocol, {})) for k in others),
        ]
        for protocol in result["protocols"]
        if others or protocol in changes
    ]
    titles = [f"{OTHERS[key]}, {METRICS['top1'].title}" for key in others]
    head = ["crops", f"gain on {CENTER}, points", "right / wrong", "p", *titles]
    return Table(head=head, rows=rows)


def class_figure_table(result: Mapping) -> Table:
    """Figures over classes, protocols side by side; without rows for an older result."""
    protocols, rows = result["protocols"], []
    for name in class_figure_names(result) if "classes" in result else ():
        cells = (class_figure_cell(name, values) for values in protocols.values())
        rows.append([Cell(FIGURES[name], note(name, result["classes"])), *cells])
    return Table(head=["over classes", *protocols], rows=rows)


def class_figure_cell(name: str, values: Mapping[str, float]) -> Cell:
    """A figure over classes with its interval: a share in percent, or a height."""
    if name not in values:
        return Cell("")
    factor = 1 if name == "lca_height" else 100
    text = f"{factor * values[name]:.2f}" + ("%" if factor == 100 else "")
    return Cell(text, interval(name, values, ".2f", factor))


def unreadable_table(result: Mapping) -> Table:
    """Images that could not be read, and why."""
    rows = [list(row) for row in result.get("unreadable", ())[:SHOWN_UNREADABLE]]
    return Table(head=["image", "reason"], rows=rows, words=(0, 1))


def metric_cell(name: str, values: Mapping[str, float]) -> Cell:
    """A metric with its interval."""
    scale = (".2f", 100) if METRICS[name].is_share else (".4f", 1)
    return Cell(metric_text(name, values), interval(name, values, *scale))


def metric_text(name: str, values: Mapping[str, float], prefix: str = "") -> str:
    """A metric as text; empty if it is missing."""
    if prefix + name not in values:
        return ""
    return f"{values[prefix + name]:{'.2%' if METRICS[name].is_share else '.4f'}}"


def change_cells(change: Mapping[str, float] | None) -> list[str | Cell]:
    """Gain in top-1 with its interval, images that became right and wrong, p."""
    if not change:
        return ["", "", ""]
    kind = "good" if change["gain_low"] > 0 else "bad" if change["gain_high"] < 0 else ""
    note = interval("gain", change, "+.2f", 100)
    gain = Cell(f"{100 * change['gain']:+.2f}", note, kind)
    return [gain, f"+{change['gained']:,} / -{change['lost']:,}", f"{change['p']:.2g}"]


def confusion_table(result: Mapping) -> Table:
    """The most confused pairs of the last protocol."""
    name, pairs = list(result["confusions"].items())[-1]
    rows = [[class_cell(a), class_cell(b), f"{n:,}"] for a, b, n in pairs[:SHOWN_PAIRS]]
    return Table(head=["is", f"was taken for ({name})", "images"], rows=rows, words=(0, 1))


def class_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Table:
    """Accuracy of classes under every protocol."""
    head = ["class", "images", *(name.replace("top1", "top-1") for name in columns)]
    cells = [
        [class_cell(row["wnid"]), row["images"], *(f"{float(row[name]):.1%}" for name in columns)]
        for row in rows
    ]
    return Table(head=head, rows=cells)


def class_cell(wnid: str) -> Cell:
    """A class by its name, with its id."""
    name = first_name(wnid)
    return Cell(name, "" if name == wnid else wnid)
