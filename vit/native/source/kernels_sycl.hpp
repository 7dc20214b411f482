// The kernels of SYCL devices.
#pragma once

#include "kernels.hpp"

namespace vit {

extern const Kernels sycl_kernels;

// out (count) = x (count), in another type.
void convert(Device& device, const float* x, Span out, std::int64_t count);

}  // namespace vit
