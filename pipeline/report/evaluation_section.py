"""The section of the report on evaluations: crop protocols, calibration, classes, predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.evaluation.config import CENTER
from pipeline.evaluation.examples import GROUPS, first_name
from pipeline.evaluation.metrics import METRICS
from pipeline.report.run_data import Evaluation
from support.chart import line_chart
from support.page import Cell, Table

# rows of the table of classes that are visible, and with those to unfold; pairs of confused
# classes; classes that the head lacks
SHOWN_CLASSES, MOST_CLASSES, SHOWN_PAIRS, SHOWN_MISSING = 12, 1500, 12, 50
# evaluations on other labels and other images, which are compared in top-1
OTHERS = {"real": "ReaL", "v2": "V2"}


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
        "result": result,
        "checkpoint": Path(result["checkpoint"]).name,
        "missing": [f"{wnid} {first_name(wnid)}" for wnid in result["missing"][:SHOWN_MISSING]],
        "crops": crop_table(result),
        "calibration": calibration_chart(result),
        "confusions": confusion_table(result),
        "num_classes": len(worst),
        "order": columns[-1].replace("top1", "top-1 under") if columns else "",
        "worst": class_table(worst[:SHOWN_CLASSES], columns),
        "classes": class_table(worst[:MOST_CLASSES], columns),
        "groups": {title: entries for title, entries in groups.items() if entries},
        "crop_words": crops,
    }


def crop_table(result: Mapping) -> Table:
    """Protocols side by side, with their changes; ReaL and V2 if they were evaluated."""
    protocols, top1 = result["protocols"], METRICS["top1"].title
    names = [name for name in METRICS if any(name in values for values in protocols.values())]
    others = [key for key in OTHERS if key in result]
    rows = [
        [
            *(protocol, str(values["views"])),
            *(Cell(metric_text(name, values), interval_text(name, values)) for name in names),
            f"{values['ece']:.4f}",
            *change_cells(result["changes"].get(protocol)),
            *(metric_text("top1", result[key]["protocols"].get(protocol, {})) for key in others),
        ]
        for protocol, values in protocols.items()
    ]
    titles = [METRICS[name].title for name in names]
    head = ["crops", "views", *titles, "ECE", f"{top1} against one, points", "right / wrong", "p"]
    return Table(head=[*head, *(f"{OTHERS[key]}, {top1}" for key in others)], rows=rows)


def metric_text(name: str, values: Mapping[str, float], prefix: str = "") -> str:
    """A metric as text; empty if it is missing."""
    if prefix + name not in values:
        return ""
    return f"{values[prefix + name]:{'.2%' if METRICS[name].is_share else '.4f'}}"


def interval_text(name: str, values: Mapping[str, float]) -> str:
    """The 95 % interval of a metric as text; empty if it is missing."""
    if f"{name}_low" not in values:
        return ""
    factor, digits = (100, 2) if METRICS[name].is_share else (1, 4)
    low, high = (f"{factor * values[f'{name}_{end}']:.{digits}f}" for end in ("low", "high"))
    return f"[{low}, {high}]"


def change_cells(change: Mapping[str, float] | None) -> list[str | Cell]:
    """Gain in top-1 with its interval, images that became right and wrong, p."""
    if not change:
        return ["", "", ""]
    low, high = change["gain_low"], change["gain_high"]
    kind = "good" if low > 0 else "bad" if high < 0 else ""
    note = f"[{100 * low:+.2f}, {100 * high:+.2f}]"
    gain = Cell(f"{100 * change['gain']:+.2f}", note, kind)
    return [gain, f"+{change['gained']:,} / -{change['lost']:,}", f"{change['p']:.2g}"]


def calibration_chart(result: Mapping) -> str:
    """Accuracy by confidence, for each protocol."""
    lines = {
        name: [(confidence, accuracy) for count, confidence, accuracy in bins if count]
        for name, bins in result["calibration"].items()
    }
    lines["ideal"] = [(0.0, 0.0), (1.0, 1.0)]
    return line_chart(
        lines, name="calibration", label="confidence", percent=True, reference=["ideal"]
    )


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
    """A class by its name and id."""
    name = first_name(wnid)
    return Cell(name, "" if name == wnid else wnid)


def crops(name: str, values: Mapping) -> str:
    """A crop protocol in words."""
    return "one crop" if name == CENTER else f"{values['views']} crops"
