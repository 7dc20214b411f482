// What the files of this back end share: its threads, and memory that steps use one after another.
#pragma once

#include <algorithm>
#include <cstdint>

#include "host/host.hpp"
#include "model/device.hpp"
#include "training/training_kernels.hpp"

namespace vit {

extern const Kernels mojo_kernels;
extern const TrainingKernels mojo_training_kernels;

struct Device::State : Host {
  using Host::Host;
  Buffer memory;

  // Makes `memory` hold at least so many floats; what a step finds in it, it does not keep.
  void reserve(Device& device, std::int64_t floats) {
    const auto bytes = static_cast<std::size_t>(floats) * sizeof(float);
    if (memory.bytes() < bytes) memory = Buffer(device, bytes);
  }
};

// Calls run(first, last) for pieces of the numbers below `count`, on all threads. Nothing may be
// thrown in it.
template <class Run>
void parallel(std::int64_t count, std::int64_t piece, Run run) {
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t first = 0; first < count; first += piece) {
    run(first, std::min(first + piece, count));
  }
}

// The same for rows of `width` values, in pieces that are worth a thread.
template <class Run>
void parallel_rows(std::int64_t rows, std::int64_t width, Run run) {
  constexpr std::int64_t values = 8192;
  parallel(rows, std::max<std::int64_t>(1, values / width), run);
}

// The same for columns, each of which is summed up over all rows.
template <class Run>
void parallel_columns(std::int64_t width, Run run) {
  parallel(width, 64, run);
}

}  // namespace vit
