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
    archives, members = table["archive"].to_pylist(), table["member"].to_pylist()
    firsts, copies, reasons, crossing = [0], [], [], 0
    for row in range(1, len(hashes)):
        first = firsts[-1]
        if hashes[row] != hashes[first]:
            firsts.append(row)
            continue
        copies.append(row)
        reasons.append(f"same bytes as {archives[first]}: {members[first]}")
        wnids[first].extend(wnid for wnid in wnids[row] if wnid not in wnids[first])
        if splits[row] != splits[first]:
            # An image of the val split leaves the train split, not the other way round.
            splits[first] = "val" if "val" in (splits[row], splits[first]) else "train"
            crossing += 1
    left_out = _left_out(table.take(pa.array(copies, pa.int64())), reasons)
    table = table.drop_columns(["wnids", "split"])
    table = table.append_column("wnids", pa.array(wnids, pa.list_(pa.string())))
    table = table.append_column("split", pa.array(splits, pa.string()))
    return table.take(pa.array(firsts)), left_out, crossing


def exclude(table: pa.Table, known: Known) -> tuple[pa.Table, pa.Table]:
    """The rows that are in no other set, and those that are, with the reason."""
    reasons = known(table)
    is_known = pa.array([bool(reason) for reason in reasons], pa.bool_())
    left_out = _left_out(table.filter(is_known), [reason for reason in reasons if reason])
    return table.filter(pc.invert(is_known)), left_out


def _left_out(table: pa.Table, reasons: list[str]) -> pa.Table:
    hashes = pa.array([value.hex() for value in table["sha256"].to_pylist()], pa.string())
    columns = [table["archive"], table["member"], hashes, pa.array(reasons, pa.string())]
    return pa.table(columns, schema=LEFT_OUT)
