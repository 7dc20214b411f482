// What training computes beside the operations of operations.hpp: a table beside kernels.hpp.
//
// Shapes: B images, T tokens, D width, K classes. All is float32, and memory of the device.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/device.hpp"

namespace vit {

// Values of a state in 8 bits that share a scale.
constexpr std::int64_t state_block = 256;

// What a step of AdamW multiplies with, as torch.optim.AdamW computes it.
struct AdamWFactors {
  float rate1, rate2;  // 1 - beta
  float beta2, eps;
  float keep;       // 1 - lr * weight decay
  float step_size;  // lr / (1 - beta1^t)
  float deviation;  // sqrt(1 - beta2^t)
};

inline AdamWFactors without_decay(AdamWFactors factors) {
  factors.keep = 1.0f;
  return factors;
}

// A state of `count` values, a multiple of state_block: value = map[code] * scale of its block.
struct State8 {
  std::uint8_t* codes;
  float* scales;
  const float* map;  // 256 values, ascending
};

// What AdamW changes of one tensor of `count` values.
struct AdamWTensor {
  const float* gradient;
  float* weights;
  std::int64_t count;
  bool decays;            // otherwise `keep` is 1 for it
  float *first, *second;  // its moments; null if they are in 8 bits
  State8 first8, second8;
};
using Update = std::function<void(const AdamWFactors&)>;

struct TrainingKernels {
  // Rows of `out`, which are `stride` floats apart, += x (rows, width).
  void (*add_rows)(Device&, const float* x, float* out, int64_t stride, int64_t rows,
                   int64_t width);

  // out (rows, D) = x + gamma (D) * branch.
  void (*layer_scale)(Device&, const float* x, const float* branch, const float* gamma, float* out,
                      int64_t rows, int64_t width);
  // From the gradient by `out`: those by branch (rows, D) and gamma (D).
  void (*layer_scale_gradient)(Device&, const float* out_gradient, const float* branch,
                               const float* gamma, float* branch_gradient, float* gamma_gradient,
                               int64_t rows, int64_t width);

  // From the gradient by Kernels::mean (B, D): that by all tokens (B, T, D), 0 for those skipped.
  void (*mean_gradient)(Device&, const float* out_gradient, float* x_gradient, int64_t batch,
                        int64_t tokens, int64_t skip, int64_t width);

  // losses (B) = softmax cross-entropy of logits (B, K) with targets (B, K) scaled to sum 1, and
  // 0 without targets; gradient (B, K) is that of the mean of the losses.
  void (*cross_entropy)(Device&, const float* logits, const float* targets, float* losses,
                        float* gradient, int64_t batch, int64_t classes);

  // One step of AdamW (arXiv 1711.05101) for all tensors: weights and both moments in one pass.
  // Moments in 8 bits (arXiv 2110.02861) are rounded after the weights have changed by them.
  Update (*adamw)(Device&, std::vector<AdamWTensor> tensors);
};

}  // namespace vit
