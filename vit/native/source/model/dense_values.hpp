// Values of a dense layer on the host.
#pragma once

#include <cstdint>
#include <vector>

#include "model/kernels.hpp"

namespace vit {

// Weights have shape (out, in), as in the file.
struct DenseValues {
  std::int64_t in = 0, out = 0;
  std::vector<float> weight;  // unless it is quantised
  std::vector<float> bias;    // empty without one
  // Static quantisation: weight = scale per row * codes; input = scale * (byte - zero) of `input`,
  // or scale * number.
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  Span input{nullptr};

  bool quantised() const { return !codes.empty(); }
  // The bias, less what the zero of quantised inputs adds to each output; empty if there is
  // neither.
  std::vector<float> bias_without_zero() const;
};

}  // namespace vit
