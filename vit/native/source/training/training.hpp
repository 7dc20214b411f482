// One step of training without the update, for one size of batch: the forward pass, which keeps
// what the gradients need, the loss, and the gradients of all parameters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "file/shape.hpp"
#include "model/device.hpp"
#include "training/operations.hpp"
#include "training/parameters.hpp"

namespace vit {

class Training {
 public:
  // Parameters and device are used as long as this lives. Memory of all passes is set up here.
  Training(Device& device, const Parameters& parameters, const Shape& shape, std::int64_t batch);

  std::int64_t batch() const { return batch_; }
  // images (batch, 3, S, S) and targets (batch, K) on the host -> mean of the softmax
  // cross-entropies with the targets scaled to sum 1 (vit/loss.py).
  double loss(const float* images, const float* targets);
  // Writes the gradients of the last loss.
  void gradients();

 private:
  using Steps = std::vector<Step>;

  float* memory(std::int64_t rows, std::int64_t columns);
  void add(Pass pass);

  // Parts of the model. Pointers `..._gradient` are memory for gradients by activations, which
  // steps use one after the other.
  void start();
  void embed();
  void attention(const std::string& block, bool only_first);
  void mix(float* qkv, float* mixed, std::int64_t keep);
  void mlp(const std::string& block);
  void finish();
  void pool();

  // out = x W^T + b (+ base); the gradient by x is left out where it is null.
  void linear(const std::string& name, float* x, float* out, std::int64_t rows, float* out_gradient,
              float* x_gradient, const float* base = nullptr);
  // The same, times the factors of LayerScale if the model has them.
  void branch(const std::string& layer, const std::string& scale, float* x, float* out,
              std::int64_t rows, float* x_gradient);
  void norm(const std::string& name, float* x, float* out, std::int64_t rows, float* out_gradient,
            float* x_gradient);

  Device& device_;
  const Parameters& parameters_;
  const Shape& shape_;
  std::int64_t batch_;
  std::vector<Buffer> buffers_;
  // While they are set up: the steps, and those back of each operation, for the opposite order.
  std::vector<Step> forward_;
  std::vector<Steps> backward_;
  Step run_forward_, run_backward_;

  float *images_, *targets_, *logits_, *losses_, *ones_, *start_;
  // The residual stream at the place that is being set up: rows (of D) and their gradient.
  float *stream_ = nullptr, *stream_gradient_;
  std::int64_t stream_rows_;
  float *branch_gradient_, *hidden_gradient_, *wide_gradient_, *scores_gradient_;
  float *features_ = nullptr, *features_gradient_, *logits_gradient_;
};

}  // namespace vit
