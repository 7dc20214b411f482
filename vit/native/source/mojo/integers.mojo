"""Products of bytes and signed codes, with exact sums of 32 bits."""

from finish import Target, finish
from lanes import Bytes, Codes, Counts, Floats, Ints, lanes
from std.memory import bitcast, stack_allocation
from std.sys.info import CompilationTarget
from std.sys.intrinsics import llvm_intrinsic
from tile import panel, tile_rows, vectors

comptime has_vnni = CompilationTarget.has_vnni()
comptime group = 4  # values of the depth that a lane of 32 bits holds
comptime piece = 256  # of the depth, in groups, as in product.mojo
comptime most_rows = 8 * tile_rows


struct ByteProduct(Copyable):
    """ByteProduct of mojo/functions.hpp."""

    var a: Bytes
    var a_stride: Int64
    var b: Codes
    var groups: Int64
    var offsets: Counts
    var scales: Floats
    var target: Target


@export("vit_mojo_largest_code")
def largest_code() abi("C") -> Int:
    """Largest byte of the left matrix; without VNNI pairs of products are added in 16 bits."""
    return 255 if has_vnni else 127


@always_inline
def added[name: StaticString](sums: Ints, a: Ints, b: Ints) -> Ints:
    return llvm_intrinsic[name, Ints, has_side_effect=False](
        sums, bitcast[DType.uint8, group * lanes](a), bitcast[DType.int8, group * lanes](b)
    )


@always_inline
def added_in_pairs[pairs: StaticString, sum: StaticString](sums: Ints, a: Ints, b: Ints) -> Ints:
    comptime Shorts = SIMD[DType.int16, 2 * lanes]
    var products = llvm_intrinsic[pairs, Shorts, has_side_effect=False](
        bitcast[DType.uint8, group * lanes](a), bitcast[DType.int8, group * lanes](b)
    )
    return sums + llvm_intrinsic[sum, Ints, has_side_effect=False](products, Shorts(1))


@always_inline
def dot(sums: Ints, a: Ints, b: Ints) -> Ints:
    """Sums + the products of the four bytes of each lane of a with the codes of b."""
    comptime if has_vnni and lanes == 16:
        return added["llvm.x86.avx512.vpdpbusd.512"](sums, a, b)
    elif has_vnni and lanes == 8:
        return added["llvm.x86.avx512.vpdpbusd.256"](sums, a, b)
    elif CompilationTarget.is_x86() and lanes == 16:
        return added_in_pairs["llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"](
            sums, a, b
        )
    elif CompilationTarget.is_x86() and lanes == 8:
        return added_in_pairs["llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"](sums, a, b)
    else:
        var result = sums
        comptime for i in range(group):
            result += ((a >> Int32(8 * i)) & 255) * ((b << Int32(24 - 8 * i)) >> 24)
        return result


@always_inline
def tile[
    rows: Int
](a: Bytes, stride: Int, b: Counts, groups: Int, c: Counts, add: Bool):
    """Computes c (rows, panel) = a (rows, groups) b (groups, panel), or adds that to c."""
    var sums = Array[Ints, rows * vectors](fill=Ints(0))
    if add:
        comptime for i in range(rows * vectors):
            sums[i] = c.unsafe_load[width=lanes](i * lanes)
    for k in range(groups):
        var row = Array[Ints, vectors](fill=Ints(0))
        comptime for v in range(vectors):
            row[v] = b.unsafe_load[width=lanes](k * panel + v * lanes)
        comptime for r in range(rows):
            var four = a.unsafe_offset(r * stride + group * k).unsafe_bitcast[Int32]()
            var value = Ints(four.unsafe_load[width=1, alignment=1]())
            comptime for v in range(vectors):
                sums[r * vectors + v] = dot(sums[r * vectors + v], value, row[v])
    comptime for i in range(rows * vectors):
        c.unsafe_store(i * lanes, sums[i])


@export("vit_mojo_pack_codes")
def pack_codes(codes: Codes, depth: Int, columns: Int, number: Int, packed: Codes, offsets: Counts,
               zero: Int) abi("C"):
    """Copies panel `number` of codes (columns, depth) to packed (panels, groups, panel, 4).

    Behind the last row and column are zeros. offsets (columns) become what a zero of the left
    matrix adds to the sums.
    """
    var groups = (depth + group - 1) // group
    var to = packed.unsafe_offset(number * panel * groups * group)
    for j in range(panel):
        var column = number * panel + j
        var sum = Int32(0)
        for k in range(groups * group):
            var code = Int8(0)
            if column < columns and k < depth:
                code = codes[unsafe_offset=column * depth + k]
            to[unsafe_offset=(k // group * panel + j) * group + k % group] = code
            sum += Int32(code)
        offsets[unsafe_offset=column] = sum * Int32(zero)


@export("vit_mojo_byte_product")
def byte_product(
    task: Pointer[ByteProduct, MutUntrackedOrigin], first: Int, rows: Int, number: Int
) abi("C"):
    """Computes `rows` rows from `first` on of panel `number`. Up to 3 bytes behind a are read."""
    ref p = task[]
    var groups = Int(p.groups)
    var stride = Int(p.a_stride)
    var counts = stack_allocation[most_rows * panel, Int32, alignment=64]()
    var sums = Counts(unsafe_from_address=Int(counts))
    var b = p.b.unsafe_bitcast[Int32]().unsafe_offset(number * panel * groups)
    for k in range(0, groups, piece):
        var count = min(piece, groups - k)
        var right = b.unsafe_offset(k * panel)
        var left = p.a.unsafe_offset(first * stride + group * k)
        var whole = rows // tile_rows
        for i in range(whole):
            tile[tile_rows](
                left.unsafe_offset(i * tile_rows * stride), stride, right, count,
                sums.unsafe_offset(i * tile_rows * panel), k > 0,
            )
        comptime for last in range(1, tile_rows):
            if rows - whole * tile_rows == last:
                tile[last](
                    left.unsafe_offset(whole * tile_rows * stride), stride, right, count,
                    sums.unsafe_offset(whole * tile_rows * panel), k > 0,
                )
    var values = sums.unsafe_bitcast[Float32]()
    for v in range(vectors):
        var column = number * panel + v * lanes
        var offset = p.offsets.unsafe_load[width=lanes](column)
        var scale = p.scales.unsafe_load[width=lanes](column)
        for r in range(rows):
            var at = r * panel + v * lanes
            var sum = sums.unsafe_load[width=lanes](at) - offset
            values.unsafe_store(at, sum.cast[DType.float32]() * scale)
    finish(p.target.copy(), values, first, rows, number * panel)
