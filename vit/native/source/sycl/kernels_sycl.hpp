// The kernels of SYCL devices.
#pragma once

#include "model/kernels.hpp"
#include "training/training_kernels.hpp"

namespace vit {

extern const Kernels sycl_kernels;
extern const TrainingKernels sycl_training_kernels;

// out (rows, D) = rows of x, floats or bfloat16, which are `stride` values apart; in another type.
void copy(Device& device, Span x, std::int64_t stride, Span out, std::int64_t rows,
          std::int64_t width);

}  // namespace vit
