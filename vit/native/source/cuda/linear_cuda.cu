// Dense layers: products whose epilogues do what they can of the rest, and a kernel for what is
// left.
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/kernels_cuda.hpp"
#include "cuda/launch.hpp"
#include "cuda/product.hpp"
#include "cuda/values.hpp"
#include "model/linear.hpp"

namespace vit {
namespace {

// What follows a product of codes: the scales, and what an epilogue does otherwise. A thread has
// `together` neighbours of a row.
template <class Sum, int together>
struct Rescale {
  const Sum* sums;
  const float *scales, *bias;  // of each column; no bias if it is null
  Activation kind;
  const float* base;  // as y, which is f32; null for none
  Target y;
  std::int64_t columns;

  VIT_BOTH void operator()(std::int64_t item) const {
    const std::int64_t at = item * together, column = at % columns;
    const auto row = load<together>(sums + at);
    const auto factors = load<together>(scales + column);
    float values[together];
    for (int k = 0; k < together; ++k) {
      values[k] = static_cast<float>(row.values[k]) * factors.values[k];
      if (bias) values[k] += bias[column + k];
      values[k] = activated(kind, values[k]);
      if (base) values[k] += base[at + k];
    }
    store(y, at, values);
  }
};

// Codes of integers become the nearest in E4M3, in place.
struct ToFloat8 {
  std::uint8_t* codes;

  VIT_BOTH void operator()(std::int64_t i) const {
    codes[i] = to_float8(static_cast<std::int8_t>(codes[i])).bits;
  }
};

template <class T, class Function>
Buffer converted(Device& device, const std::vector<float>& values, Function&& function) {
  std::vector<T> result;
  result.reserve(values.size());
  for (float value : values) result.push_back(function(value));
  return uploaded(device, result);
}

Buffer in_bfloat16(Device& device, const std::vector<float>& values) {
  return converted<std::uint16_t>(device, values, to_bfloat16);
}

}  // namespace

struct Linear::State {
  State(Device& device_, std::int64_t in_, std::int64_t out_, Type type_)
      : device(device_), in(in_), out(out_), type(type_) {}

  Device& device;
  std::int64_t in, out;
  Type type;
  Buffer weight;         // (out, in), of the inputs' type; of u8, signed bytes
  Buffer bias, rounded;  // the latter as bfloat16, for outputs of it
  Buffer scales;         // of sums of codes

  Product product(const void* x, const Span& y, std::int64_t rows) const {
    const Number number = type == Type::f32    ? Number::f32
                          : type == Type::bf16 ? Number::bf16
                          : type == Type::f8   ? Number::f8
                                               : Number::s8;
    const Number result = y.type == Type::bf16 ? Number::bf16 : Number::f32;
    Product product{rows,
                    out,
                    in,
                    {const_cast<void*>(x), number, in},
                    {weight.data(), number, 1, in},
                    {y.data, result, out}};
    if (bias.bytes() > 0) product.bias = result == Number::bf16 ? rounded.data() : bias.data();
    return product;
  }
  Step floats(const void* x, const Span& y, std::int64_t rows, Activation activation, bool add);
  template <class Sum>
  Step codes(const void* x, const Span& y, std::int64_t rows, Activation activation, bool add);
};

Linear::Linear(Device& device, DenseValues values, Type type)
    : input_(values.input), state_(std::make_unique<State>(device, values.in, values.out, type)) {
  input_.type = type;
  State& layer = *state_;
  if (!values.quantised()) {
    layer.weight =
        type == Type::bf16 ? in_bfloat16(device, values.weight) : uploaded(device, values.weight);
    if (!values.bias.empty()) {
      layer.bias = uploaded(device, values.bias);
      if (type == Type::bf16) layer.rounded = in_bfloat16(device, values.bias);
    }
    return;
  }
  layer.weight = Buffer(device, values.codes.size());
  device.upload(layer.weight.data(), values.codes.data(), values.codes.size());
  layer.scales = converted<float>(device, values.scales,
                                  [&](float scale) { return scale * values.input.scale; });
  if (type == Type::f8) {
    launch_each(device, values.in * values.out, ToFloat8{layer.weight.data<std::uint8_t>()});
  } else {
    values.input.zero -= byte_shift;  // as the bytes are
  }
  const std::vector<float> bias = values.bias_without_zero();
  if (!bias.empty()) layer.bias = uploaded(device, bias);
}

Linear::~Linear() = default;

Step Linear::step(const void* x, Span y, std::int64_t rows, Activation activation, bool add) {
  State& layer = *state_;
  if (layer.type == Type::u8) return layer.codes<std::int32_t>(x, y, rows, activation, add);
  if (layer.type == Type::f8) return layer.codes<float>(x, y, rows, activation, add);
  return layer.floats(x, y, rows, activation, add);
}

Step Linear::State::floats(const void* x, const Span& y, std::int64_t rows, Activation activation,
                           bool add) {
  Product product = this->product(x, y, rows);
  if (add) product.base = y.data;
  // cuBLASLt has GELU by tanh only. It is within 5e-4 of the one by erf, which outputs of bfloat16
  // do not show (tests/test_vit_native_cuda.py).
  product.gelu_tanh = y.type == Type::bf16 &&
                      (activation == Activation::gelu || activation == Activation::gelu_tanh);
  Step step = product_step(device, product);
  if (product.gelu_tanh || activation == Activation::none) return step;
  float* const results = static_cast<float*>(y.data);
  const Activate kernel{activation, results, results};
  return in_order({std::move(step), [=, &device = device, count = rows * out] {
                     launch_each(device, count, kernel);
                   }});
}

template <class Sum>
Step Linear::State::codes(const void* x, const Span& y, std::int64_t rows, Activation activation,
                          bool add) {
  Product product = this->product(x, y, rows);
  const std::int64_t values = rows * out;
  const auto sums = scratch_of(device).of(device, static_cast<std::size_t>(values) * sizeof(Sum));
  product.bias = nullptr;
  product.c = {sums->data(), type == Type::f8 ? Number::f32 : Number::s32, out};
  const float* const base = add ? static_cast<const float*>(y.data) : nullptr;
  const auto rescale = [&](std::int64_t items, auto kernel) {
    return Step([=, &device = device] { launch_each(device, items, kernel); });
  };
  const auto* const found = sums->data<const Sum>();
  const auto *const factors = scales.data<const float>(), *const added = bias.data<const float>();
  const Target target(y);
  Step step = product_step(device, product);
  Step rest =
      out % 4 == 0
          ? rescale(values / 4,
                    Rescale<Sum, 4>{found, factors, added, activation, base, target, out})
          : rescale(values, Rescale<Sum, 1>{found, factors, added, activation, base, target, out});
  return [sums, step = std::move(step), rest = std::move(rest)] {
    step();
    rest();
  };
}

}  // namespace vit
