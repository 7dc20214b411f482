// The forward pass for one size of batch, set up once: images -> logits.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/model.hpp"

namespace vit {

// Takes the inputs of a layer, by the name of the layer: values (rows, columns) on the host.
using Observer = std::function<void(const std::string& layer, const float* values,
                                    std::int64_t rows, std::int64_t columns)>;

class Forward {
 public:
  // The model and the device are used as long as this lives. An observer is called in each run with
  // the inputs of the dense layers of the blocks, in order; it needs a model in float32.
  Forward(Device& device, Model& model, std::int64_t batch, Observer observer = nullptr);

  std::int64_t batch() const { return batch_; }
  // images (batch, 3, S, S) -> logits (batch, outputs), both on the host.
  void run(const float* images, float* logits);

 private:
  template <class... Types>
  void add(void (*kernel)(Device&, Types...), std::common_type_t<Types>... arguments) {
    steps_.push_back(step_of(device_, kernel, arguments...));
  }
  void norm(const float* x, std::int64_t stride, const Norm& norm, Span out, std::int64_t rows);
  void observe(const Block& block, const char* layer, const Buffer& values, std::int64_t rows,
               std::int64_t columns);
  void embed();
  void block(Block& block, bool last);
  void finish();

  Device& device_;
  Model& model_;
  std::int64_t batch_;
  Observer observer_;
  std::int64_t rows_;  // tokens of all images
  Buffer images_, patches_;
  Buffer tokens_, first_;  // the residual stream, and its first tokens in the last block
  Buffer hidden_;          // inputs of layers of the width: rows_ x D
  Buffer wide_;            // outputs of qkv, then of fc1
  Buffer pooled_, features_, logits_;
  std::vector<Step> steps_;  // while they are set up
  Step run_;
};

}  // namespace vit
