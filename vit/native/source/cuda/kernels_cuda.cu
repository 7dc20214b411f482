// What a model computes beside its dense layers: see model/kernels.hpp for what each kernel does.
#include "cuda/kernels_cuda.hpp"

#include <cmath>
#include <cstdint>

#include "cuda/launch.hpp"
#include "cuda/values.hpp"

namespace vit {
namespace {

struct Patches {
  const float* images;
  Target rows;
  std::int64_t side, patch;

  VIT_BOTH void operator()(std::int64_t i) const {
    const std::int64_t grid = side / patch, values = 3 * patch * patch;
    const std::int64_t value = i % values, row = i / values;
    const std::int64_t channel = value / (patch * patch), line = value / patch % patch;
    const std::int64_t image = row / (grid * grid), y = row / grid % grid * patch + line;
    const std::int64_t x = row % grid * patch + value % patch;
    const float pixel[1] = {images[((image * 3 + channel) * side + y) * side + x]};
    store(rows, i, pixel);
  }
};

void patches(Device& device, const float* images, Span rows, std::int64_t batch, std::int64_t side,
             std::int64_t patch) {
  const std::int64_t grid = side / patch;
  launch_each(device, batch * grid * grid * 3 * patch * patch,
              Patches{images, Target(rows), side, patch});
}

struct Embed {
  const float *patches, *start;
  float* tokens;
  std::int64_t num_patches, num_tokens, width;

  VIT_BOTH void operator()(std::int64_t i) const {
    const std::int64_t at = i % (num_tokens * width), prefix = (num_tokens - num_patches) * width;
    const std::int64_t image = i / (num_tokens * width);
    const bool patch = at >= prefix;
    tokens[i] = start[at] + (patch ? patches[image * num_patches * width + at - prefix] : 0.0f);
  }
};

void embed(Device& device, const float* patches, const float* start, float* tokens,
           std::int64_t batch, std::int64_t num_patches, std::int64_t num_tokens,
           std::int64_t width) {
  launch_each(device, batch * num_tokens * width,
              Embed{patches, start, tokens, num_patches, num_tokens, width});
}

// A row is that of a team, whose threads take `together` neighbours at once.
template <int together>
struct Normalise {
  using Team = Warp;
  const float* x;
  std::int64_t stride;
  const float *weight, *bias;
  float eps;
  Target out;
  std::int64_t width;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t r, unsigned char*) const {
    const float* const row = x + r * stride;
    const std::int64_t first = team.rank() * together, step = team.size() * together;
    float sum = 0.0f, squares = 0.0f;
    for (std::int64_t i = first; i < width; i += step) {
      const auto pack = load<together>(row + i);
      for (float value : pack.values) sum += value;
    }
    const float mean = team.sum(sum) / static_cast<float>(width);
    for (std::int64_t i = first; i < width; i += step) {
      const auto pack = load<together>(row + i);
      for (float value : pack.values) squares += (value - mean) * (value - mean);
    }
    const float scale = 1.0f / sqrtf(team.sum(squares) / static_cast<float>(width) + eps);
    for (std::int64_t i = first; i < width; i += step) {
      const auto values = load<together>(row + i), factors = load<together>(weight + i);
      const auto shifts = load<together>(bias + i);
      float normal[together];
      for (int k = 0; k < together; ++k) {
        normal[k] = (values.values[k] - mean) * scale * factors.values[k] + shifts.values[k];
      }
      store(out, r * width + i, normal);
    }
  }
};

void layer_norm(Device& device, const float* x, std::int64_t stride, const float* weight,
                const float* bias, float eps, Span out, std::int64_t rows, std::int64_t width) {
  if (width % 4 == 0 && stride % 4 == 0) {
    launch(device, rows, Normalise<4>{x, stride, weight, bias, eps, Target(out), width});
  } else {
    launch(device, rows, Normalise<1>{x, stride, weight, bias, eps, Target(out), width});
  }
}

struct Gather {
  const float* x;
  std::int64_t stride;
  float* out;
  std::int64_t width;

  VIT_BOTH void operator()(std::int64_t i) const { out[i] = x[i / width * stride + i % width]; }
};

void gather(Device& device, const float* x, std::int64_t stride, float* out, std::int64_t rows,
            std::int64_t width) {
  launch_each(device, rows * width, Gather{x, stride, out, width});
}

struct Mean {
  const float* x;
  float* out;
  std::int64_t tokens, skip, width;

  VIT_BOTH void operator()(std::int64_t i) const {
    const float* const column = x + i / width * tokens * width + i % width;
    float sum = 0.0f;
    for (std::int64_t t = skip; t < tokens; ++t) sum += column[t * width];
    out[i] = sum / static_cast<float>(tokens - skip);
  }
};

void mean(Device& device, const float* x, float* out, std::int64_t batch, std::int64_t tokens,
          std::int64_t skip, std::int64_t width) {
  launch_each(device, batch * width, Mean{x, out, tokens, skip, width});
}

}  // namespace

const Kernels cuda_kernels{"cuda",    patches, embed, layer_norm,
                           attention, gather,  mean,  &cuda_training_kernels};

}  // namespace vit
