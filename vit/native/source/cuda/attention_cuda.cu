// Attention as one kernel, with the softmax on the way (FlashAttention-2, arXiv 2307.08691): scores
// are never in the memory of the device.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "cuda/fragments.hpp"
#include "cuda/kernels_cuda.hpp"
#include "cuda/launch.hpp"

namespace vit {
namespace {

VIT_BOTH float exponential(float x, SplitFloat) { return expf(x); }
// What is rounded in the end.
template <class Value>
VIT_BOTH float exponential(float x, Value) {
  return quick_exp(x);
}

// A value as products take it.
template <class Value>
VIT_BOTH Value ready(Value value) {
  return value;
}
VIT_BOTH TensorFloat ready(TensorFloat value) { return {tensor_float_of(value.value)}; }

// A team has a tile of queries of a head, and goes over tiles of its keys. `depth` is that of the
// heads, or more: what is beyond counts as 0.
template <class Value, int depth>
struct Attend {
  using Team = Tile;
  static constexpr int keys = sizeof(Value) == 2 ? 64 : 32;  // of a tile
  using Weights = Left<Value, keys>;
  static constexpr int stride = Left<Value, depth>::stride;
  static constexpr std::size_t bytes =
      sizeof(Value) * (tile_queries + 2 * keys) * stride + Weights::bytes;

  const Value* qkv;
  Target out;
  std::int64_t tokens, keep, heads, width;
  int channels;  // of a head
  bool whole;    // rows of heads begin and end at multiples of 16 bytes
  float factor;

  // to (rows, depth) = `count` rows of a head.
  template <class T>
  VIT_BOTH void load_rows(T team, const Value* from, std::int64_t count, int rows,
                          Value* to) const {
    constexpr int together = 16 / sizeof(Value);
    const std::int64_t from_stride = 3 * width;
    if (whole) {
      for (int i = team.rank(); i < rows * (depth / together); i += team.size()) {
        const int row = i / (depth / together), at = i % (depth / together) * together;
        Pack<Value, together> pack = {};
        if (row < count && at < channels) pack = load<together>(from + row * from_stride + at);
        for (Value& value : pack.values) value = ready(value);
        *reinterpret_cast<Pack<Value, together>*>(to + row * stride + at) = pack;
      }
      return;
    }
    for (int i = team.rank(); i < rows * depth; i += team.size()) {
      const int row = i / depth, at = i % depth;
      Value value = {};
      if (row < count && at < channels) value = from[row * from_stride + at];
      to[row * stride + at] = ready(value);
    }
  }

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t item, unsigned char* memory) const {
    const std::int64_t tiles = (keep + tile_queries - 1) / tile_queries;
    const std::int64_t query = item % tiles * tile_queries, head = item / tiles % heads;
    const std::int64_t image = item / tiles / heads;
    const Value* const first = qkv + image * tokens * 3 * width + head * channels;
    Value* const queries = reinterpret_cast<Value*>(memory);
    Value* const key_tile = queries + tile_queries * stride;
    Value* const values = key_tile + keys * stride;
    load_rows(team, first + query * 3 * width, keep - query, tile_queries, queries);
    team.sync();
    Left<Value, depth> left;
    left.take(queries);

    Sums<depth> result = {};
    float most[Sums<keys>::rows], total[Sums<keys>::rows];
    VIT_UNROLL
    for (int i = 0; i < Sums<keys>::rows; ++i) most[i] = -INFINITY, total[i] = 0.0f;
    for (std::int64_t key = 0; key < tokens; key += keys) {
      team.sync();
      load_rows(team, first + width + key * 3 * width, tokens - key, keys, key_tile);
      load_rows(team, first + 2 * width + key * 3 * width, tokens - key, keys, values);
      team.sync();
      Sums<keys> scores = {};
      left.add_by_rows(key_tile, scores);
      soften(scores, tokens - key, most, total, result);
      Weights weights;
      weights.take(scores, values + keys * stride);
      weights.add(values, stride, result);
    }
    write(result, total, query, image, head);
  }

  // Makes weights of scores for the largest one so far, and what was summed up before fit them.
  VIT_BOTH void soften(Sums<keys>& scores, std::int64_t count, float* most, float* total,
                       Sums<depth>& result) const {
    using At = Sums<keys>;
    VIT_UNROLL
    for (int i = 0; i < At::rows; ++i) {
      float high = most[i];
      VIT_UNROLL
      for (int j = 0; j < At::columns; ++j) {
        float& score = scores.values[i][j];
        score = At::column(j) < count ? score * factor : -INFINITY;
        high = fmaxf(high, score);
      }
      high = At::row_max(high);
      const float share = exponential(most[i] - high, Value{});
      most[i] = high;
      float sum = 0.0f;
      VIT_UNROLL
      for (int j = 0; j < At::columns; ++j) {
        scores.values[i][j] = exponential(scores.values[i][j] - high, Value{});
        sum += scores.values[i][j];
      }
      total[i] = total[i] * share + sum;
      VIT_UNROLL
      for (int j = 0; j < Sums<depth>::columns; ++j) result.values[i][j] *= share;
    }
  }

  VIT_BOTH void write(const Sums<depth>& result, const float* total, std::int64_t query,
                      std::int64_t image, std::int64_t head) const {
    using At = Sums<depth>;
    VIT_UNROLL
    for (int i = 0; i < At::rows; ++i) {
      const float share = 1.0f / At::row_sum(total[i]);
      const std::int64_t row = query + At::row(i);
      if (row >= keep) continue;
      const std::int64_t at = (image * keep + row) * width + head * channels;
      VIT_UNROLL
      for (int j = 0; j < At::columns; j += 2) {  // neighbours
        const int column = At::column(j);
        const float pair[2] = {result.values[i][j] * share, result.values[i][j + 1] * share};
        if (whole && column < channels) {
          store(out, at + column, pair);
        } else {
          VIT_UNROLL
          for (int k = 0; k < 2 && column + k < channels; ++k) {
            const float one[1] = {pair[k]};
            store(out, at + column + k, one);
          }
        }
      }
    }
  }
};

template <class Value, int depth>
Step step_of_depth(Device& device, Span qkv, Span out, std::int64_t batch, std::int64_t tokens,
                   std::int64_t keep, std::int64_t heads, std::int64_t width) {
  using Kernel = Attend<Value, depth>;
  const int channels = static_cast<int>(width / heads);
  const bool whole = channels * sizeof(Value) % 16 == 0;
  const Kernel kernel{static_cast<const Value*>(qkv.data),
                      Target(out),
                      tokens,
                      keep,
                      heads,
                      width,
                      channels,
                      whole,
                      1.0f / std::sqrt(static_cast<float>(channels))};
  const std::int64_t tiles = (keep + tile_queries - 1) / tile_queries;
  return [=, &device] { launch(device, batch * heads * tiles, kernel, Kernel::bytes); };
}

template <class Value, class... Arguments>
Step step_of_type(std::int64_t channels, Arguments&&... arguments) {
  if (channels <= 32) return step_of_depth<Value, 32>(arguments...);
  if (channels <= 64) return step_of_depth<Value, 64>(arguments...);
  if (channels <= 96) return step_of_depth<Value, 96>(arguments...);
  return step_of_depth<Value, 128>(arguments...);
}

}  // namespace

Step attention(Device& device, Span qkv, Span out, std::int64_t batch, std::int64_t tokens,
               std::int64_t keep, std::int64_t heads, std::int64_t width) {
  const std::int64_t channels = width / heads;
  if (channels > 128) {
    throw std::runtime_error("heads have " + std::to_string(channels) +
                             " channels, but the back end cuda takes up to 128; use cpu");
  }
  const auto step = [&](auto value) {
    return step_of_type<decltype(value)>(channels, device, qkv, out, batch, tokens, keep, heads,
                                         width);
  };
  if (qkv.type == Type::bf16) return step(Bfloat16{});
  return has_tensor_floats(device) ? step(TensorFloat{}) : step(SplitFloat{});
}

}  // namespace vit
