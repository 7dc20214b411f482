// Runs a kernel for each of a number of items: on the GPU, or on the threads of a CPU where this is
// compiled for one.
//
// A kernel is a struct of its arguments. For launch_each it has operator()(item), which a thread
// runs; for launch it has operator()(team, item, memory), and type Team, whose threads run it
// together with `bytes` of memory that they share, aligned to 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/team.hpp"
#include "model/device.hpp"

#ifdef VIT_GPU
#include <limits>
#include <stdexcept>
#else
#include <omp.h>

#include <vector>
#endif
#ifdef __CUDACC__
#include "cuda/gpu/stream.hpp"
#endif

namespace vit {

#ifdef VIT_GPU

// Threads of a block whose threads or warps have an item each.
constexpr int block_threads = 256;
// Up to so many warps get a block each, as a block that has several keeps them on one of the many
// processors of a GPU.
constexpr std::int64_t few_warps = 512;

template <class Kernel>
__global__ void __launch_bounds__(block_threads) run_each(Kernel kernel, std::int64_t items) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (item < items) kernel(item);
}

template <class Kernel>
__global__ void __launch_bounds__(block_threads) run_warps(Kernel kernel, std::int64_t items) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / Warp::threads);
  const std::int64_t item = first + threadIdx.x / Warp::threads;
  if (item < items) kernel(Warp{}, item, static_cast<unsigned char*>(nullptr));
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::Team::threads) run_blocks(Kernel kernel, std::int64_t) {
  kernel(typename Kernel::Team{}, static_cast<std::int64_t>(blockIdx.x), shared_memory());
}

#ifdef __CUDACC__

// What a block can share without being asked for.
constexpr std::size_t usual_shared_bytes = 48 << 10;

template <class Kernel>
void submit(Device& device, void (*function)(Kernel, std::int64_t), unsigned blocks, int threads,
            std::size_t bytes, const Kernel& kernel, std::int64_t items) {
  if (bytes > usual_shared_bytes) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
  }
  function<<<blocks, static_cast<unsigned>(threads), bytes, stream_of(device)>>>(kernel, items);
  check(cudaGetLastError());
}

#else

template <class Kernel>
void submit(Device&, void (*function)(Kernel, std::int64_t), unsigned blocks, int threads,
            std::size_t bytes, const Kernel& kernel, std::int64_t items) {
  simulate(blocks, static_cast<unsigned>(threads), bytes, [&] { function(kernel, items); });
}

#endif

// Blocks of a launch; std::runtime_error for more than a GPU takes.
inline unsigned grid_of(std::int64_t items, int items_of_block) {
  const std::int64_t blocks = (items + items_of_block - 1) / items_of_block;
  if (blocks > std::numeric_limits<int>::max()) {
    throw std::runtime_error("a batch is too large for one launch on a GPU; use smaller batches");
  }
  return static_cast<unsigned>(blocks);
}

template <class Kernel>
void launch_each(Device& device, std::int64_t items, const Kernel& kernel) {
  if (items == 0) return;
  submit(device, run_each<Kernel>, grid_of(items, block_threads), block_threads, 0, kernel, items);
}

template <class Kernel>
void launch(Device& device, std::int64_t items, const Kernel& kernel, std::size_t bytes = 0) {
  if (items == 0) return;
  constexpr int threads = Kernel::Team::threads;
  if constexpr (threads == Warp::threads) {
    const int warps = items <= few_warps ? 1 : block_threads / threads;
    submit(device, run_warps<Kernel>, grid_of(items, warps), warps * threads, 0, kernel, items);
  } else {
    submit(device, run_blocks<Kernel>, grid_of(items, 1), threads, bytes, kernel, items);
  }
}

#else

template <class Kernel>
void launch_each(Device&, std::int64_t items, const Kernel& kernel) {
#pragma omp parallel for
  for (std::int64_t item = 0; item < items; ++item) kernel(item);
}

template <class Kernel>
void launch(Device&, std::int64_t items, const Kernel& kernel, std::size_t bytes = 0) {
  struct alignas(64) Line {
    unsigned char values[64];
  };
  // allocated here, as an exception may not leave the threads
  const std::size_t lines = bytes / sizeof(Line) + 1;
  std::vector<Line> memory(lines * static_cast<std::size_t>(omp_get_max_threads()));
#pragma omp parallel for
  for (std::int64_t item = 0; item < items; ++item) {
    Line* const mine = memory.data() + lines * static_cast<std::size_t>(omp_get_thread_num());
    kernel(typename Kernel::Team{}, item, mine->values);
  }
}

#endif

}  // namespace vit
