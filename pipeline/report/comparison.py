"""A comparison of runs or evaluations: figures, settings, and their models on the same images.

    contenders -> tables: figures and costs, settings that differ, paired tests -> page, console

Each is compared with the first.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.data import digits
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.paired import PairedTest
from pipeline.report.contender import Contender, opened
from pipeline.report.evaluation_section import metric_cell
from pipeline.report.run_data import RunData
from pipeline.report.tested import Tested
from pipeline.settings.config import TrainConfig
from support.console import table
from support.page import Cell, Table
from support.redact import redact

NONE = "-"
MAY_CHANGE = "settings that differ, of those that may change when a run is resumed"
CIRCUMSTANCES = "data, versions and machines that differ"
# tags that say what computed a run
TAGS = ("commit", "hardware", "version.", "rewound", "skip_steps", "lr_factors")
PASSED_OVER = (
    "of several evaluations of a model that differ in preparation or precision alone, that which "
    "the run reports counts, or else the newest; another one is compared by its folder"
)
TESTED = (
    "Both models on the same images. The interval is 95 %, of the paired difference; p is of the "
    "exact two-sided McNemar test of this comparison alone."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is shown of some contenders."""

    contenders: Sequence[Contender]
    price_per_hour: float | None = None
    """Of a worker, in place of that of each run."""

    @classmethod
    def of(cls, locations: Sequence[str], price_per_hour: float | None = None) -> "Comparison":
        """Read runs or evaluations; see `contender.opened` for what it raises."""
        return cls(contenders=opened(locations), price_per_hour=price_per_hour)

    @property
    def first(self) -> Contender:
        """That with which the others are compared."""
        return self.contenders[0]

    @property
    def runs(self) -> list[Contender]:
        """Those that are runs, or lie in one."""
        return [each for each in self.contenders if each.run]

    @cached_property
    def tests(self) -> list[Tested]:
        """Every other model against the first, on all images and crops that both have."""
        found = []
        for other in self.contenders[1:]:
            for measure, before in self.first.measured.items():
                after = other.measured.get(measure)
                if not after or not all(one.predictions.is_file() for one in (before, after)):
                    continue
                sides = [(one.predictions, measure.protocol) for one in (before, after)]
                about = {"first": self.first, "other": other, "measure": measure}
                found.append(Tested(**about, test=PairedTest.of(*sides)))
        return found

    @property
    def test_table(self) -> Table:
        """The paired tests."""
        top1 = METRICS["top1"].title
        head = ["model", "on", "images", f"{top1} of {self.first.name}", f"its {top1}"]
        rows = [each.row for each in self.tests]
        head += ["gain, points", "right / wrong", "p"]
        return Table(head=head, rows=rows, words=(0, 1))

    @property
    def advice(self) -> list[str]:
        """Commands that evaluate the models alike which were not tested against the first."""
        tested = {each.other.name for each in self.tests}
        lacking = [each for each in self.contenders[1:] if each.name not in tested]
        if not lacking:
            return []
        options = evaluation_options(self.first)
        # what is evaluated now has no corners as before
        is_alike = self.first.measured and not any(m.is_earlier for m in self.first.measured)
        models = lacking if is_alike else [self.first, *lacking]
        return [
            f"python -m pipeline evaluate {shlex.quote(each.model)} {options}" for each in models
        ]

    @property
    def figures(self) -> Table:
        """Each contender in a column: how it stands, what it cost, what was measured."""
        names = [each.name for each in self.contenders]
        return Table(head=["", *names], rows=[*self._run_rows(), *self._measured_rows()])

    @property
    def passed_over(self) -> list[str]:
        """Evaluations that do not count beside another of the same model and measure."""
        return [text for each in self.contenders for text in each.passed_over]

    def _run_rows(self) -> Iterator[list[str | Cell]]:
        """Rows about the runs."""
        if not self.runs:
            return
        price = self.price_per_hour
        rows: dict[str, Callable[[RunData], str | Cell]] = {
            "preset": lambda run: run.preset,
            "state": lambda run: run.state,
            "steps": lambda run: f"{run.last_step:,}",
            "images seen": lambda run: f"{run.last_step * batch(run):,}",
            "images/s, median": lambda run: number(run.images_per_s, ",.0f"),
            "hours": lambda run: f"{run.hours():,.2f}",
            "worker-hours": lambda run: f"{run.worker_hours():,.2f}",
            "cost": lambda run: number(run.cost(price), ",.2f"),
            "top-1 in training, one crop, last": lambda run: last_cell(run, "val/top1", "eval"),
            "loss in training, last": lambda run: last_cell(run, "train/loss", "train"),
        }
        for title, cell in rows.items():
            yield [title, *(cell(each.run) if each.run else NONE for each in self.contenders)]

    def _measured_rows(self) -> Iterator[list[str | Cell]]:
        """Rows of the metrics that are shares, on whatever any model was evaluated on."""
        names = [name for name, metric in METRICS.items() if metric.is_share]
        measures = dict.fromkeys(key for each in self.contenders for key in each.measured)
        for measure in measures:
            values = [
                each.measured[measure].values if measure in each.measured else {}
                for each in self.contenders
            ]
            title = next(
                each.measured[measure].title for each in self.contenders if measure in each.measured
            )
            for name in names:
                if any(name in each for each in values):
                    cells = (metric_cell(name, each) for each in values)
                    yield [f"{METRICS[name].title}, {title}", *cells]

    @property
    def settings(self) -> tuple[Table, Table]:
        """The settings that differ: those that a run keeps from its start, and the others."""
        may_change = {n for n, metadata, _ in TrainConfig().items() if metadata.get("may_change")}
        values = [each.run.settings for each in self.runs]
        names = [name for name in differing(values) if name != "name"]
        fixed = [name for name in names if name not in may_change]
        others = [name for name in names if name in may_change]
        return self._side_by_side(values, fixed), self._side_by_side(values, others)

    @property
    def circumstances(self) -> Table:
        """Data, versions, commits and machines, as far as they differ."""
        facts = [facts_of(each) for each in self.runs]
        return self._side_by_side(facts, differing(facts))

    def _side_by_side(self, values: Sequence[Mapping], names: Sequence[str]) -> Table:
        rows = [[name, *(shown(each, name) for each in values)] for name in names]
        head = ["", *(each.name for each in self.runs)]
        return Table(head=head, rows=rows, words=range(len(head)))

    def text(self) -> str:
        """All tables for the console."""
        fixed, others = self.settings
        parts = [
            ("figures", self.figures),
            ("settings that differ", fixed),
            (MAY_CHANGE, others),
            (CIRCUMSTANCES, self.circumstances),
            ("models on the same images", self.test_table),
        ]
        texts = [f"{title}\n{plain(each)}" for title, each in parts if each.rows]
        if self.advice:
            lines = "\n".join(f"  {redact(line)}" for line in self.advice)
            texts.append(
                f"no images that both models were evaluated on; to test them, run\n{lines}"
            )
        if self.passed_over:
            texts.append("\n".join([PASSED_OVER, *(f"  {line}" for line in self.passed_over)]))
        return "\n\n".join(texts)


def evaluation_options(contender: Contender) -> str:
    """Options of `evaluate` that evaluate another model as this one was, or as its run would."""
    if contender.measured:
        result = next(iter(contender.measured.values())).result
        crops = [name for name in result["protocols"] if name != CENTER] or [CENTER]
        data, split, average = result["data"], result["split"], result["average"]
    else:
        settings = contender.run.settings
        crops, average = [settings["crops"]], "logits"
        data = digits.located(settings["data.dir"], settings["runs_dir"])
        split = settings["data.eval_split"]
    words = ["--data", data, "--split", split, "--crops", *crops]
    return shlex.join([*words, *(["--average", average] if average != "logits" else [])])


def facts_of(contender: Contender) -> dict[str, str]:
    """The data of a run with their digests, and what computed it."""
    data = {
        f"data for {event['context']}": f"{event['name']} {event['digest'][:12]}"
        for event in contender.run.events
        if event["event"] == "dataset"
    }
    tags = contender.run.tags()
    return data | {name: text for name, text in tags.items() if name.startswith(TAGS)}


def batch(run: RunData) -> int:
    """Images of a step of a run."""
    return int(run.settings["global_batch"])


def number(value: float | None, form: str) -> str:
    """A number, or "-" in place of None."""
    return NONE if value is None else f"{value:{form}}"


def last_cell(run: RunData, name: str, use: str) -> str | Cell:
    """The last value of a curve, with the split that the run takes for this use."""
    line, split = run.lines.get(name), run.settings.get(f"data.{use}_split", "")
    return Cell(f"{line[-1][1]:.4f}", f"on {split}" if split else "") if line else NONE


def differing(values: Sequence[Mapping[str, object]]) -> list[str]:
    """The names whose values are not the same in all."""
    names = dict.fromkeys(name for each in values for name in each)
    return [name for name in names if len({shown(each, name) for each in values}) > 1]


def shown(values: Mapping[str, object], name: str) -> str:
    """A value as text, as JSON if it is none; "-" if it is missing."""
    value = values.get(name, NONE)
    return value if isinstance(value, str) else json.dumps(value)


def plain(page_table: Table) -> str:
    """A table of a page for the console."""
    rows = [page_table.head, *page_table.rows]
    texts = [[each if isinstance(each, str) else cell_text(each) for each in row] for row in rows]
    return table(texts, page_table.words)


def cell_text(cell: Cell) -> str:
    """A cell for the console."""
    return f"{cell.text} {cell.note}".strip()
