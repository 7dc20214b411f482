// The threads that compute a piece of work together, for kernels that are written once for both.
//
// A kernel is a template over its team: each thread takes the values rank(), rank() + size(), ...
// On a GPU a team is a warp or a block; on a CPU it is one thread, for which all that a team agrees
// on is known already. So the arithmetic of every kernel runs, and is tested, without a GPU.
#pragma once

#include <cstdint>

// VIT_UNROLL is before loops over what a thread has of a table: of that, only what has fixed places
// is in registers.
//
// VIT_GPU is set where this is compiled for the threads of a GPU: real ones, or with VIT_SIMULATED
// such as tests run on a CPU.
#ifdef __CUDACC__
#include "cuda/gpu/instructions.hpp"
#define VIT_GPU
#define VIT_BOTH __device__ inline
#define VIT_UNROLL _Pragma("unroll")
#else
#ifdef VIT_SIMULATED
#include "cuda/host/simulated.hpp"
#define VIT_GPU
#endif
#define VIT_BOTH inline
#define VIT_UNROLL
#endif

namespace vit {

#ifdef VIT_GPU

constexpr unsigned all_lanes = 0xFFFFFFFFU;

// The largest value, or the sum, over groups of `lanes` neighbours in a warp.
template <int lanes>
VIT_BOTH float max_of_lanes(float value) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(all_lanes, value, step));
  }
  return value;
}
template <int lanes>
VIT_BOTH float sum_of_lanes(float value) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(all_lanes, value, step);
  }
  return value;
}

struct Warp {
  static constexpr int threads = 32;

  VIT_BOTH int rank() const { return static_cast<int>(threadIdx.x) % threads; }
  VIT_BOTH static constexpr int size() { return threads; }
  VIT_BOTH float sum(float value) const { return sum_of_lanes<threads>(value); }
  VIT_BOTH float max(float value) const { return max_of_lanes<threads>(value); }
  VIT_BOTH void sync() const { __syncwarp(); }
};

template <int threads_>
struct Block {
  static constexpr int threads = threads_;

  VIT_BOTH int rank() const { return static_cast<int>(threadIdx.x); }
  VIT_BOTH static constexpr int size() { return threads; }
  VIT_BOTH float sum(float value) const {
    value = sum_of_lanes<32>(value);
    share(value);
    value = 0.0f;
    for (int i = 0; i < warps; ++i) value += shared()[i];
    return value;
  }
  VIT_BOTH float max(float value) const {
    value = max_of_lanes<32>(value);
    share(value);
    value = shared()[0];
    for (int i = 1; i < warps; ++i) value = fmaxf(value, shared()[i]);
    return value;
  }
  VIT_BOTH void sync() const { __syncthreads(); }

 private:
  static constexpr int warps = threads / 32;

  VIT_BOTH static float* shared() {
    __shared__ float values[warps];
    return values;
  }
  // Leaves the value of each warp to all; the first barrier waits for who still reads the last ones
  VIT_BOTH void share(float value) const {
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared()[threadIdx.x / 32] = value;
    __syncthreads();
  }
};

#else

struct Warp {
  static constexpr int threads = 1;

  static constexpr int rank() { return 0; }
  static constexpr int size() { return 1; }
  static float sum(float value) { return value; }
  static float max(float value) { return value; }
  static void sync() {}
};

template <int>
using Block = Warp;

#endif

}  // namespace vit
