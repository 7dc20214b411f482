#include "sycl/kernels_sycl.hpp"

#include <algorithm>

#include "sycl/attention_sycl.hpp"
#include "sycl/device_sycl.hpp"

namespace vit {
namespace {

const Program program{
    "inference",
#include "sycl/kernels_common.sycl"
#include "sycl/kernels_forward.sycl"
};

void patches(Device& device, const float* images, Span rows, std::int64_t batch, std::int64_t side,
             std::int64_t patch) {
  const std::int64_t grid = side / patch;
  launch_each(device, program, "patches", batch * grid * grid * 3 * patch * patch, images, rows,
              side, patch);
}

void embed(Device& device, const float* patches, const float* start, float* tokens,
           std::int64_t batch, std::int64_t num_patches, std::int64_t num_tokens,
           std::int64_t width) {
  launch_each(device, program, "embed", batch * num_tokens * width, patches, start, tokens,
              num_patches, num_tokens, width);
}

void layer_norm(Device& device, const float* x, std::int64_t stride, const float* weight,
                const float* bias, float eps, Span out, std::int64_t rows, std::int64_t width) {
  // as many groups as keep a large GPU busy; a group takes at least eight rows
  const std::int64_t groups = std::min<std::int64_t>((rows + 7) / 8, 4096);
  launch(device, program, "layer_norm", groups, x, stride, weight, bias, eps, out, rows, width);
}

void gather(Device& device, const float* x, std::int64_t stride, float* out, std::int64_t rows,
            std::int64_t width) {
  copy(device, Span{const_cast<float*>(x)}, stride, Span{out}, rows, width);
}

void mean(Device& device, const float* x, float* out, std::int64_t batch, std::int64_t tokens,
          std::int64_t skip, std::int64_t width) {
  launch_each(device, program, "mean", batch * width, x, out, tokens, skip, width);
}

}  // namespace

void copy(Device& device, Span x, std::int64_t stride, Span out, std::int64_t rows,
          std::int64_t width) {
  launch_each(device, program, "copy", rows * width, x, stride, out, width);
}

const Kernels sycl_kernels{"sycl",    patches, embed, layer_norm,
                           attention, gather,  mean,  &sycl_training_kernels};

}  // namespace vit
