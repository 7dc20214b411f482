"""Attention of a head, a tile of queries at a time."""

from lanes import Floats, Lanes, SpanAt, lanes, load, store_span
from softmax import soften
from std.math import sqrt
from tile import panel, tile_rows, tiles


@always_inline
def panels(columns: Int) -> Int:
    return (columns + panel - 1) // panel


@export("vit_mojo_attention_memory")
def attention_memory(tokens: Int, depth: Int) abi("C") -> Int:
    """Floats of memory that vit_mojo_attention needs."""
    var columns = panels(tokens) * panel
    var width = panels(depth) * panel
    return depth * columns + tokens * width + tile_rows * (columns + width)


@always_inline
def take_keys(keys: Floats, from_: Floats, stride: Int, tokens: Int, depth: Int):
    """Packs keys (tokens, depth) as panels of columns; zeros behind the last."""
    for number in range(panels(tokens)):
        var to = keys.unsafe_offset(number * panel * depth)
        for j in range(panel):
            var token = number * panel + j
            for k in range(depth):
                var value = Float32(0)
                if token < tokens:
                    value = from_[unsafe_offset=token * stride + k]
                to[unsafe_offset=k * panel + j] = value


@always_inline
def take_values(values: Floats, from_: Floats, stride: Int, tokens: Int, depth: Int):
    """Packs values (tokens, depth) as panels; zeros behind the last column."""
    for number in range(panels(depth)):
        var to = values.unsafe_offset(number * panel * tokens)
        for token in range(tokens):
            for at in range(0, panel, lanes):
                var column = number * panel + at
                var row = from_.unsafe_offset(token * stride + column)
                to.unsafe_store(token * panel + at, load(row, depth - column))


@export("vit_mojo_attention")
def attention(
    qkv: Floats, target: SpanAt, tokens: Int, keep: Int, heads: Int, width: Int, number: Int,
    memory: Floats,
) abi("C"):
    """Head `number`, counted over all images, for its first `keep` queries."""
    var depth = width // heads
    var stride = 3 * width
    var factor = 1 / sqrt(Float32(depth))
    var b = number // heads
    var column = number % heads * depth
    var columns = panels(tokens) * panel
    var padded = panels(depth) * panel
    var keys = memory
    var values = keys.unsafe_offset(depth * columns)
    var scores = values.unsafe_offset(tokens * padded)
    var results = scores.unsafe_offset(tile_rows * columns)
    var queries = qkv.unsafe_offset(b * tokens * stride + column)
    take_keys(keys, queries.unsafe_offset(width), stride, tokens, depth)
    take_values(values, queries.unsafe_offset(2 * width), stride, tokens, depth)
    var to = target[].copy()
    for t in range(0, keep, tile_rows):
        var rows = min(tile_rows, keep - t)
        for p in range(panels(tokens)):
            var right = keys.unsafe_offset(p * panel * depth)
            var row = queries.unsafe_offset(t * stride)
            tiles[False](
                row, stride, right, panel, depth, scores.unsafe_offset(p * panel), columns, rows,
                False,
            )
        for p in range(panels(depth)):
            if p == 0:
                for r in range(rows):
                    soften(scores.unsafe_offset(r * columns), tokens, factor)
            var right = values.unsafe_offset(p * panel * tokens)
            tiles[False](
                scores, columns, right, panel, tokens, results.unsafe_offset(p * panel), padded,
                rows, False,
            )
        for r in range(rows):
            var place = (b * keep + t + r) * width + column
            for at in range(0, depth, lanes):
                var sums = results.unsafe_load[width=lanes](r * padded + at)
                store_span(to, place + at, depth - at, sums)
