"""Images that lie somewhere twice: copies within the sources, and images of another shard set.

Copies of the same bytes become one sample with all their classes: ImageNet-21k has many images
under a class and again under the class above it. Images of another set are known by the same
bytes, or by a perceptual hash that differs in a few bits.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

LEFT_OUT = pa.schema(
    [
        pa.field("archive", pa.string()),
        pa.field("member", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("reason", pa.string()),
    ]
)
Known = Callable[[pa.Table], list[str]]
"""Says of each row why it is left out as lying in another set, "" where it does not."""


def merge(table: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """Rows of one bucket in order, one per content with all its classes; and the other copies.

    The number is that of copies that lay in another split than the one that is kept.
    """
    if not table.num_rows:
        return table, LEFT_OUT.empty_table(), 0
    table = table.sort_by([(name, "ascending") for name in ("order", "sha256", "unit", "row")])
    hashes = table["sha256"].to_pylist()
    wnids, splits = table["wnids"].to_pylist(), table["split"].to_pylist()
    first, copies, crossing = [0], [], 0
    for row in range(1, len(hashes)):
        kept = first[-1]
        if hashes[row] != hashes[kept]:
            first.append(row)
            continue
        copies.append((row, kept))
        wnids[kept].extend(wnid for wnid in wnids[row] if wnid not in wnids[kept])
        if splits[row] != splits[kept]:
            # An image of the val split leaves the train split, not the other way round.
            splits[kept] = "val" if "val" in (splits[row], splits[kept]) else "train"
            crossing += 1
    table = table.set_column(
        table.schema.get_field_index("wnids"), "wnids", pa.array(wnids, pa.list_(pa.string()))
    )
    table = table.set_column(table.schema.get_field_index("split"), "split", pa.array(splits))
    names = [table[name].to_pylist() for name in ("archive", "member")] if copies else []
    others = [
        {
            "archive": names[0][row],
            "member": names[1][row],
            "sha256": hashes[row].hex(),
            "reason": f"same bytes as {names[0][kept]}: {names[1][kept]}",
        }
        for row, kept in copies
    ]
    return table.take(pa.array(first)), pa.Table.from_pylist(others, LEFT_OUT), crossing


def exclude(table: pa.Table, known: Known) -> tuple[pa.Table, pa.Table]:
    """Rows that lie in no other set, and those that do with the reason."""
    reasons = known(table)
    lying = pa.array([bool(reason) for reason in reasons], pa.bool_())
    out = table.filter(lying)
    hashes = pa.array([value.hex() for value in out["sha256"].to_pylist()], pa.string())
    why = pa.array([reason for reason in reasons if reason], pa.string())
    columns = [out["archive"], out["member"], hashes, why]
    return table.filter(pc.invert(lying)), pa.table(columns, schema=LEFT_OUT)
