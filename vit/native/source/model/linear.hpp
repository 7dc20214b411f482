// A dense layer: y = activation(x W^T + b), or y += x W^T + b, in one step where a device can.
//
// Each kind of device implements the class; a library is linked with one of them.
#pragma once

#include <cstdint>
#include <memory>

#include "model/dense_values.hpp"
#include "model/device.hpp"
#include "model/kernels.hpp"

namespace vit {

enum class Activation { none, gelu, gelu_tanh, tanh };

class Linear {
 public:
  // `type` is that of the inputs: f32, bf16, or u8 or f8 for values with codes.
  Linear(Device& device, DenseValues values, Type type);
  ~Linear();

  // How inputs are to be stored: their type, scale, zero and largest byte.
  Span input(void* data) const {
    Span span = input_;
    span.data = data;
    return span;
  }

  // The step that computes y (rows, out) from x (rows, in). With `add`, y is f32 and is added to.
  Step step(const void* x, Span y, std::int64_t rows, Activation activation, bool add);

 private:
  struct State;
  Span input_;
  std::unique_ptr<State> state_;
};

}  // namespace vit
