// A dense layer: y = activation(x W^T + b), or y += x W^T + b, as one oneDNN primitive.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "model/device.hpp"
#include "model/kernels.hpp"

namespace vit {

enum class Activation { none, gelu, gelu_tanh, tanh };

// Values of a layer on the host. Weights have shape (out, in), as in the file.
struct DenseValues {
  std::int64_t in = 0, out = 0;
  std::vector<float> weight;  // unless it is quantised
  std::vector<float> bias;    // empty without one
  // Static quantisation: weight = scale per row * codes; input = scale * (byte - zero) of `input`.
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  Span input{nullptr};
};

class Linear {
 public:
  // `type` is that of the inputs: f32, bf16, or u8 for values with codes.
  Linear(Device& device, DenseValues values, Type type);

  // How inputs are to be stored: their type, scale, zero and largest byte.
  Span input(void* data) const {
    Span span = input_;
    span.data = data;
    return span;
  }

  // The step that computes y (rows, out) from x (rows, in). With `add`, y is f32 and is added to.
  Step step(const void* x, Span y, std::int64_t rows, Activation activation, bool add);

 private:
  // The weights in the layout that a primitive wants; each layout is made once.
  dnnl::memory packed(const dnnl::memory::desc& desc);

  Device& device_;
  std::int64_t in_, out_;
  Type type_;
  Span input_;
  Buffer bias_, weight_scales_, input_scale_buffer_;
  std::vector<std::pair<Buffer, dnnl::memory>> layouts_;
  bool plain_is_unused_ = true;  // no step has the first layout, in which the weights came
};

}  // namespace vit
