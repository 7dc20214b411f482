"""The innermost part of products in float32: a tile of results that stays in registers.

Results are `panel` columns wide, as is the part of the right matrix.
"""

from lanes import Floats, Lanes, lanes

# with a row of the right matrix and a value of the left one, what the registers of a machine hold
comptime vectors = 2
comptime panel = vectors * lanes
comptime tile_rows = 14 if lanes == 16 else 6


@always_inline
def tile[
    rows: Int, tiled: Bool
](
    a: Floats, a_stride: Int, b: Floats, b_stride: Int, depth: Int, c: Floats, c_stride: Int,
    add: Bool,
):
    """Computes c (rows, panel) = a (rows, depth) b (depth, panel), or adds that to c.

    Rows of a are `a_stride` floats apart; `tiled`, a is (depth, tile_rows) instead.
    """
    var sums = Array[Lanes, rows * vectors](fill=Lanes(0))
    if add:
        comptime for r in range(rows):
            comptime for v in range(vectors):
                sums[r * vectors + v] = c.unsafe_load[width=lanes](r * c_stride + v * lanes)
    for k in range(depth):
        var row = Array[Lanes, vectors](fill=Lanes(0))
        comptime for v in range(vectors):
            row[v] = b.unsafe_load[width=lanes](k * b_stride + v * lanes)
        comptime for r in range(rows):
            var value: Float32
            comptime if tiled:
                value = a[unsafe_offset=k * tile_rows + r]
            else:
                value = a[unsafe_offset=r * a_stride + k]
            comptime for v in range(vectors):
                sums[r * vectors + v] = Lanes(value).fma(row[v], sums[r * vectors + v])
    comptime for r in range(rows):
        comptime for v in range(vectors):
            c.unsafe_store(r * c_stride + v * lanes, sums[r * vectors + v])


@always_inline
def tiles[
    tiled: Bool
](
    a: Floats, a_stride: Int, b: Floats, b_stride: Int, depth: Int, c: Floats, c_stride: Int,
    rows: Int, add: Bool,
):
    """The same for any number of rows; `tiled`, each tile of a is `a_stride` floats apart."""
    comptime apart = 1 if tiled else tile_rows
    var whole = rows // tile_rows
    for number in range(whole):
        tile[tile_rows, tiled](
            a.unsafe_offset(number * apart * a_stride), a_stride, b, b_stride, depth,
            c.unsafe_offset(number * tile_rows * c_stride), c_stride, add,
        )
    comptime for left in range(1, tile_rows):
        if rows - whole * tile_rows == left:
            tile[left, tiled](
                a.unsafe_offset(whole * apart * a_stride), a_stride, b, b_stride, depth,
                c.unsafe_offset(whole * tile_rows * c_stride), c_stride, add,
            )
