"""Products in float32: c = activation(factor a b + bias) + base."""

from finish import Target, finish
from lanes import Floats, Lanes, lanes, load, store
from std.memory import stack_allocation
from tile import panel, tile_rows, tiles

# of a product's depth, what a panel of the right matrix holds in the first cache
comptime piece = 256
# rows of a task, whose sums stay there too
comptime most_rows = 8 * tile_rows


struct Product(Copyable):
    """Product of mojo/product.hpp."""

    var a: Floats
    var a_stride: Int64
    var a_tiled: Int64
    var b: Floats
    var b_stride: Int64
    var b_apart: Int64
    var depth: Int64
    var target: Target


@export("vit_mojo_panel")
def panel_columns() abi("C") -> Int:
    """Columns of a packed panel."""
    return panel


@export("vit_mojo_tile_rows")
def rows_of_a_tile() abi("C") -> Int:
    """Rows of a packed tile."""
    return tile_rows


@export("vit_mojo_task_rows")
def rows_of_a_task() abi("C") -> Int:
    """Rows that one call of vit_mojo_product takes."""
    return most_rows


@export("vit_mojo_pack_panel")
def pack_panel(
    b: Floats, row_stride: Int, column_stride: Int, depth: Int, columns: Int, number: Int,
    packed: Floats,
) abi("C"):
    """Copies panel `number` of b (depth, columns) to its place in packed (panels, depth, panel).

    Columns behind the last are zeros.
    """
    var first = number * panel
    var count = min(panel, columns - first)
    var to = packed.unsafe_offset(first * depth)
    if column_stride == 1:
        for k in range(depth):
            var row = b.unsafe_offset(k * row_stride + first)
            for at in range(0, panel, lanes):
                to.unsafe_store(k * panel + at, load(row.unsafe_offset(at), count - at))
        return
    for k in range(depth):
        for j in range(panel):
            var from_ = (first + j) * column_stride + k * row_stride
            to[unsafe_offset=k * panel + j] = b[unsafe_offset=from_] if j < count else 0


@export("vit_mojo_pack_tile")
def pack_tile(
    a: Floats, row_stride: Int, column_stride: Int, rows: Int, depth: Int, number: Int,
    packed: Floats,
) abi("C"):
    """Copies tile `number` of a (rows, depth) to its place in packed (tiles, depth, tile_rows)."""
    var first = number * tile_rows
    var count = min(tile_rows, rows - first)
    var to = packed.unsafe_offset(first * depth)
    for k in range(depth):
        var row = a.unsafe_offset(first * row_stride + k * column_stride)
        for r in range(count):
            to[unsafe_offset=k * tile_rows + r] = row[unsafe_offset=r * row_stride]


@export("vit_mojo_product")
def product(
    task: Pointer[Product, MutUntrackedOrigin], first: Int, rows: Int, number: Int
) abi("C"):
    """Computes `rows` rows from `first` on, a multiple of tile_rows, of panel `number`."""
    ref p = task[]
    var depth = Int(p.depth)
    var sums = stack_allocation[most_rows * panel, Float32, alignment=64]()
    var to = Floats(unsafe_from_address=Int(sums))
    var b = p.b.unsafe_offset(number * Int(p.b_apart))
    var b_stride = Int(p.b_stride)
    for k in range(0, depth, piece):
        var count = min(piece, depth - k)
        var right = b.unsafe_offset(k * b_stride)
        if p.a_tiled:
            var left = p.a.unsafe_offset(first * depth + k * tile_rows)
            tiles[True](left, tile_rows * depth, right, b_stride, count, to, panel, rows, k > 0)
        else:
            var stride = Int(p.a_stride)
            var left = p.a.unsafe_offset(first * stride + k)
            tiles[False](left, stride, right, b_stride, count, to, panel, rows, k > 0)
    finish(p.target.copy(), to, first, rows, number * panel)
