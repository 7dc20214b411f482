"""Softmax of a row."""

from lanes import Floats, Lanes, lanes, load, store
from std.math import exp, iota


@always_inline
def soften(row: Floats, count: Int, factor: Float32):
    """Replaces `count` scores by the softmax of factor * scores."""
    var most = Lanes(-3.0e38)
    var whole = count // lanes * lanes
    var tail = iota[DType.int32, lanes]().lt(Int32(count - whole))
    for at in range(0, whole, lanes):
        most = max(most, row.unsafe_load[width=lanes](at))
    if whole < count:
        var last = load(row.unsafe_offset(whole), count - whole)
        most = max(most, tail.select(last, Lanes(-3.0e38)))
    var largest = most.reduce_max() * factor
    var sums = Lanes(0)
    for at in range(0, whole, lanes):
        var value = exp(row.unsafe_load[width=lanes](at) * factor - largest)
        row.unsafe_store(at, value)
        sums += value
    if whole < count:
        var value = exp(load(row.unsafe_offset(whole), count - whole) * factor - largest)
        value = tail.select(value, Lanes(0))
        store(row.unsafe_offset(whole), count - whole, value)
        sums += value
    var share = 1 / sums.reduce_add()
    for at in range(0, count, lanes):
        var left = count - at
        store(row.unsafe_offset(at), left, load(row.unsafe_offset(at), left) * share)
