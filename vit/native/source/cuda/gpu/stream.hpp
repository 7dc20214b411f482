// What kernels know of a GPU: the stream that they are submitted to, and errors.
#pragma once

#include <cuda_runtime_api.h>

#include "model/device.hpp"

namespace vit {

cudaStream_t stream_of(Device& device);

// std::bad_alloc for want of memory, std::runtime_error with the words of CUDA for other errors.
void check(cudaError_t error);

}  // namespace vit
