"""Attention of a head, a tile of queries at a time."""

from lanes import Floats, SpanAt, lanes, store_span
from pack import pack_columns, pack_rows
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
    for p in range(panels(tokens)):
        var key = queries.unsafe_offset(width + p * panel * stride)
        var to = keys.unsafe_offset(p * panel * depth)
        pack_columns(key, stride, depth, tokens - p * panel, to)
    for p in range(panels(depth)):
        var value = queries.unsafe_offset(2 * width + p * panel)
        var to = values.unsafe_offset(p * panel * tokens)
        pack_rows(value, stride, tokens, depth - p * panel, to)
    var result = target[].copy()
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
                store_span(result, place + at, depth - at, sums)
