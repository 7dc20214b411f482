"""The part of the report that is about evaluations: protocols, classes, confusions, predictions."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.evaluation.config import CENTER
from pipeline.evaluation.examples import GROUPS
from pipeline.report.chart import chart
from pipeline.report.page import folded, picture, section, table, text
from pipeline.report.run_data import Evaluation
from shards.dataset import wordnet

# rows of the table of classes that are shown, and that are there to unfold
SHOWN_CLASSES, MOST_CLASSES = 12, 1500


def crops(name: str, values: Mapping) -> str:
    """A crop protocol in words."""
    return "one crop" if name == CENTER else f"{values['views']} crops"


def evaluation_parts(item: Evaluation) -> list[str]:
    """The newest evaluation, in full."""
    result = item.result
    name = Path(result["checkpoint"]).name
    about = (
        f'<p class="soft">{text(name)} on {result["images"]:,} images of {text(result["data"])}, '
        f"split {text(result['split'])}; {text(result['average'])} averaged over the crops; "
        f"intervals are 95 %.</p>"
    )
    lost = ""
    if result["missing"]:
        names = ", ".join(f"{w} {wordnet.name(w).split(',')[0]}" for w in result["missing"][:50])
        count = len(result["missing"])
        lost = f"<p>{count} classes of the data are not in the head: {text(names)}</p>"
    return [
        section("One crop against many", about, crop_table(result), lost),
        section(
            "Calibration and confusions",
            f'<div class="grid2">{calibration_part(result)}{confusion_table(result)}</div>',
        ),
        section("Classes", class_tables(item.classes)),
        section("Predictions and their crops", sheet(item.sheet)),
    ]


def crop_table(result: Mapping) -> str:
    """Protocols side by side, with what changed; ReaL and V2 where they were evaluated."""
    rows = []
    for name, v in result["protocols"].items():
        change = result["changes"].get(name)
        gain = moved = chance = ""
        if change:
            kind = "good" if change["gain_low"] > 0 else "bad" if change["gain_high"] < 0 else ""
            gain = (
                f'<span class="{kind}">{100 * change["gain"]:+.2f}</span> '
                f"[{100 * change['gain_low']:+.2f}, {100 * change['gain_high']:+.2f}]"
            )
            moved = f"+{change['gained']:,} / -{change['lost']:,}"
            chance = f"{change['p']:.2g}"
        real = result.get("real", {}).get("protocols", {}).get(name)
        v2 = result.get("v2", {}).get("protocols", {}).get(name)
        rows.append(
            [
                text(name),
                str(v["views"]),
                f"{v['top1']:.2%} <span class='soft'>[{100 * v['top1_low']:.2f}, "
                f"{100 * v['top1_high']:.2f}]</span>",
                f"{v['top5']:.2%}",
                f"{v['loss']:.4f}" if "loss" in v else "",
                f"{v['ece']:.4f}",
                gain,
                moved,
                chance,
                f"{real['top1']:.2%}" if real else "",
                f"{v2['top1']:.2%}" if v2 else "",
            ]
        )
    head = [
        "crops",
        "views",
        "top-1",
        "top-5",
        "loss",
        "ECE",
        "against one, points",
        "right / wrong",
    ]
    head += ["p", "ReaL", "V2"]
    used = [n for n in range(len(head)) if n < 9 or any(row[n] for row in rows)]
    return table([head[n] for n in used], [[row[n] for n in used] for row in rows])


def calibration_part(result: Mapping) -> str:
    """Accuracy by confidence, for each protocol."""
    lines = {}
    for name, bins in result["calibration"].items():
        lines[name] = [(sure, right) for count, sure, right in bins if count]
    lines["ideal"] = [(0.0, 0.0), (1.0, 1.0)]
    title = "Accuracy by confidence; ECE is the mean distance from the ideal"
    return f"<figure><h3>{title}</h3>{chart(lines, label='confidence', percent=True)}</figure>"


def confusion_table(result: Mapping) -> str:
    """The most confused pairs of the last protocol."""
    name, pairs_found = list(result["confusions"].items())[-1]
    rows = [[described(a), described(b), f"{n:,}"] for a, b, n in pairs_found[:12]]
    return table(["is", f"was taken for ({name})", "images"], rows, words=(0, 1))


def described(wnid: str) -> str:
    """A class by its name and id."""
    name = wordnet.name(wnid).split(",")[0]
    return text(wnid) if name == wnid else f"{text(name)} <span class='soft'>{text(wnid)}</span>"


def class_tables(rows: list[dict[str, str]]) -> str:
    """Accuracy of the worst classes, and of all to unfold."""
    if not rows:
        return ""
    columns = [name for name in rows[0] if name.startswith("top1 ")]
    head = ["class", "images", *(name.replace("top1", "top-1") for name in columns)]

    def cells(row: Mapping[str, str]) -> list[str]:
        shares = (f"{float(row[name]):.1%}" for name in columns)
        return [described(row["wnid"]), row["images"], *shares]

    worst = sorted(rows, key=lambda row: float(row[columns[-1]]))
    if len(rows) <= SHOWN_CLASSES:
        return table(head, [cells(row) for row in rows])
    some = (
        f"{MOST_CLASSES:,} of {len(rows):,}" if len(rows) > MOST_CLASSES else f"All {len(rows):,}"
    )
    return (
        f'<p class="soft">The {SHOWN_CLASSES} worst of {len(rows):,} classes by '
        f"{text(columns[-1].replace('top1', 'top-1 under'))}.</p>"
        + table(head, [cells(row) for row in worst[:SHOWN_CLASSES]])
        + folded(
            f"{some} classes, worst first", table(head, [cells(r) for r in worst[:MOST_CLASSES]])
        )
    )


def sheet(entries: list[dict]) -> str:
    """Pictures with what they are, what they were taken for, and the crops."""
    parts = []
    for group, title in GROUPS.items():
        cards = "".join(card(entry) for entry in entries if entry["group"] == group)
        if cards:
            parts.append(
                f'<h3>{text(title[0].upper() + title[1:])}</h3><div class="cards">{cards}</div>'
            )
    return "".join(parts)


def card(entry: Mapping) -> str:
    """One picture."""
    lines = [f'<span class="strong">{text(", ".join(entry["classes"]))}</span>']
    for name, own in entry["protocols"].items():
        kind = "good" if own["right"] else "bad"
        lines.append(
            f'<br><span class="{kind}">{text(own["top"][0])}</span> <span class="soft">'
            f"{own['confidence']:.0%}, {text(crops(name, own))}</span>"
            + picture(own["crops"], f"crops of {name}", "crops")
        )
    shown = picture(entry["image"], entry["key"])
    return f'<div class="card">{shown}<div>{"".join(lines)}</div></div>'


def others(items: list[Evaluation]) -> str:
    """Earlier evaluations of this run, a table each."""
    return "".join(
        f"<h3>{text(Path(item.result['checkpoint']).name)} on {text(item.result['data'])}, "
        f"{text(item.result['average'])} averaged</h3>{crop_table(item.result)}"
        for item in items
    )
