// Compiled once for each set of instructions, with VIT_ISA as the name of the namespace.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <utility>
#include <vector>

#include "cpu/kernels_cpu.hpp"

namespace vit::VIT_ISA {
namespace {

void add_rows(Device&, const float* x, float* out, std::int64_t stride, std::int64_t rows,
              std::int64_t width) {
#pragma omp parallel for
  for (std::int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) out[r * stride + i] += x[r * width + i];
  }
}

void layer_scale(Device&, const float* x, const float* branch, const float* gamma, float* out,
                 std::int64_t rows, std::int64_t width) {
#pragma omp parallel for
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t at = r * width;
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) out[at + i] = x[at + i] + gamma[i] * branch[at + i];
  }
}

void layer_scale_gradient(Device&, const float* out_gradient, const float* branch,
                          const float* gamma, float* branch_gradient, float* gamma_gradient,
                          std::int64_t rows, std::int64_t width) {
  constexpr std::int64_t piece = 64;  // columns of one thread, a sum each
#pragma omp parallel for
  for (std::int64_t first = 0; first < width; first += piece) {
    const std::int64_t count = std::min(piece, width - first);
    float sums[piece] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t at = r * width + first;
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) {
        sums[i] += out_gradient[at + i] * branch[at + i];
        branch_gradient[at + i] = out_gradient[at + i] * gamma[first + i];
      }
    }
    std::copy(sums, sums + count, gamma_gradient + first);
  }
}

void mean_gradient(Device&, const float* out_gradient, float* x_gradient, std::int64_t batch,
                   std::int64_t tokens, std::int64_t skip, std::int64_t width) {
  const float share = 1.0f / static_cast<float>(tokens - skip);
#pragma omp parallel for collapse(2)
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const float factor = t < skip ? 0.0f : share;
      const float* from = out_gradient + b * width;
      float* to = x_gradient + (b * tokens + t) * width;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) to[i] = factor * from[i];
    }
  }
}

void cross_entropy(Device&, const float* logits, const float* targets, float* losses,
                   float* gradient, std::int64_t batch, std::int64_t classes) {
#pragma omp parallel for
  for (std::int64_t b = 0; b < batch; ++b) {
    const float *x = logits + b * classes, *target = targets + b * classes;
    float* to = gradient + b * classes;
    float total = 0.0f, most = x[0], sum = 0.0f, loss = 0.0f;
    for (std::int64_t i = 0; i < classes; ++i) {
      total += target[i];
      most = std::max(most, x[i]);
    }
    for (std::int64_t i = 0; i < classes; ++i) {
      to[i] = std::exp(x[i] - most);
      sum += to[i];
    }
    const float norm = 1.0f / std::max(total, FLT_MIN), log_sum = most + std::log(sum);
    const float share = total * norm / sum, mean = 1.0f / static_cast<float>(batch);
    for (std::int64_t i = 0; i < classes; ++i) {
      loss -= target[i] * norm * (x[i] - log_sum);
      to[i] = (to[i] * share - target[i] * norm) * mean;
    }
    losses[b] = loss;
  }
}

// New moments, and the weight that they give.
inline void update(const AdamWFactors& factors, float gradient, float& weight, float& first,
                   float& second) {
  first += factors.rate1 * (gradient - first);
  second = factors.beta2 * second + factors.rate2 * (gradient * gradient);
  const float deviation = std::sqrt(second) / factors.deviation + factors.eps;
  weight = weight * factors.keep - factors.step_size * (first / deviation);
}

void adamw32(AdamWFactors factors, const float* gradient, float* weights, float* first,
             float* second, std::int64_t count) {
#pragma omp parallel for simd
  for (std::int64_t i = 0; i < count; ++i) {
    update(factors, gradient[i], weights[i], first[i], second[i]);
  }
}

// Rounds a block: the nearest of the map's values to value / scale, where the largest is 1.
inline void store_block(const State8& state, std::int64_t block, const float* values) {
  float scale = 1e-12f;
#pragma omp simd reduction(max : scale)
  for (std::int64_t i = 0; i < state_block; ++i) scale = std::max(scale, std::fabs(values[i]));
  state.scales[block] = scale;
  std::uint8_t* const stored = state.codes + block * state_block;
  const float* const map = state.map;
  float shares[state_block];
  std::int32_t codes[state_block];  // of the largest value of the map that is not above
#pragma omp simd
  for (std::int64_t i = 0; i < state_block; ++i) shares[i] = values[i] / scale, codes[i] = 0;
  for (std::int32_t half = 128; half > 0; half /= 2) {  // outside, so that the rest is vectors
#pragma omp simd
    for (std::int64_t i = 0; i < state_block; ++i) {
      const std::int32_t higher = codes[i] + half;
      codes[i] = shares[i] >= map[higher] ? higher : codes[i];
    }
  }
#pragma omp simd
  for (std::int64_t i = 0; i < state_block; ++i) {
    const std::int32_t code = codes[i], next = std::min(code + 1, 255);
    const bool up = shares[i] - map[code] >= (map[next] - map[code]) * 0.5f;
    stored[i] = static_cast<std::uint8_t>(up ? next : code);
  }
}

inline void load_block(const State8& state, std::int64_t block, float* values) {
  const std::uint8_t* const codes = state.codes + block * state_block;
  const float scale = state.scales[block];
#pragma omp simd
  for (std::int64_t i = 0; i < state_block; ++i) values[i] = state.map[codes[i]] * scale;
}

void adamw8(AdamWFactors factors, const float* gradient, float* weights, State8 first,
            State8 second, std::int64_t count) {
#pragma omp parallel for
  for (std::int64_t block = 0; block < count / state_block; ++block) {
    const std::int64_t at = block * state_block;
    float firsts[state_block], seconds[state_block];
    load_block(first, block, firsts);
    load_block(second, block, seconds);
#pragma omp simd
    for (std::int64_t i = 0; i < state_block; ++i) {
      update(factors, gradient[at + i], weights[at + i], firsts[i], seconds[i]);
    }
    store_block(first, block, firsts);
    store_block(second, block, seconds);
  }
}

Update adamw(Device&, std::vector<AdamWTensor> tensors) {
  return [tensors = std::move(tensors)](const AdamWFactors& factors) {
    for (const AdamWTensor& each : tensors) {
      const AdamWFactors own = each.decays ? factors : without_decay(factors);
      if (each.first) {
        adamw32(own, each.gradient, each.weights, each.first, each.second, each.count);
      } else {
        adamw8(own, each.gradient, each.weights, each.first8, each.second8, each.count);
      }
    }
  };
}

}  // namespace

const TrainingKernels training_kernels{add_rows,      layer_scale,   layer_scale_gradient,
                                       mean_gradient, cross_entropy, adamw};

}  // namespace vit::VIT_ISA
