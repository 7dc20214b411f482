#include "sycl/attention_sycl.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>
#include <vector>

#include "onednn/primitive.hpp"
#include "sycl/device_sycl.hpp"
#include "sycl/kernels_sycl.hpp"

namespace vit {
namespace {

using dnnl::memory;

// Bytes of scores at a time: enough work for a large GPU, and little beside the activations.
constexpr std::int64_t scores_bytes = 16 << 20;

// A matrix for each head of each image: (images, heads, rows, columns), anywhere in memory.
struct Matrices {
  Matrices(void* data_, memory::data_type type, const memory::dims& sizes, memory::dims strides)
      : data(data_), desc(strided(sizes, type, std::move(strides))) {}
  void* data;
  memory::desc desc;
};

Step product(Device& device, const Matrices& a, const Matrices& b, const Matrices& c,
             const dnnl::primitive_attr& attributes) {
  const dnnl::matmul::primitive_desc description(engine_of(device).engine, a.desc, b.desc, c.desc,
                                                 attributes);
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, wrap(device, a.desc, a.data)},
                                            {DNNL_ARG_WEIGHTS, wrap(device, b.desc, b.data)},
                                            {DNNL_ARG_DST, wrap(device, c.desc, c.data)}};
  return step_of<dnnl::matmul>(device, description, std::move(arguments));
}

Step softmax(Device& device, const Matrices& scores, const Matrices& shares) {
  const dnnl::softmax_forward::primitive_desc description(
      engine_of(device).engine, dnnl::prop_kind::forward_inference,
      dnnl::algorithm::softmax_accurate, scores.desc, shares.desc, 3);
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, wrap(device, scores.desc, scores.data)},
                                            {DNNL_ARG_DST, wrap(device, shares.desc, shares.data)}};
  return step_of<dnnl::softmax_forward>(device, description, std::move(arguments));
}

dnnl::primitive_attr times(float factor) {
  dnnl::post_ops ops;
  ops.append_eltwise(dnnl::algorithm::eltwise_linear, factor, 0.0f);
  dnnl::primitive_attr attributes = own_scratchpad();
  attributes.set_post_ops(ops);
  return attributes;
}

// The bytes from the given element of a span on.
void* at(const Span& span, std::int64_t element) {
  return static_cast<char*>(span.data) + element * static_cast<std::int64_t>(size_of(span.type));
}

}  // namespace

Step attention(Device& device, Span qkv, Span out, std::int64_t batch, std::int64_t tokens,
               std::int64_t keep, std::int64_t heads, std::int64_t width) {
  const std::int64_t depth = width / heads, row = 3 * width, square = keep * tokens;
  const std::int64_t part = std::clamp<std::int64_t>(
      scores_bytes / (heads * square * std::int64_t{sizeof(float)}), 1, batch);
  // oneDNN rounds floats to bytes only after products of bytes
  const bool rounded = out.type == Type::u8;
  const bool halved = qkv.type == Type::bf16;
  const std::int64_t num_scores = part * heads * square;
  const std::int64_t num_values =
      (halved ? 2 : 1) * num_scores + (rounded ? part * keep * width : 0);
  const auto scratch =
      device.state().scores.of(device, static_cast<std::size_t>(num_values) * sizeof(float));
  float* const scores = scratch->data<float>();
  float* const shares = halved ? scores + num_scores : scores;
  float* const mixed = shares + num_scores;
  const auto kind = data_type(qkv.type);

  std::vector<Step> steps;
  for (std::int64_t first = 0; first < batch; first += part) {
    const std::int64_t b = std::min(part, batch - first), a = heads, d = depth;
    const std::int64_t from = first * tokens * row, to = first * keep * width;
    const memory::dims rows{tokens * row, d, row, 1}, columns{tokens * row, d, 1, row};
    const memory::dims dense{a * square, square, tokens, 1};
    const Matrices q(at(qkv, from), kind, {b, a, keep, d}, rows);
    const Matrices k(at(qkv, from + width), kind, {b, a, d, tokens}, columns);
    const Matrices v(at(qkv, from + 2 * width), kind, {b, a, tokens, d}, rows);
    const Matrices s(scores, memory::data_type::f32, {b, a, keep, tokens}, dense);
    const Matrices p(shares, kind, {b, a, keep, tokens}, dense);
    const Matrices y(rounded ? mixed : at(out, to),
                     rounded ? memory::data_type::f32 : data_type(out.type), {b, a, keep, d},
                     {keep * width, d, width, 1});
    steps.push_back(product(device, q, k, s, times(1.0f / std::sqrt(static_cast<float>(d)))));
    steps.push_back(softmax(device, s, p));
    steps.push_back(product(device, p, v, y, own_scratchpad()));
    if (rounded) {
      Span bytes = out;
      bytes.data = at(out, to);
      steps.push_back([=, &device] { copy(device, Span{mixed}, width, bytes, b * keep, width); });
    }
  }
  return [scratch, run = in_order(std::move(steps))] { run(); };
}

}  // namespace vit
