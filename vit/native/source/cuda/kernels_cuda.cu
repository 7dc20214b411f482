// What a model computes beside its dense layers: see model/kernels.hpp for what each kernel does.
#include <cmath>
#include <cstdint>

#include "cuda/kernels_cuda.hpp"
#include "cuda/launch.hpp"
#include "cuda/values.hpp"

namespace vit {
namespace {

// A team has a patch.
struct Patches {
  using Team = Warp;
  const float* images;
  Target rows;
  int side, patch;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t row, unsigned char*) const {
    const int grid = side / patch, area = patch * patch, values = 3 * area;
    const std::int64_t image = row / (grid * grid);
    const int place = static_cast<int>(row % (grid * grid));
    const float* const corner =
        images + image * 3 * side * side + place / grid * patch * side + place % grid * patch;
    for (int i = team.rank(); i < values; i += team.size()) {
      const int channel = i / area, line = i / patch % patch;
      const float pixel[1] = {corner[(channel * side + line) * side + i % patch]};
      store(rows, row * values + i, pixel);
    }
  }
};

void patches(Device& device, const float* images, Span rows, std::int64_t batch, std::int64_t side,
             std::int64_t patch) {
  const std::int64_t grid = side / patch;
  launch(device, batch * grid * grid,
         Patches{images, Target(rows), static_cast<int>(side), static_cast<int>(patch)});
}

// A team has a token, as in the following; its threads take `together` neighbours at once.
template <int together>
struct Embed {
  using Team = Warp;
  const float *patches, *start;
  float* tokens;
  std::int64_t num_patches, num_tokens, width;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t row, unsigned char*) const {
    const std::int64_t image = row / num_tokens, token = row % num_tokens;
    const std::int64_t patch = token - (num_tokens - num_patches);
    const float* const from = patches + (image * num_patches + patch) * width;
    for (std::int64_t i = team.rank() * together; i < width; i += team.size() * together) {
      auto values = load<together>(start + token * width + i);
      if (patch >= 0) {
        const auto added = load<together>(from + i);
        for (int k = 0; k < together; ++k) values.values[k] += added.values[k];
      }
      *reinterpret_cast<Pack<float, together>*>(tokens + row * width + i) = values;
    }
  }
};

void embed(Device& device, const float* patches, const float* start, float* tokens,
           std::int64_t batch, std::int64_t num_patches, std::int64_t num_tokens,
           std::int64_t width) {
  const std::int64_t rows = batch * num_tokens;
  if (width % 4 == 0) {
    launch(device, rows, Embed<4>{patches, start, tokens, num_patches, num_tokens, width});
  } else {
    launch(device, rows, Embed<1>{patches, start, tokens, num_patches, num_tokens, width});
  }
}

template <int together>
struct Normalise {
  using Team = Warp;
  static constexpr int held_packs = 8;  // in registers: 1024 values of a row by fours
  const float* x;
  std::int64_t stride;
  const float *weight, *bias;
  float eps;
  Target out;
  std::int64_t width;
  float *means, *variances;  // of each row; null if they are not wanted

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t r, unsigned char*) const {
    const float* const row = x + r * stride;
    const std::int64_t first = team.rank() * together, step = team.size() * together;
    Pack<float, together> held[held_packs] = {};
    VIT_UNROLL
    for (int k = 0; k < held_packs; ++k) {
      if (first + k * step < width) held[k] = load<together>(row + first + k * step);
    }
    // of all that the thread has: what it does not hold is read again
    const auto each = [&](auto&& function) {
      VIT_UNROLL
      for (int k = 0; k < held_packs; ++k) {
        if (first + k * step < width) function(first + k * step, held[k]);
      }
      for (std::int64_t i = first + held_packs * step; i < width; i += step) {
        function(i, load<together>(row + i));
      }
    };
    float sum = 0.0f, squares = 0.0f;
    each([&](std::int64_t, const auto& pack) {
      for (float value : pack.values) sum += value;
    });
    const float mean = team.sum(sum) / static_cast<float>(width);
    each([&](std::int64_t, const auto& pack) {
      for (float value : pack.values) squares += (value - mean) * (value - mean);
    });
    const float variance = team.sum(squares) / static_cast<float>(width);
    if (means && team.rank() == 0) means[r] = mean, variances[r] = variance;
    const float scale = 1.0f / sqrtf(variance + eps);
    each([&](std::int64_t i, const auto& pack) {
      const auto factors = load<together>(weight + i), shifts = load<together>(bias + i);
      float normal[together];
      for (int k = 0; k < together; ++k) {
        normal[k] = (pack.values[k] - mean) * scale * factors.values[k] + shifts.values[k];
      }
      store(out, r * width + i, normal);
    });
  }
};

void layer_norm(Device& device, const float* x, std::int64_t stride, const float* weight,
                const float* bias, float eps, Span out, std::int64_t rows, std::int64_t width) {
  normalise_rows(device, x, stride, weight, bias, eps, out, rows, width, nullptr, nullptr);
}

// A thread has `together` neighbours: there may be few rows, and long ones.
template <int together>
struct Gather {
  const float* x;
  std::int64_t stride;
  float* out;
  std::int64_t width;

  VIT_BOTH void operator()(std::int64_t item) const {
    const std::int64_t at = item * together;
    const auto values = load<together>(x + at / width * stride + at % width);
    *reinterpret_cast<Pack<float, together>*>(out + at) = values;
  }
};

void gather(Device& device, const float* x, std::int64_t stride, float* out, std::int64_t rows,
            std::int64_t width) {
  const auto places = reinterpret_cast<std::uintptr_t>(x) | reinterpret_cast<std::uintptr_t>(out);
  if (width % 4 == 0 && stride % 4 == 0 && places % 16 == 0) {
    launch_each(device, rows * width / 4, Gather<4>{x, stride, out, width});
  } else {
    launch_each(device, rows * width, Gather<1>{x, stride, out, width});
  }
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

void normalise_rows(Device& device, const float* x, std::int64_t stride, const float* weight,
                    const float* bias, float eps, Span out, std::int64_t rows, std::int64_t width,
                    float* means, float* variances) {
  const Target to(out);
  if (width % 4 == 0 && stride % 4 == 0) {
    launch(device, rows, Normalise<4>{x, stride, weight, bias, eps, to, width, means, variances});
  } else {
    launch(device, rows, Normalise<1>{x, stride, weight, bias, eps, to, width, means, variances});
  }
}

const Kernels cuda_kernels{"cuda",    patches, embed, layer_norm,
                           attention, gather,  mean,  &cuda_training_kernels};

}  // namespace vit
