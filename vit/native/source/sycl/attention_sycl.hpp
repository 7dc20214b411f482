// Attention of SYCL devices, by three primitives of oneDNN.
#pragma once

#include "model/kernels.hpp"

namespace vit {

// As in Kernels.
Step attention(Device& device, Span qkv, Span out, std::int64_t batch, std::int64_t tokens,
               std::int64_t keep, std::int64_t heads, std::int64_t width);

}  // namespace vit
