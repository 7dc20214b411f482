// Compiled once for each set of instructions, with VIT_ISA as the name of the namespace.
#include "cpu/kernels_cpu.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "file/number.hpp"

namespace vit::VIT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16, tile_rows = 12;
#elif defined(__AVX2__)
constexpr int lanes = 8, tile_rows = 6;
#else
constexpr int lanes = 4, tile_rows = 4;
#endif
typedef float Lanes __attribute__((vector_size(lanes * sizeof(float)), aligned(4)));

std::int64_t padded(std::int64_t size) { return (size + lanes - 1) / lanes * lanes; }

// e^x for x <= 0, within 2e-7 of its value: 2^n times a polynomial (Cephes, expf).
inline float exp_negative(float x) {
  x = std::max(x, -87.0f);
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * from_bits(static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23U);
}

// Stores a row of floats as the type of the span, from element `at` on.
void store(const Span& span, std::int64_t at, const float* row, std::int64_t count) {
  if (span.type == Type::f32) {
    std::memcpy(static_cast<float*>(span.data) + at, row, count * sizeof(float));
  } else if (span.type == Type::bf16) {
    auto* to = static_cast<std::uint16_t*>(span.data) + at;
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(row[i]);
  } else {
    auto* to = static_cast<std::uint8_t*>(span.data) + at;
    const float factor = 1.0f / span.scale, zero = static_cast<float>(span.zero);
    const auto top = static_cast<float>(span.top);
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
      const float code = std::nearbyint(row[i] * factor) + zero;
      to[i] = static_cast<std::uint8_t>(std::min(std::max(code, 0.0f), top));
    }
  }
}

// Loads `count` values from element `at` on, times a factor.
void load(const Span& span, std::int64_t at, float* row, std::int64_t count, float factor) {
  if (span.type == Type::f32) {
    const auto* from = static_cast<const float*>(span.data) + at;
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) row[i] = from[i] * factor;
  } else {
    const auto* from = static_cast<const std::uint16_t*>(span.data) + at;
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) row[i] = from_bfloat16(from[i]) * factor;
  }
}

void patches(Device&, const float* images, Span rows, std::int64_t batch, std::int64_t side,
             std::int64_t patch) {
  const std::int64_t grid = side / patch, values = 3 * patch * patch;
#pragma omp parallel for collapse(2)
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t y = 0; y < grid; ++y) {
      for (std::int64_t x = 0; x < grid; ++x) {
        const std::int64_t row = (b * grid + y) * grid + x;
        for (std::int64_t line = 0; line < 3 * patch; ++line) {  // channel, then y in the patch
          const std::int64_t channel = line / patch, down = y * patch + line % patch;
          const float* from = images + ((b * 3 + channel) * side + down) * side + x * patch;
          store(rows, row * values + line * patch, from, patch);
        }
      }
    }
  }
}

void embed(Device&, const float* patches, const float* start, float* tokens, std::int64_t batch,
           std::int64_t num_patches, std::int64_t num_tokens, std::int64_t width) {
  const std::int64_t prefix = (num_tokens - num_patches) * width, size = num_patches * width;
#pragma omp parallel for
  for (std::int64_t b = 0; b < batch; ++b) {
    const float* from = patches + b * size;
    float* to = tokens + b * (prefix + size);
    std::memcpy(to, start, prefix * sizeof(float));
#pragma omp simd
    for (std::int64_t i = 0; i < size; ++i) to[prefix + i] = start[prefix + i] + from[i];
  }
}

void layer_norm(Device&, const float* x, std::int64_t stride, const float* weight,
                const float* bias, float eps, Span out, std::int64_t rows, std::int64_t width) {
  constexpr std::int64_t piece = 256;
#pragma omp parallel for
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * stride;
    float sum = 0.0f, squares = 0.0f, normal[piece];
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < width; ++i) sum += row[i];
    const float mean = sum / static_cast<float>(width);
#pragma omp simd reduction(+ : squares)
    for (std::int64_t i = 0; i < width; ++i) squares += (row[i] - mean) * (row[i] - mean);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
    for (std::int64_t at = 0; at < width; at += piece) {
      const std::int64_t count = std::min(piece, width - at);
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) {
        normal[i] = (row[at + i] - mean) * scale * weight[at + i] + bias[at + i];
      }
      store(out, r * width + at, normal, count);
    }
  }
}

// c (R, 2 or 1 vectors) = a (R, depth) b (depth, that many): what fits in registers.
template <int R, int V>
inline void tile(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride,
                 std::int64_t depth, float* c, std::int64_t c_stride) {
  Lanes sums[R][V] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    Lanes row[V];
    for (int v = 0; v < V; ++v) {
      row[v] = *reinterpret_cast<const Lanes*>(b + k * b_stride + v * lanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sums[r][v] += a[r * a_stride + k] * row[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      *reinterpret_cast<Lanes*>(c + r * c_stride + v * lanes) = sums[r][v];
    }
  }
}

// c (tile_rows, columns) = a (tile_rows, depth) b (depth, columns); columns in whole vectors.
void product(const float* a, std::int64_t a_stride, const float* b, std::int64_t columns,
             std::int64_t depth, float* c) {
  std::int64_t j = 0;
  for (; j + 2 * lanes <= columns; j += 2 * lanes) {
    tile<tile_rows, 2>(a, a_stride, b + j, columns, depth, c + j, columns);
  }
  if (j < columns) tile<tile_rows, 1>(a, a_stride, b + j, columns, depth, c + j, columns);
}

// Turns scores into weights that are not yet divided by their sum, which is returned.
float soften(float* scores, std::int64_t count, std::int64_t columns) {
  float most = scores[0], sum = 0.0f;
#pragma omp simd reduction(max : most)
  for (std::int64_t i = 0; i < count; ++i) most = std::max(most, scores[i]);
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) {
    scores[i] = exp_negative(scores[i] - most);
    sum += scores[i];
  }
  std::fill(scores + count, scores + columns, 0.0f);
  return sum;
}

// Memory of one head: keys in columns, values, and a tile of queries, scores and results.
struct Head {
  std::int64_t tokens, depth, columns, width;  // columns and width are padded to whole vectors
  std::vector<float> keys, values, line, queries, scores, results;

  Head(std::int64_t tokens_, std::int64_t depth_)
      : tokens(tokens_),
        depth(depth_),
        columns(padded(tokens_)),
        width(padded(depth_)),
        keys(depth * columns),
        values(tokens * width),
        line(depth),
        queries(tile_rows * depth),
        scores(tile_rows * columns),
        results(tile_rows * width) {}

  // Loads keys and values of a head, whose first key is element `key` of qkv.
  void take(const Span& qkv, std::int64_t key, std::int64_t value, std::int64_t stride) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      load(qkv, key + t * stride, line.data(), depth, 1.0f);
      for (std::int64_t k = 0; k < depth; ++k) keys[k * columns + t] = line[k];
      load(qkv, value + t * stride, values.data() + t * width, depth, 1.0f);
    }
  }
};

void attend(Span qkv, Span out, std::int64_t batch, std::int64_t tokens, std::int64_t keep,
            std::int64_t heads, std::int64_t width) {
  const std::int64_t depth = width / heads, stride = 3 * width;
  const float factor = 1.0f / std::sqrt(static_cast<float>(depth));
  // allocated here, as an exception may not leave the threads
  std::vector<Head> memory(omp_get_max_threads(), Head(tokens, depth));
#pragma omp parallel for collapse(2)
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t a = 0; a < heads; ++a) {
      Head& head = memory[omp_get_thread_num()];
      const std::int64_t first = b * tokens * stride + a * depth;
      head.take(qkv, first + width, first + 2 * width, stride);
      for (std::int64_t t = 0; t < keep; t += tile_rows) {
        const std::int64_t rows = std::min<std::int64_t>(tile_rows, keep - t);
        for (std::int64_t r = 0; r < rows; ++r) {
          load(qkv, first + (t + r) * stride, &head.queries[r * depth], depth, factor);
        }
        product(head.queries.data(), depth, head.keys.data(), head.columns, depth,
                head.scores.data());
        float sums[tile_rows];
        for (std::int64_t r = 0; r < rows; ++r) {
          sums[r] = soften(&head.scores[r * head.columns], tokens, head.columns);
        }
        product(head.scores.data(), head.columns, head.values.data(), head.width, tokens,
                head.results.data());
        for (std::int64_t r = 0; r < rows; ++r) {
          float* row = &head.results[r * head.width];
          const float share = 1.0f / sums[r];
#pragma omp simd
          for (std::int64_t k = 0; k < depth; ++k) row[k] *= share;
          store(out, (b * keep + t + r) * width + a * depth, row, depth);
        }
      }
    }
  }
}

Step attention(Device&, Span qkv, Span out, std::int64_t batch, std::int64_t tokens,
               std::int64_t keep, std::int64_t heads, std::int64_t width) {
  return [=] { attend(qkv, out, batch, tokens, keep, heads, width); };
}

void gather(Device&, const float* x, std::int64_t stride, float* out, std::int64_t rows,
            std::int64_t width) {
  for (std::int64_t r = 0; r < rows; ++r) {
    std::memcpy(out + r * width, x + r * stride, width * sizeof(float));
  }
}

void mean(Device&, const float* x, float* out, std::int64_t batch, std::int64_t tokens,
          std::int64_t skip, std::int64_t width) {
#pragma omp parallel for
  for (std::int64_t b = 0; b < batch; ++b) {
    float* row = out + b * width;
    std::fill(row, row + width, 0.0f);
    for (std::int64_t t = skip; t < tokens; ++t) {
      const float* token = x + (b * tokens + t) * width;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) row[i] += token[i];
    }
    const float share = 1.0f / static_cast<float>(tokens - skip);
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) row[i] *= share;
  }
}

#define VIT_TEXT(name) #name
#define VIT_NAME(name) VIT_TEXT(name)

}  // namespace

const Kernels kernels{VIT_NAME(VIT_ISA), patches, embed, layer_norm,
                      attention,         gather,  mean,  &training_kernels};

}  // namespace vit::VIT_ISA
