"""AdamW (arXiv 1711.05101), with moments in float32 or in blocks of 8 bits (arXiv 2110.02861)."""

from lanes import Bytes, Floats, Ints, Lanes, lanes, load, store
from std.math import sqrt
from std.memory import stack_allocation

comptime state_block = 256
comptime together = 4  # vectors whose look-ups overlap
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
def eighth_of(map: Floats, shares: Lanes) -> Ints:
    """First code of the eighth of the map that a value is in: three steps of a binary search."""
    var upper = shares.ge(Lanes(map[unsafe_offset=128]))
    var quarter = upper.select(Lanes(map[unsafe_offset=192]), Lanes(map[unsafe_offset=64]))
    var third = shares.ge(quarter)
    var high = third.select(Lanes(map[unsafe_offset=224]), Lanes(map[unsafe_offset=160]))
    var low = third.select(Lanes(map[unsafe_offset=96]), Lanes(map[unsafe_offset=32]))
    var fourth = shares.ge(upper.select(high, low))
    var none = Ints(0)
    return (
        upper.select(Ints(128), none) + third.select(Ints(64), none) + fourth.select(Ints(32), none)
    )


@always_inline
def store_block(state: State8, block: Int, values: Floats):
    """Rounds a block: the nearest of the map's values to value / scale, where the largest is 1."""
    var most = Lanes(smallest_scale)
    for i in range(0, state_block, lanes):
        most = max(most, abs(values.unsafe_load[width=lanes](i)))
    var scale = most.reduce_max()
    state.scales[unsafe_offset=block] = scale
    for start in range(0, state_block, together * lanes):
        var shares = Array[Lanes, together](fill=Lanes(0))
        var codes = Array[Ints, together](fill=Ints(0))
        comptime for j in range(together):
            shares[j] = values.unsafe_load[width=lanes](start + j * lanes) / scale
            codes[j] = eighth_of(state.map, shares[j])
        comptime for bit in range(3, 8):  # largest values of the map that are not above
            comptime for j in range(together):
                var higher = codes[j] + Int32(128 >> bit)
                var reached = shares[j].ge(state.map.unsafe_gather(higher))
                codes[j] = reached.select(higher, codes[j])
        comptime for j in range(together):
            var next = min(codes[j] + 1, Ints(255))
            var below = state.map.unsafe_gather(codes[j])
            var half = (state.map.unsafe_gather(next) - below) * 0.5
            var nearest = (shares[j] - below).ge(half).select(next, codes[j])
            var place = block * state_block + start + j * lanes
            state.codes.unsafe_store(place, nearest.cast[DType.uint8]())


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
