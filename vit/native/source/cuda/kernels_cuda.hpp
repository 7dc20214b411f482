// The kernels of GPUs by NVIDIA.
#pragma once

#include <memory>
#include <vector>

#include "model/kernels.hpp"
#include "training/training_kernels.hpp"

namespace vit {

extern const Kernels cuda_kernels;
extern const TrainingKernels cuda_training_kernels;

// As in the table.
Step attention(Device& device, Span qkv, Span out, std::int64_t batch, std::int64_t tokens,
               std::int64_t keep, std::int64_t heads, std::int64_t width);
Update adamw(Device& device, std::vector<AdamWTensor> tensors);

// Whether products of float32 are those of TF32. Not in int8: what attention rounds off there would
// move many values to the next code.
bool has_tensor_floats(Device& device);

// Where a device keeps track of the memory that steps share for what each needs for a moment only.
std::weak_ptr<Buffer>& shared_scratch(Device& device);

}  // namespace vit
