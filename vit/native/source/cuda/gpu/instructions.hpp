// Instructions of NVIDIA's GPUs that C++ has no name for: of compute capability 8.0 and newer.
//
// host/simulated.hpp has the same functions for threads that are simulated.
#pragma once

#include <cstdint>

namespace vit {

__device__ inline float float_of(std::uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

// The bits of a bfloat16: to the nearest, ties to even.
__device__ inline std::uint16_t bfloat16_of(float value) {
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// A float in TF32, whose fraction has 10 bits: to the nearest, ties away from 0. Volatile, as else
// the compiler takes it out of loops, and has not enough registers for the results.
__device__ inline float tensor_float_of(float value) {
  unsigned bits;
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

// Two bfloat16 side by side.
__device__ inline unsigned pair_of(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// e^x, within 2e-6 of its value for |x| < 10.
__device__ inline float quick_exp(float x) { return __expf(x); }

// Memory of a block, aligned to 64 bytes.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(64) unsigned char memory[];
  return memory;
}

// sums (16, 8) += a (16, 16) b (16, 8) on tensor cores: PTX's mma.m16n8k16, whose section of the
// PTX ISA says which lane has what. sums0 are two in the upper half of the rows, sums1 in the
// lower.
__device__ inline void multiply(float* sums0, float* sums1, const unsigned (&a)[4], unsigned b0,
                                unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums0[0]), "+f"(sums0[1]), "+f"(sums1[0]), "+f"(sums1[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sums (16, 8) += a (16, 8) b (8, 8) in TF32: PTX's mma.m16n8k8, as above.
__device__ inline void multiply(float* sums0, float* sums1, const float (&a)[4], float b0,
                                float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums0[0]), "+f"(sums0[1]), "+f"(sums1[0]), "+f"(sums1[1])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// Four blocks (8, 8) of bfloat16 in shared memory, transposed on the way: PTX's ldmatrix. Each lane
// gives the address of a row, aligned to 16 bytes: lanes 0 to 7 those of the first block, and so
// on.
__device__ inline void load_transposed(const void* row, unsigned (&blocks)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

}  // namespace vit
