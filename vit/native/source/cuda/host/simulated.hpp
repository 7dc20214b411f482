// The threads of a GPU on a CPU, so that tests run what else only a GPU runs: how threads share the
// work, what they tell each other, and where they wait. Slow, and one kernel at a time.
//
// The names that CUDA has are those of CUDA. See gpu/instructions.hpp for the others.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __device__
#define __global__
#define __shared__ static  // blocks run one after the other
#define __launch_bounds__(threads)

struct SimulatedIndex {
  unsigned x;
};
extern SimulatedIndex threadIdx, blockIdx, blockDim;

// Wait for the other threads of the block, or of the warp.
void __syncthreads();
void __syncwarp();
// The value of the thread of the warp whose number differs in these bits.
float __shfl_xor_sync(unsigned lanes, float value, int bits);

namespace vit {

float float_of(std::uint16_t bits);
std::uint16_t bfloat16_of(float value);
float tensor_float_of(float value);
unsigned pair_of(float low, float high);
inline float quick_exp(float x) { return expf(x); }
unsigned char* shared_memory();
void multiply(float* sums0, float* sums1, const unsigned (&a)[4], unsigned b0, unsigned b1);
void multiply(float* sums0, float* sums1, const float (&a)[4], float b0, float b1);
void load_transposed(const void* row, unsigned (&blocks)[4]);

// Runs `thread` as each thread of each block. std::logic_error if threads wait for each other in
// vain, if an address is not aligned, or if it takes more shared memory than the smallest of the
// GPUs that the sources are for has.
void simulate(unsigned blocks, unsigned threads, std::size_t shared_bytes,
              const std::function<void()>& thread);

}  // namespace vit
