"""The result of an evaluation in words and tables, for the console.

    result.json -> caption, selection, protocol_name    words that stand beside every figure
                -> result_table                         all figures with their intervals

Results of older evaluations lack some keys, and what depends on them is left out.
"""

from collections.abc import Iterator, Mapping

from pipeline.data.dataset import set_name
from pipeline.evaluation.class_figures import class_figure_names, note
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.metrics import FIGURES, METRICS
from support.console import table

INTERVALS = (
    "95 % intervals: Wilson's of shares, normal of other means, Tango's of gains in top-1, whose p"
    " is that of the exact McNemar test"
)
CLASS_INTERVALS = "95 % intervals: Wilson's, of means over classes for their variance"


def caption(result: Mapping) -> str:
    """What the figures of a result are of: split, data, images, rule of averaging."""
    parts = [f"split {result['split']} of {set_name(result['data'])}"]
    parts.append(f"{result['images']:,} images")
    if unreadable := result.get("unreadable"):
        parts.append(f"{len(unreadable):,} of them unreadable, which count as wrong")
    if "average" in result:
        parts.append(f"{result['average']} averaged over the crops of an image")
    return ", ".join(parts)


def selection(result: Mapping) -> str:
    """How the checkpoint was chosen, as far as the result says; empty for weights without a run."""
    if "selected_on" not in result or result["step"] is None:
        return ""
    on, split = result["selected_on"], result["split"]
    if on is None:
        return "No split selects among the checkpoints of the run, which reports its last step."
    by, among = f"Top-1 on {on['split']}", "selects among the checkpoints of the run"
    is_same = _is_same_set(on, result)
    if is_same is None:
        return f"{by} {among}; whether that is of the images of {split} here is not known."
    if not is_same:
        return (
            f"{by} of another shard set {among}; the images of {split} have no part in it unless "
            f"that set has them, too."
        )
    if on["split"] == split:
        return f"{by} {among}: these figures, of the same images, are optimistic."
    return f"{by} {among}; the images of {split} have no part in it."


def _is_same_set(on: Mapping, result: Mapping) -> bool | None:
    """Whether the set that selects is that of the result; None if it is not known.

    The fingerprints say so, as a set may be moved, copied and linked to. Older results have none.
    """
    if on.get("fingerprint"):
        return on["fingerprint"] == result["fingerprint"]
    return True if on["data"] == result["data"] else None


def protocol_name(name: str, values: Mapping) -> str:
    """A crop protocol in words: its name, and how many crops it has."""
    return "one centre crop" if name == CENTER else f"{name}, {values['views']} crops"


def sides(result: Mapping, name: str) -> str:
    """The sides in pixels to which a protocol resizes an image, before it crops."""
    return ", ".join(map(str, result["resized"][name])) or "whole"


def averaged(name: str, values: Mapping, result: Mapping) -> str:
    """The same with the rule of averaging, where there is something to average."""
    rule = f", {result['average']} averaged" if values["views"] > 1 else ""
    return protocol_name(name, values) + rule


def result_table(result: Mapping) -> str:
    """The metrics of all protocols as tables for the console."""
    return "\n".join(_lines(result))


def _lines(result: Mapping) -> Iterator[str]:
    if "split" in result:
        yield caption(result)
    yield from filter(None, (selection(result),))
    yield table(list(_protocol_rows(result)))
    yield INTERVALS
    if "real" in result:
        yield f"\nReaL labels, split {result['split']}"
        yield table(list(_protocol_rows({"changes": {}, **result["real"]})))
    if "classes" in result:
        yield f"\nover the classes of split {result['split']}"
        yield table(list(_class_rows(result)))
        yield CLASS_INTERVALS
        yield from (f"left out: {each}" for each in result["classes"]["left_out"])
    if "v2" in result:
        yield "\nImageNet-V2"
        yield from _lines(result["v2"])


def _protocol_rows(result: Mapping) -> Iterator[list[str]]:
    """A row for each protocol, with the metrics that it has."""
    protocols, changes = result["protocols"], result["changes"]
    names = [name for name in (*METRICS, "ece") if any(name in v for v in protocols.values())]
    head = [key for key in ("views", "images") if all(key in v for v in protocols.values())]
    about = ["resized to"] if "resized" in result else []
    titles = [METRICS[name].title if name in METRICS else FIGURES[name] for name in names]
    gains = [f"gain on {CENTER}", "right/wrong", "p"] if changes else []
    yield ["crops", *about, *head, *titles, *gains]
    for protocol, values in protocols.items():
        cells = [protocol, *(sides(result, protocol) for _ in about)]
        cells += [f"{values[key]:,}" for key in head]
        cells += [figure_text(name, values, bounded=name == "top1") for name in names]
        if changes and protocol not in changes:
            cells += [""] * len(gains)
        elif changes:
            change = changes[protocol]
            cells.append(f"{change['gain']:+.4f} {interval('gain', change, '+.4f')}")
            cells += [f"+{change['gained']} -{change['lost']}", f"{change['p']:.3f}"]
        yield cells


def _class_rows(result: Mapping) -> Iterator[list[str]]:
    """A row for each figure over classes."""
    protocols, facts = result["protocols"], result["classes"]
    yield ["", *protocols]
    for name in class_figure_names(result):
        about = f" ({words})" if (words := note(name, facts)) else ""
        yield [FIGURES[name] + about, *(figure_text(name, each) for each in protocols.values())]


def figure_text(name: str, values: Mapping[str, float], *, bounded: bool = True) -> str:
    """A figure, with its interval if it has one and is `bounded`; "-" if it is missing."""
    if name not in values:
        return "-"
    bounds = interval(name, values) if bounded else ""
    return f"{values[name]:.4f} {bounds}".rstrip()


def interval(name: str, values: Mapping[str, float], form: str = ".4f", factor: float = 1.0) -> str:
    """The interval of a figure times a factor, as text; empty if it has none."""
    if f"{name}_low" not in values:
        return ""
    low, high = (f"{factor * values[f'{name}_{end}']:{form}}" for end in ("low", "high"))
    return f"[{low}, {high}]"
