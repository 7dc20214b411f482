"""A paired test of the models of two contenders, as pages and consoles show it."""

from dataclasses import dataclass

from pipeline.evaluation.paired import PairedTest
from pipeline.report.contender import Contender, Measure
from pipeline.report.evaluation_section import change_cells, class_cell
from support.page import Cell, Table

# classes with the largest changes that are shown, of those that lost and of those that gained
SHOWN_CLASSES = 8


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A paired test of two contenders' models."""

    first: Contender
    other: Contender
    measure: Measure
    test: PairedTest

    @property
    def title(self) -> str:
        """What both were measured on."""
        return self.first.measured[self.measure].title

    @property
    def row(self) -> list[str | Cell]:
        """Cells of the table of tests."""
        shares = (f"{share:.2%}" for share in (self.test.before, self.test.after))
        about = [self.other.name, self.title, f"{self.test.images:,}"]
        return [*about, *shares, *change_cells(self.test.change)]

    @property
    def classes(self) -> Table:
        """The classes that lost and gained most images."""
        changes, wnids = self.test.classes, self._wnids
        lost = [one for one in changes[:SHOWN_CLASSES] if one.after < one.before]
        gained = [one for one in changes[-SHOWN_CLASSES:] if one.after > one.before]
        rows = [
            [
                class_cell(wnids[one.place]) if wnids else f"class {one.number}",
                f"{one.images:,}",
                *(f"{count / one.images:.1%}" for count in (one.before, one.after)),
                f"{one.after - one.before:+,}",
            ]
            for one in (*lost, *reversed(gained))
        ]
        head = ["class", "images", self.first.name, self.other.name, "change, images"]
        return Table(head=head, rows=rows)

    @property
    def _wnids(self) -> list[str]:
        """The classes that have images, in their order; empty if that is not on disk."""
        wnids = [row["wnid"] for row in self.first.measured[self.measure].evaluation.classes]
        return wnids if len(wnids) == len(self.test.classes) else []
