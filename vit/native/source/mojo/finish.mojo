"""What follows a product: bias, activation and sum, and the type of the results."""

from lanes import (
    Floats, Lanes, Span, activated, lanes, load, num_activations, store, store_bytes,
)
from tile import panel


struct Target(Copyable):
    """Target of mojo/functions.hpp: c = activation(factor * sum + bias) + base."""

    var out: Span
    var stride: Int64
    var columns: Int64
    var bias: Optional[Floats]
    var base: Optional[Floats]
    var base_stride: Int64
    var factor: Float32
    var activation: Int32


@always_inline
def finish_as[
    kind: Int, bytes: Bool
](target: Target, sums: Floats, first: Int, rows: Int, column: Int):
    var count = min(panel, Int(target.columns) - column)
    for at in range(0, count, lanes):
        var left = count - at
        var bias = Lanes(0)
        if target.bias:
            bias = load(target.bias.unsafe_value().unsafe_offset(column + at), left)
        for r in range(rows):
            var sum = sums.unsafe_load[width=lanes](r * panel + at)
            var value = activated[kind](sum.fma(Lanes(target.factor), bias))
            if target.base:
                var place = (first + r) * Int(target.base_stride) + column + at
                value += load(target.base.unsafe_value().unsafe_offset(place), left)
            var place = (first + r) * Int(target.stride) + column + at
            comptime if bytes:
                store_bytes(target.out, place, left, value)
            else:
                var out = target.out.data.unsafe_bitcast[Float32]()
                store(out.unsafe_offset(place), left, value)


@always_inline
def finish(target: Target, sums: Floats, first: Int, rows: Int, column: Int):
    """Stores sums (rows, panel) as the target's from row `first` and `column` on."""
    comptime for kind in range(num_activations):
        if target.activation == Int32(kind):
            if target.out.is_bytes():
                finish_as[kind, True](target, sums, first, rows, column)
            else:
                finish_as[kind, False](target, sums, first, rows, column)
