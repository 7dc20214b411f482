"""Images that exist twice: copies within the sources, and images of another shard set.

Copies with the same bytes become one sample with all their classes: ImageNet-21k has many images
both under a class and under its parent class. An image of another set is recognised by the same
bytes, or by a perceptual hash that differs in a few bits.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

LEFT_OUT = pa.schema([(name, pa.string()) for name in ("archive", "member", "sha256", "reason")])
Known = Callable[[pa.Table], list[str]]
"""Gives for each row the reason why it is left out as an image of another set, or ""."""


def merge(table: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """The rows of a bucket in order, one per content with all its classes; and the other copies.

    The number is that of the copies that were in another split than the row that is kept.
    """
    if not table.num_rows:
        return table, LEFT_OUT.empty_table(), 0
    table = table.sort_by([(name, "ascending") for name in ("order", "sha256", "unit", "row")])
    hashes = table["sha256"].to_pylist()
    wnids, splits = table["wnids"].to_pylist(), table["split"].to_pylist()
    firsts, copies, crossing = [0], [], 0
    for row in range(1, len(hashes)):
        first = firsts[-1]
        if hashes[row] != hashes[first]:
            firsts.append(row)
            continue
        copies.append((row, first))
        wnids[first].extend(wnid for wnid in wnids[row] if wnid not in wnids[first])
        if splits[row] != splits[first]:
            # An image of the val split leaves the train split, not the other way round.
            splits[first] = "val" if "val" in (splits[row], splits[first]) else "train"
            crossing += 1
    for name, values, kind in (
        ("wnids", wnids, pa.list_(pa.string())),
        ("split", splits, pa.string()),
    ):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, name, pa.array(values, kind))
    archives, members = (table[name].to_pylist() for name in ("archive", "member"))
    left_out = [
        {
            "archive": archives[row],
            "member": members[row],
            "sha256": hashes[row].hex(),
            "reason": f"same bytes as {archives[first]}: {members[first]}",
        }
        for row, first in copies
    ]
    return table.take(pa.array(firsts)), pa.Table.from_pylist(left_out, LEFT_OUT), crossing


def exclude(table: pa.Table, known: Known) -> tuple[pa.Table, pa.Table]:
    """The rows that are in no other set, and those that are, with the reason."""
    reasons = known(table)
    is_known = pa.array([bool(reason) for reason in reasons], pa.bool_())
    out = table.filter(is_known)
    hashes = pa.array([value.hex() for value in out["sha256"].to_pylist()], pa.string())
    why = pa.array([reason for reason in reasons if reason], pa.string())
    columns = [out["archive"], out["member"], hashes, why]
    return table.filter(pc.invert(is_known)), pa.table(columns, schema=LEFT_OUT)
