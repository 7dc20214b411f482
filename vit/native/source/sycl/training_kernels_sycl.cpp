#include <utility>
#include <vector>

#include "sycl/device_sycl.hpp"
#include "sycl/kernels_sycl.hpp"
#include "training/training_kernels.hpp"

namespace vit {
namespace {

static_assert(group_items == state_block, "a group has an item for each value of a block");

const Program program{
    "training",
#include "sycl/kernels_common.sycl"
#include "sycl/kernels_training.sycl"
};

void add_rows(Device& device, const float* x, float* out, std::int64_t stride, std::int64_t rows,
              std::int64_t width) {
  launch_each(device, program, "add_rows", rows * width, x, out, stride, width);
}

void layer_scale(Device& device, const float* x, const float* branch, const float* gamma,
                 float* out, std::int64_t rows, std::int64_t width) {
  launch_each(device, program, "layer_scale", rows * width, x, branch, gamma, out, width);
}

void layer_scale_gradient(Device& device, const float* out_gradient, const float* branch,
                          const float* gamma, float* branch_gradient, float* gamma_gradient,
                          std::int64_t rows, std::int64_t width) {
  launch(device, program, "layer_scale_gradient", (width + 31) / 32, out_gradient, branch, gamma,
         branch_gradient, gamma_gradient, rows, width, LocalFloats{group_items});
}

void mean_gradient(Device& device, const float* out_gradient, float* x_gradient, std::int64_t batch,
                   std::int64_t tokens, std::int64_t skip, std::int64_t width) {
  launch_each(device, program, "mean_gradient", batch * tokens * width, out_gradient, x_gradient,
              tokens, skip, width);
}

void cross_entropy(Device& device, const float* logits, const float* targets, float* losses,
                   float* gradient, std::int64_t batch, std::int64_t classes) {
  launch(device, program, "cross_entropy", batch, logits, targets, losses, gradient, batch,
         classes);
}

Update adamw(Device& device, std::vector<AdamWTensor> tensors) {
  return [&device, tensors = std::move(tensors)](const AdamWFactors& factors) {
    for (const AdamWTensor& each : tensors) {
      const AdamWFactors own = each.decays ? factors : without_decay(factors);
      if (each.first) {
        launch_each(device, program, "adamw", each.count, own, each.gradient, each.weights,
                    each.first, each.second);
      } else {
        launch(device, program, "adamw8bit", each.count / state_block, own, each.gradient,
               each.weights, each.first8, each.second8);
      }
    }
  };
}

}  // namespace

const TrainingKernels sycl_training_kernels{add_rows,      layer_scale,   layer_scale_gradient,
                                            mean_gradient, cross_entropy, adamw};

}  // namespace vit
