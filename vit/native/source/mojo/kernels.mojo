"""The kernels of model/kernels.hpp, for some of their rows at a time."""

from lanes import Floats, Lanes, Span, SpanAt, lanes, load, store, store_span
from std.math import sqrt


@export("vit_mojo_patches")
def patches(
    images: Floats, rows: SpanAt, side: Int, patch: Int, first: Int, last: Int
) abi("C"):
    """Rows of patches from `first` to `last`, numbered over all images."""
    var grid = side // patch
    var values = 3 * patch * patch
    var to = rows[].copy()
    for line in range(first, last):
        var b = line // grid
        for x in range(grid):
            for row in range(3 * patch):  # channel, then y in the patch
                var y = line % grid * patch + row % patch
                var from_ = ((b * 3 + row // patch) * side + y) * side + x * patch
                var place = (line * grid + x) * values + row * patch
                for at in range(0, patch, lanes):
                    var pixels = load(images.unsafe_offset(from_ + at), patch - at)
                    store_span(to, place + at, patch - at, pixels)


@export("vit_mojo_embed")
def embed(
    patches: Floats, start: Floats, tokens: Floats, num_patches: Int, num_tokens: Int, width: Int,
    first: Int, last: Int,
) abi("C"):
    """Tokens from `first` to `last`, numbered over all images."""
    var prefix = num_tokens - num_patches
    for row in range(first, last):
        var token = row % num_tokens
        var patch = row // num_tokens * num_patches + token - prefix
        for at in range(0, width, lanes):
            var value = load(start.unsafe_offset(token * width + at), width - at)
            if token >= prefix:
                value += load(patches.unsafe_offset(patch * width + at), width - at)
            store(tokens.unsafe_offset(row * width + at), width - at, value)


@always_inline
def centred(row: Floats, width: Int) -> Tuple[Float32, Float32]:
    """Mean and variance of a row."""
    var sums = Lanes(0)
    for at in range(0, width, lanes):
        sums += load(row.unsafe_offset(at), width - at)
    var mean = sums.reduce_add() / Float32(width)
    var squares = Lanes(0)
    var whole = width // lanes * lanes
    for at in range(0, whole, lanes):
        var apart = row.unsafe_load[width=lanes](at) - mean
        squares = apart.fma(apart, squares)
    var sum = squares.reduce_add()
    for at in range(whole, width):
        var apart = row[unsafe_offset=at] - mean
        sum += apart * apart
    return mean, sum / Float32(width)


@export("vit_mojo_layer_norm")
def layer_norm(
    x: Floats, stride: Int, weight: Floats, bias: Floats, eps: Float32, target: SpanAt, width: Int,
    mean: Optional[Floats], variance: Optional[Floats], first: Int, last: Int,
) abi("C"):
    """Rows from `first` to `last`; their means and variances are kept where there is memory."""
    var to = target[].copy()
    for r in range(first, last):
        var row = x.unsafe_offset(r * stride)
        var facts = centred(row, width)
        var scale = 1 / sqrt(facts[1] + eps)
        if mean and variance:
            mean.unsafe_value()[unsafe_offset=r] = facts[0]
            variance.unsafe_value()[unsafe_offset=r] = facts[1]
        for at in range(0, width, lanes):
            var left = width - at
            var normal = (load(row.unsafe_offset(at), left) - facts[0]) * scale
            var factor = load(weight.unsafe_offset(at), left)
            var result = normal.fma(factor, load(bias.unsafe_offset(at), left))
            store_span(to, r * width + at, left, result)


@export("vit_mojo_gather")
def gather(
    x: Floats, stride: Int, result: Floats, width: Int, first: Int, last: Int
) abi("C"):
    """Rows from `first` to `last`."""
    for r in range(first, last):
        for at in range(0, width, lanes):
            var values = load(x.unsafe_offset(r * stride + at), width - at)
            store(result.unsafe_offset(r * width + at), width - at, values)


@export("vit_mojo_mean")
def mean(
    x: Floats, result: Floats, tokens: Int, skip: Int, width: Int, first: Int, last: Int
) abi("C"):
    """Images from `first` to `last`."""
    var share = 1 / Float32(tokens - skip)
    for b in range(first, last):
        for at in range(0, width, lanes):
            var sum = Lanes(0)
            for t in range(skip, tokens):
                sum += load(x.unsafe_offset((b * tokens + t) * width + at), width - at)
            store(result.unsafe_offset(b * width + at), width - at, sum * share)
