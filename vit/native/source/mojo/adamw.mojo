"""AdamW (arXiv 1711.05101), with moments in float32 or in blocks of 8 bits (arXiv 2110.02861)."""

from lanes import Bytes, Floats, Ints, Lanes, lanes, load, store
from std.math import sqrt
from std.memory import stack_allocation

comptime state_block = 256
comptime smallest_scale = Float32(1e-12)


struct Factors(Copyable):
    """AdamWFactors of training/training_kernels.hpp."""

    var rate1: Float32
    var rate2: Float32
    var beta2: Float32
    var eps: Float32
    var keep: Float32
    var step_size: Float32
    var deviation: Float32


struct State8(Copyable):
    """State8 of training/training_kernels.hpp."""

    var codes: Bytes
    var scales: Floats
    var map: Floats


comptime FactorsAt = Pointer[Factors, MutUntrackedOrigin]
comptime StateAt = Pointer[State8, MutUntrackedOrigin]


@always_inline
def update(factors: Factors, gradient: Lanes, weights: Floats, left: Int, mut first: Lanes,
           mut second: Lanes):
    """New moments, and the weights that they give."""
    first += factors.rate1 * (gradient - first)
    second = factors.beta2 * second + factors.rate2 * (gradient * gradient)
    var deviation = sqrt(second) / factors.deviation + factors.eps
    var change = factors.step_size * (first / deviation)
    store(weights, left, load(weights, left) * factors.keep - change)


@export("vit_mojo_adamw")
def adamw(
    factors: FactorsAt, gradient: Floats, weights: Floats, first_moment: Floats,
    second_moment: Floats, first: Int, last: Int,
) abi("C"):
    """Values from `first` to `last`."""
    for at in range(first, last, lanes):
        var left = last - at
        var one = load(first_moment.unsafe_offset(at), left)
        var two = load(second_moment.unsafe_offset(at), left)
        var slope = load(gradient.unsafe_offset(at), left)
        update(factors[], slope, weights.unsafe_offset(at), left, one, two)
        store(first_moment.unsafe_offset(at), left, one)
        store(second_moment.unsafe_offset(at), left, two)


@always_inline
def loaded(state: State8, at: Int) -> Lanes:
    var codes = state.codes.unsafe_load[width=lanes](at).cast[DType.int32]()
    return state.map.unsafe_gather(codes) * state.scales[unsafe_offset=at // state_block]


@always_inline
def store_block(state: State8, block: Int, values: Floats):
    """Rounds a block: the nearest of the map's values to value / scale, where the largest is 1."""
    var most = Lanes(smallest_scale)
    for i in range(0, state_block, lanes):
        most = max(most, abs(values.unsafe_load[width=lanes](i)))
    var scale = most.reduce_max()
    state.scales[unsafe_offset=block] = scale
    for i in range(0, state_block, lanes):
        var shares = values.unsafe_load[width=lanes](i) / scale
        var codes = Ints(0)  # of the largest value of the map that is not above
        comptime for bit in range(8):
            var higher = codes + Int32(128 >> bit)
            codes = shares.ge(state.map.unsafe_gather(higher)).select(higher, codes)
        var next = min(codes + 1, Ints(255))
        var below = state.map.unsafe_gather(codes)
        var half = (state.map.unsafe_gather(next) - below) * 0.5
        codes = (shares - below).ge(half).select(next, codes)
        state.codes.unsafe_store(block * state_block + i, codes.cast[DType.uint8]())


@export("vit_mojo_adamw8bit")
def adamw8bit(
    factors: FactorsAt, gradient: Floats, weights: Floats, first_moment: StateAt,
    second_moment: StateAt, first: Int, last: Int,
) abi("C"):
    """Blocks from `first` to `last`."""
    var memory = stack_allocation[2 * state_block, Float32, alignment=64]()
    var ones = Floats(unsafe_from_address=Int(memory))
    var twos = ones.unsafe_offset(state_block)
    for block in range(first, last):
        for i in range(0, state_block, lanes):
            var at = block * state_block + i
            var one = loaded(first_moment[], at)
            var two = loaded(second_moment[], at)
            var slope = gradient.unsafe_load[width=lanes](at)
            update(factors[], slope, weights.unsafe_offset(at), lanes, one, two)
            ones.unsafe_store(i, one)
            twos.unsafe_store(i, two)
        store_block(first_moment[], block, ones)
        store_block(second_moment[], block, twos)
