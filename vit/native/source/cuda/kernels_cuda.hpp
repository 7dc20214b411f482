// The kernels of GPUs by NVIDIA.
#pragma once

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

// LayerNorm as in the table; mean and variance of each row are stored too, unless they are null.
void normalise_rows(Device& device, const float* x, std::int64_t stride, const float* weight,
                    const float* bias, float eps, Span out, std::int64_t rows, std::int64_t width,
                    float* means, float* variances);

// Whether products of float32 are those of TF32. Not in int8: what attention rounds off there would
// move many values to the next code.
bool has_tensor_floats(Device& device);

// What products of codes put their sums into.
Scratch& scratch_of(Device& device);

}  // namespace vit
