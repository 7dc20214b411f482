#include "attention_sycl.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "device_sycl.hpp"
#include "kernels_sycl.hpp"

namespace vit {
namespace {

using dnnl::memory;

// Bytes of scores at a time: enough work for a large GPU, and little beside the activations.
constexpr std::int64_t scores_bytes = 16 << 20;

// A matrix for each head of each image: (images, heads, rows, columns), anywhere in memory.
struct Matrices {
  memory::desc desc;
  void* data;
};

Step product(Device& device, const Matrices& a, const Matrices& b, const Matrices& c,
             const dnnl::primitive_attr& attributes) {
  const dnnl::matmul::primitive_desc description(device.engine(), a.desc, b.desc, c.desc,
                                                 attributes);
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, device.wrap(a.desc, a.data)},
                                            {DNNL_ARG_WEIGHTS, device.wrap(b.desc, b.data)},
                                            {DNNL_ARG_DST, device.wrap(c.desc, c.data)}};
  return [primitive = dnnl::matmul(description), arguments = std::move(arguments),
          &stream = device.stream()] { primitive.execute(stream, arguments); };
}

Step softmax(Device& device, const Matrices& scores, const Matrices& shares) {
  const dnnl::softmax_forward::primitive_desc description(
      device.engine(), dnnl::prop_kind::forward_inference, dnnl::algorithm::softmax_accurate,
      scores.desc, shares.desc, 3);
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, device.wrap(scores.desc, scores.data)},
                                            {DNNL_ARG_DST, device.wrap(shares.desc, shares.data)}};
  return [primitive = dnnl::softmax_forward(description), arguments = std::move(arguments),
          &stream = device.stream()] { primitive.execute(stream, arguments); };
}

dnnl::primitive_attr times(float factor) {
  dnnl::post_ops ops;
  ops.append_eltwise(dnnl::algorithm::eltwise_linear, factor, 0.0f);
  dnnl::primitive_attr attributes;
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
  const std::int64_t depth = width / heads, row = 3 * width, image = tokens * row;
  const auto kind = qkv.type == Type::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const std::int64_t image_scores = heads * keep * tokens;
  const std::int64_t part = std::clamp<std::int64_t>(
      scores_bytes / (image_scores * std::int64_t{sizeof(float)}), 1, batch);
  // oneDNN rounds floats to bytes only after products of bytes
  const bool rounded = out.type == Type::u8;
  const std::int64_t mixed_values = rounded ? part * keep * width : 0;
  const auto scratch = device.state().scratch(
      device, static_cast<std::size_t>(2 * part * image_scores + mixed_values) * sizeof(float));
  float* const scores = scratch->data<float>();
  float* const shares = qkv.type == Type::f32 ? scores : scores + part * image_scores;
  float* const mixed = scores + 2 * part * image_scores;

  std::vector<Step> steps;
  for (std::int64_t first = 0; first < batch; first += part) {
    const std::int64_t images = std::min(part, batch - first);
    const auto in = [&](std::int64_t rows, std::int64_t columns, const memory::dims& strides,
                        std::int64_t offset) {
      return Matrices{{{images, heads, rows, columns}, kind, strides},
                      at(qkv, first * image + offset)};
    };
    const memory::dims square{images, heads, keep, tokens};
    const Matrices q = in(keep, depth, {image, depth, row, 1}, 0);
    const Matrices k = in(depth, tokens, {image, depth, 1, row}, width);
    const Matrices v = in(tokens, depth, {image, depth, row, 1}, 2 * width);
    const Matrices s{{square, memory::data_type::f32, memory::format_tag::abcd}, scores};
    const Matrices p{{square, kind, memory::format_tag::abcd}, shares};
    const Matrices y{{{images, heads, keep, depth},
                      rounded ? memory::data_type::f32 : data_type(out.type),
                      memory::dims{keep * width, depth, width, 1}},
                     rounded ? mixed : at(out, first * keep * width)};
    steps.push_back(product(device, q, k, s, times(1.0f / std::sqrt(static_cast<float>(depth)))));
    steps.push_back(softmax(device, s, p));
    steps.push_back(product(device, p, v, y, {}));
    if (rounded) {
      Span bytes = out;
      bytes.data = at(out, first * keep * width);
      steps.push_back([&device, mixed, bytes, count = images * keep * width] {
        convert(device, mixed, bytes, count);
      });
    }
  }
  return [scratch, steps = std::move(steps)] {
    for (const Step& step : steps) step();
  };
}

}  // namespace vit
