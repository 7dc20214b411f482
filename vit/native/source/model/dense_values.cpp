#include "model/dense_values.hpp"

namespace vit {

// A zero of the inputs adds the same to each output of a row, so the bias can take it off.
std::vector<float> DenseValues::bias_without_zero() const {
  std::vector<float> result = bias;
  if (!quantised() || input.zero == 0) return result;
  result.resize(static_cast<std::size_t>(out));
  for (std::int64_t row = 0; row < out; ++row) {
    std::int64_t sum = 0;
    for (std::int64_t i = 0; i < in; ++i) sum += codes[row * in + i];
    result[row] -=
        input.scale * static_cast<float>(input.zero) * scales[row] * static_cast<float>(sum);
  }
  return result;
}

}  // namespace vit
