"""The kernels of training/training_kernels.hpp, for some of their rows at a time."""

from lanes import Floats, Lanes, lanes, load, store
from std.math import exp, iota, log

comptime smallest = Float32(1.17549435e-38)


@export("vit_mojo_add_rows")
def add_rows(x: Floats, result: Floats, stride: Int, width: Int, first: Int, last: Int) abi("C"):
    """Rows from `first` to `last`."""
    for r in range(first, last):
        for at in range(0, width, lanes):
            var left = width - at
            var to = result.unsafe_offset(r * stride + at)
            store(to, left, load(to, left) + load(x.unsafe_offset(r * width + at), left))


@export("vit_mojo_layer_scale")
def layer_scale(
    x: Floats, branch: Floats, gamma: Floats, result: Floats, width: Int, first: Int, last: Int
) abi("C"):
    """Rows from `first` to `last`."""
    for r in range(first, last):
        for at in range(0, width, lanes):
            var left = width - at
            var place = r * width + at
            var value = load(branch.unsafe_offset(place), left)
            value = value * load(gamma.unsafe_offset(at), left)
            store(result.unsafe_offset(place), left, load(x.unsafe_offset(place), left) + value)


@export("vit_mojo_layer_scale_gradient")
def layer_scale_gradient(
    result_gradient: Floats, branch: Floats, gamma: Floats, branch_gradient: Floats,
    gamma_gradient: Floats, rows: Int, width: Int, first: Int, last: Int,
) abi("C"):
    """Columns from `first` to `last`."""
    for at in range(first, last, lanes):
        var left = last - at
        var factor = load(gamma.unsafe_offset(at), left)
        var sum = Lanes(0)
        for r in range(rows):
            var place = r * width + at
            var change = load(result_gradient.unsafe_offset(place), left)
            sum = change.fma(load(branch.unsafe_offset(place), left), sum)
            store(branch_gradient.unsafe_offset(place), left, change * factor)
        store(gamma_gradient.unsafe_offset(at), left, sum)


@export("vit_mojo_mean_gradient")
def mean_gradient(
    result_gradient: Floats, x_gradient: Floats, tokens: Int, skip: Int, width: Int, first: Int,
    last: Int,
) abi("C"):
    """Images from `first` to `last`."""
    var share = 1 / Float32(tokens - skip)
    for b in range(first, last):
        for t in range(tokens):
            var factor = Float32(0) if t < skip else share
            for at in range(0, width, lanes):
                var left = width - at
                var change = load(result_gradient.unsafe_offset(b * width + at), left)
                var to = x_gradient.unsafe_offset((b * tokens + t) * width + at)
                store(to, left, change * factor)


@export("vit_mojo_cross_entropy")
def cross_entropy(
    logits: Floats, targets: Floats, losses: Floats, gradient: Floats, batch: Int, classes: Int,
    first: Int, last: Int,
) abi("C"):
    """Images from `first` to `last`."""
    for b in range(first, last):
        var x = logits.unsafe_offset(b * classes)
        var target = targets.unsafe_offset(b * classes)
        var to = gradient.unsafe_offset(b * classes)
        var total = Float32(0)
        var most = x[unsafe_offset=0]
        for i in range(classes):
            total += target[unsafe_offset=i]
            most = max(most, x[unsafe_offset=i])
        var sums = Lanes(0)
        for at in range(0, classes, lanes):
            var left = classes - at
            var value = exp(load(x.unsafe_offset(at), left) - most)
            store(to.unsafe_offset(at), left, value)
            sums += iota[DType.int32, lanes]().lt(Int32(left)).select(value, Lanes(0))
        var sum = sums.reduce_add()
        var norm = 1 / max(total, smallest)
        var log_sum = most + log(sum)
        var share = total * norm / sum
        var loss = Float32(0)
        for i in range(classes):
            var wanted = target[unsafe_offset=i] * norm
            loss -= wanted * (x[unsafe_offset=i] - log_sum)
            to[unsafe_offset=i] = (to[unsafe_offset=i] * share - wanted) / Float32(batch)
        losses[unsafe_offset=b] = loss
