"""Matrices in the order in which a product reads them: panels of columns, and tiles of rows."""

from lanes import Floats, Lanes, lanes, load, store
from std.bit import log2_floor
from tile import panel, tile_rows


@always_inline
def transposed(rows: Array[Lanes, lanes]) -> Array[Lanes, lanes]:
    """The transpose: interleaving both halves moves a bit of the row's number to the column's."""
    var result = rows.copy()
    comptime for _ in range(log2_floor(lanes)):
        var before = result.copy()
        comptime for i in range(lanes // 2):
            var both = before[i].interleave(before[i + lanes // 2])
            result[2 * i] = both.slice[lanes]()
            result[2 * i + 1] = both.slice[lanes, offset=lanes]()
    return result^


@always_inline
def pack_rows(b: Floats, stride: Int, depth: Int, count: Int, to: Floats):
    """Copies `count` columns of b (depth, ...), whose rows are `stride` floats apart."""
    for k in range(depth):
        for at in range(0, panel, lanes):
            var values = load(b.unsafe_offset(k * stride + at), count - at)
            to.unsafe_store(k * panel + at, values)


@always_inline
def pack_columns(b: Floats, stride: Int, depth: Int, count: Int, to: Floats):
    """The same for columns whose values lie together, and which are `stride` floats apart."""
    for at in range(0, panel, lanes):
        for k in range(0, depth, lanes):
            var columns = Array[Lanes, lanes](fill=Lanes(0))
            comptime for j in range(lanes):
                if at + j < count:
                    columns[j] = load(b.unsafe_offset((at + j) * stride + k), depth - k)
            var rows = transposed(columns)
            comptime for i in range(lanes):
                if k + i < depth:
                    to.unsafe_store((k + i) * panel + at, rows[i])


@export("vit_mojo_pack_panel")
def pack_panel(
    b: Floats, row_stride: Int, column_stride: Int, depth: Int, columns: Int, number: Int,
    packed: Floats,
) abi("C"):
    """Copies panel `number` of b (depth, columns) to its place in packed (panels, depth, panel).

    Columns behind the last are zeros. One of the strides is 1.
    """
    var first = number * panel
    var to = packed.unsafe_offset(first * depth)
    var start = b.unsafe_offset(first * column_stride)
    if column_stride == 1:
        pack_rows(start, row_stride, depth, columns - first, to)
    else:
        pack_columns(start, column_stride, depth, columns - first, to)


@export("vit_mojo_pack_tile")
def pack_tile(
    a: Floats, stride: Int, rows: Int, depth: Int, number: Int, packed: Floats
) abi("C"):
    """Copies tile `number` of a (rows, depth) to its place in packed (tiles, depth, tile_rows).

    Columns of a are `stride` floats apart, and their values lie together.
    """
    var first = number * tile_rows
    var to = packed.unsafe_offset(first * depth)
    for k in range(depth):
        for at in range(0, tile_rows, lanes):
            var row = a.unsafe_offset(k * stride + first + at)
            var values = load(row, rows - first - at)
            store(to.unsafe_offset(k * tile_rows + at), tile_rows - at, values)
