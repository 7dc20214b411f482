// The forward pass for one size of batch, set up once: images -> logits.
#pragma once

#include <cstdint>
#include <vector>

#include "model.hpp"

namespace vit {

class Forward {
 public:
  // The model and the device are used as long as this lives.
  Forward(Device& device, Model& model, std::int64_t batch);

  std::int64_t batch() const { return batch_; }
  // images (batch, 3, S, S) -> logits (batch, outputs), both on the host.
  void run(const float* images, float* logits);

 private:
  template <class... Arguments>
  void add(void (*kernel)(Device&, Arguments...), Arguments... arguments);
  void norm(const float* x, std::int64_t stride, const Norm& norm, Span out, std::int64_t rows);
  void embed();
  void block(Block& block, bool last);
  void finish();

  Device& device_;
  Model& model_;
  std::int64_t batch_;
  std::int64_t rows_;  // tokens of all images
  Buffer images_, patches_;
  Buffer tokens_, first_;  // the residual stream, and its first tokens in the last block
  Buffer hidden_;          // inputs of layers of the width: rows_ x D
  Buffer wide_;            // outputs of qkv, then of fc1
  Buffer pooled_, features_, logits_;
  std::vector<Step> steps_;
};

}  // namespace vit
