"""Products in float32: c = activation(factor a b + bias) + base."""

from finish import Target, finish
from lanes import Floats
from std.memory import stack_allocation
from tile import panel, tile_rows, tiles

# of a product's depth, what a panel of the right matrix holds in the first cache
comptime piece = 256
# rows of a task, whose sums stay there too
comptime most_rows = 8 * tile_rows


struct Product(Copyable):
    """Product of mojo/functions.hpp."""

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
