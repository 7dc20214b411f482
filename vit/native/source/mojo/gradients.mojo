"""Activations of training, and the gradients of its operations (training/operations.hpp)."""

from lanes import (
    Floats, Lanes, activated, gelu, gelu_tanh, lanes, load, no_activation, num_activations,
    root_half, store, tanh_cube, tanh_factor,
)
from softmax import soften
from std.math import erf, exp, sqrt, tanh


@export("vit_mojo_layer_norm_gradient")
def layer_norm_gradient(
    x: Floats, mean: Floats, variance: Floats, weight: Floats, eps: Float32,
    result_gradient: Floats, x_gradient: Floats, width: Int, first: Int, last: Int,
) abi("C"):
    """The gradient by x, rows from `first` to `last`."""
    for r in range(first, last):
        var row = x.unsafe_offset(r * width)
        var change = result_gradient.unsafe_offset(r * width)
        var middle = mean[unsafe_offset=r]
        var scale = 1 / sqrt(variance[unsafe_offset=r] + eps)
        var sums = Lanes(0)
        var products = Lanes(0)
        for at in range(0, width, lanes):
            var left = width - at
            var slope = load(change.unsafe_offset(at), left)
            slope = slope * load(weight.unsafe_offset(at), left)
            sums += slope
            products = slope.fma((load(row.unsafe_offset(at), left) - middle) * scale, products)
        var sum = sums.reduce_add() / Float32(width)
        var product = products.reduce_add() / Float32(width)
        for at in range(0, width, lanes):
            var left = width - at
            var slope = load(change.unsafe_offset(at), left)
            slope = slope * load(weight.unsafe_offset(at), left)
            var normal = (load(row.unsafe_offset(at), left) - middle) * scale
            var to = x_gradient.unsafe_offset(r * width + at)
            store(to, left, (slope - sum - normal * product) * scale)


@export("vit_mojo_layer_norm_parameters_gradient")
def layer_norm_parameters_gradient(
    x: Floats, mean: Floats, variance: Floats, eps: Float32, result_gradient: Floats,
    weight_gradient: Floats, bias_gradient: Floats, rows: Int, width: Int, first: Int, last: Int,
) abi("C"):
    """Columns from `first` to `last`."""
    for at in range(first, last, lanes):
        var left = last - at
        var sum = Lanes(0)
        var products = Lanes(0)
        for r in range(rows):
            var scale = 1 / sqrt(variance[unsafe_offset=r] + eps)
            var change = load(result_gradient.unsafe_offset(r * width + at), left)
            var apart = load(x.unsafe_offset(r * width + at), left) - mean[unsafe_offset=r]
            products = change.fma(apart * scale, products)
            sum += change
        store(weight_gradient.unsafe_offset(at), left, products)
        store(bias_gradient.unsafe_offset(at), left, sum)


@export("vit_mojo_activate")
def activate(kind: Int, x: Floats, result: Floats, first: Int, last: Int) abi("C"):
    """Values from `first` to `last`."""
    comptime for each in range(num_activations):
        if kind == each:
            for at in range(first, last, lanes):
                var left = last - at
                var value = activated[each](load(x.unsafe_offset(at), left))
                store(result.unsafe_offset(at), left, value)


@always_inline
def slope_of[kind: Int](x: Lanes, result: Lanes) -> Lanes:
    """The derivative of an activation at x."""
    comptime root = Float32(0.3989422804014327)  # 1 / sqrt(2 pi)
    comptime if kind == no_activation:
        return Lanes(1)
    elif kind == gelu:
        return 0.5 * erf(x * root_half) + 0.5 + x * root * exp(x * x * -0.5)
    elif kind == gelu_tanh:
        var inner = tanh(tanh_factor * (x + tanh_cube * x * x * x))
        var slope = tanh_factor * (1 + 3 * tanh_cube * x * x)
        return 0.5 * (1 + inner) + 0.5 * x * (1 - inner * inner) * slope
    else:
        return 1 - result * result


@export("vit_mojo_activate_gradient")
def activate_gradient(
    kind: Int, x: Floats, result: Floats, gradient: Floats, first: Int, last: Int
) abi("C"):
    """Values from `first` to `last`; the gradient by the result becomes that by x."""
    comptime for each in range(num_activations):
        if kind == each:
            for at in range(first, last, lanes):
                var left = last - at
                var value = load(x.unsafe_offset(at), left)
                var slope = slope_of[each](value, load(result.unsafe_offset(at), left))
                var to = gradient.unsafe_offset(at)
                store(to, left, load(to, left) * slope)


@export("vit_mojo_softmax")
def softmax(row: Floats, count: Int) abi("C"):
    """The softmax of a row, in place."""
    soften(row, count, 1)


@export("vit_mojo_softmax_gradient")
def softmax_gradient(row: Floats, gradient: Floats, count: Int) abi("C"):
    """The gradient by the softmax that is in `row` becomes that by what was there."""
    var sums = Lanes(0)
    for at in range(0, count, lanes):
        var value = load(row.unsafe_offset(at), count - at)
        sums = value.fma(load(gradient.unsafe_offset(at), count - at), sums)
    var sum = sums.reduce_add()
    for at in range(0, count, lanes):
        var left = count - at
        var to = gradient.unsafe_offset(at)
        store(to, left, load(row.unsafe_offset(at), left) * (load(to, left) - sum))
