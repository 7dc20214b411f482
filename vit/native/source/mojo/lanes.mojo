"""Vectors as wide as those of the machine that this is compiled for, and memory of the C++ around.

All memory is the caller's. Nothing here allocates, raises or needs Mojo's run-time library.
"""

from std.math import erf, exp, iota, tanh
from std.memory import stack_allocation
from std.sys import simd_width_of
from std.sys.intrinsics import llvm_intrinsic, masked_load, masked_store

comptime lanes = simd_width_of[DType.float32]()
comptime Lanes = SIMD[DType.float32, lanes]
comptime Ints = SIMD[DType.int32, lanes]
comptime Floats = Pointer[Float32, MutUntrackedOrigin]
comptime Bytes = Pointer[UInt8, MutUntrackedOrigin]
comptime Codes = Pointer[Int8, MutUntrackedOrigin]
comptime Counts = Pointer[Int32, MutUntrackedOrigin]


struct Span(Copyable):
    """Span of model/kernels.hpp: float32, or bytes of value scale * (byte - zero), up to `top`."""

    var data: Bytes
    var type: Int32
    var scale: Float32
    var zero: Int32
    var top: Int32

    @always_inline
    def is_bytes(self) -> Bool:
        return self.type == 2


comptime SpanAt = Pointer[Span, MutUntrackedOrigin]


@always_inline
def load(at: Floats, left: Int) -> Lanes:
    """The next `left` values, or a whole vector of them; zeros behind."""
    if left >= lanes:
        return at.unsafe_load[width=lanes]()
    return masked_load[lanes](at, iota[DType.int32, lanes]().lt(Ints(left)), Lanes(0))


@always_inline
def store(at: Floats, left: Int, values: Lanes):
    """Stores the first `left` values, or the whole vector."""
    if left >= lanes:
        at.unsafe_store(0, values)
    else:
        masked_store[lanes](values, at, iota[DType.int32, lanes]().lt(Ints(left)))


@always_inline
def store_bytes(span: Span, at: Int, left: Int, values: Lanes):
    """Stores values as bytes of the span, from its element `at` on."""
    var shares = values * (1 / span.scale)
    var near = llvm_intrinsic["llvm.nearbyint", Lanes, has_side_effect=False](shares)
    var codes = max(near + Float32(span.zero), Lanes(0))
    var bytes = min(codes, Lanes(Float32(span.top))).cast[DType.int32]().cast[DType.uint8]()
    var to = span.data.unsafe_offset(at)
    if left >= lanes:
        to.unsafe_store(0, bytes)
    else:
        masked_store[lanes](bytes, to, iota[DType.int32, lanes]().lt(Ints(left)))


@always_inline
def store_span(span: Span, at: Int, left: Int, values: Lanes):
    """Stores values as the type of the span, from its element `at` on."""
    if span.is_bytes():
        store_bytes(span, at, left, values)
    else:
        store(span.data.unsafe_bitcast[Float32]().unsafe_offset(at), left, values)


# Activation of model/linear.hpp
comptime no_activation = 0
comptime gelu = 1
comptime gelu_tanh = 2
comptime num_activations = 4

comptime root_half = Float32(0.7071067811865476)
comptime tanh_factor = Float32(0.7978845608028654)  # sqrt(2 / pi)
comptime tanh_cube = Float32(0.044715)


@always_inline
def activated[kind: Int](x: Lanes) -> Lanes:
    """The activation of x; both kinds of GELU are those of torch.nn.GELU."""
    comptime if kind == no_activation:
        return x
    elif kind == gelu:
        return x * (0.5 * erf(x * root_half) + 0.5)
    elif kind == gelu_tanh:
        return x * (0.5 * tanh(tanh_factor * (x + tanh_cube * x * x * x)) + 0.5)
    else:
        return tanh(x)
