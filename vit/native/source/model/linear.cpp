#include "model/linear.hpp"

#include <algorithm>
#include <unordered_map>

#include "model/primitive.hpp"

namespace vit {
namespace {

using dnnl::memory;

// What follows the product: the sum or the activation, then the change to bytes.
dnnl::post_ops post_ops(Activation activation, bool add, const Span& y) {
  dnnl::post_ops ops;
  if (add) ops.append_sum(1.0f);
  switch (activation) {
    case Activation::none:
      break;
    case Activation::gelu:
      ops.append_eltwise(dnnl::algorithm::eltwise_gelu_erf, 0.0f, 0.0f);
      break;
    case Activation::gelu_tanh:
      ops.append_eltwise(dnnl::algorithm::eltwise_gelu_tanh, 0.0f, 0.0f);
      break;
    case Activation::tanh:
      ops.append_eltwise(dnnl::algorithm::eltwise_tanh, 0.0f, 0.0f);
      break;
  }
  if (y.type == Type::u8) {
    ops.append_eltwise(dnnl::algorithm::eltwise_linear, 1.0f / y.scale, static_cast<float>(y.zero));
    if (y.top < 255) {
      ops.append_eltwise(dnnl::algorithm::eltwise_clip, 0.0f, static_cast<float>(y.top));
    }
  }
  return ops;
}

memory::desc matrix(std::int64_t rows, std::int64_t columns, Type type) {
  return {{rows, columns}, data_type(type), memory::format_tag::ab};
}

// A zero of the inputs adds the same to each output of a row, so the bias can take it off.
std::vector<float> bias_of(const DenseValues& values) {
  std::vector<float> bias = values.bias;
  if (values.codes.empty() || values.input.zero == 0) return bias;
  bias.resize(static_cast<std::size_t>(values.out));
  for (std::int64_t row = 0; row < values.out; ++row) {
    std::int64_t sum = 0;
    for (std::int64_t i = 0; i < values.in; ++i) sum += values.codes[row * values.in + i];
    bias[row] -= values.input.scale * static_cast<float>(values.input.zero) * values.scales[row] *
                 static_cast<float>(sum);
  }
  return bias;
}

}  // namespace

Linear::Linear(Device& device, DenseValues values, Type type)
    : device_(device), in_(values.in), out_(values.out), type_(type), input_(values.input) {
  input_.type = type;
  const std::vector<float> bias = bias_of(values);
  if (!bias.empty()) bias_ = uploaded(device, bias);
  const bool quantised = !values.codes.empty();
  if (quantised) {
    weight_scales_ = uploaded(device, values.scales);
    input_scale_buffer_ = uploaded(device, {values.input.scale});
  }
  const void* data = quantised ? static_cast<const void*>(values.codes.data())
                               : static_cast<const void*>(values.weight.data());
  // (out, in) in rows is (in, out) in columns
  const memory::desc plain({in_, out_}, quantised ? memory::data_type::s8 : memory::data_type::f32,
                           memory::format_tag::ba);
  Buffer buffer(device, plain.get_size());
  device.upload(buffer.data(), data, buffer.bytes());
  memory view = device.wrap(plain, buffer.data());
  layouts_.emplace_back(std::move(buffer), std::move(view));
}

memory Linear::packed(const memory::desc& desc) {
  for (auto& [buffer, view] : layouts_) {
    if (view.get_desc() != desc) continue;
    if (&view == &layouts_.front().second) plain_is_unused_ = false;
    return view;
  }
  Buffer buffer(device_, desc.get_size());
  memory view = device_.wrap(desc, buffer.data());
  memory& source = layouts_.front().second;
  dnnl::reorder(source, view).execute(device_.stream(), source, view);
  device_.wait();
  layouts_.emplace_back(std::move(buffer), view);
  // the layout as it came is needed no more once the weights have another, unless a step has it
  if (plain_is_unused_) layouts_.erase(layouts_.begin());
  plain_is_unused_ = false;
  return view;
}

Step Linear::step(const void* x, Span y, std::int64_t rows, Activation activation, bool add) {
  const memory::desc source = matrix(rows, in_, type_), target = matrix(rows, out_, y.type);
  const auto weight_type = type_ == Type::u8 ? memory::data_type::s8 : data_type(type_);
  const memory::desc any({in_, out_}, weight_type, memory::format_tag::any);
  const memory::desc bias = matrix(1, out_, Type::f32);

  dnnl::primitive_attr attributes;
  attributes.set_post_ops(post_ops(activation, add, y));
  if (type_ == Type::u8) {
    attributes.set_scales_mask(DNNL_ARG_SRC, 0);
    attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1 << 1);
  }
  const bool biased = bias_.bytes() > 0;
  const dnnl::matmul::primitive_desc description =
      biased ? dnnl::matmul::primitive_desc(device_.engine(), source, any, bias, target, attributes)
             : dnnl::matmul::primitive_desc(device_.engine(), source, any, target, attributes);

  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SRC, device_.wrap(source, const_cast<void*>(x))},
      {DNNL_ARG_DST, device_.wrap(target, y.data)},
      {DNNL_ARG_WEIGHTS, packed(description.weights_desc())}};
  if (biased) arguments.emplace(DNNL_ARG_BIAS, device_.wrap(bias, bias_.data()));
  if (type_ == Type::u8) {
    const memory::desc one({1}, memory::data_type::f32, memory::format_tag::a);
    const memory::desc row({out_}, memory::data_type::f32, memory::format_tag::a);
    arguments.emplace(DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC,
                      device_.wrap(one, input_scale_buffer_.data()));
    arguments.emplace(DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS,
                      device_.wrap(row, weight_scales_.data()));
  }
  return step_of<dnnl::matmul>(device_, description, std::move(arguments));
}

}  // namespace vit
