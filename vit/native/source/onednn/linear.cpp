#include "model/linear.hpp"

#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "onednn/primitive.hpp"

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

}  // namespace

struct Linear::State {
  State(Device& device_, const DenseValues& values, Type type_)
      : device(device_), in(values.in), out(values.out), type(type_) {}

  // The weights in the layout that a primitive wants; each layout is made once.
  memory packed(const memory::desc& desc);

  Device& device;
  std::int64_t in, out;
  Type type;
  Buffer bias, weight_scales, input_scale;
  std::vector<std::pair<Buffer, memory>> layouts;
  bool plain_is_unused = true;  // no step has the first layout, in which the weights came
};

Linear::Linear(Device& device, DenseValues values, Type type)
    : input_(values.input), state_(std::make_unique<State>(device, values, type)) {
  input_.type = type;
  const std::vector<float> bias = values.bias_without_zero();
  if (!bias.empty()) state_->bias = uploaded(device, bias);
  if (values.quantised()) {
    state_->weight_scales = uploaded(device, values.scales);
    state_->input_scale = uploaded(device, {values.input.scale});
  }
  const void* data = values.quantised() ? static_cast<const void*>(values.codes.data())
                                        : static_cast<const void*>(values.weight.data());
  // (out, in) in rows is (in, out) in columns
  const memory::desc plain({values.in, values.out},
                           values.quantised() ? memory::data_type::s8 : memory::data_type::f32,
                           memory::format_tag::ba);
  Buffer buffer(device, plain.get_size());
  device.upload(buffer.data(), data, buffer.bytes());
  memory view = wrap(device, plain, buffer.data());
  state_->layouts.emplace_back(std::move(buffer), std::move(view));
}

Linear::~Linear() = default;

memory Linear::State::packed(const memory::desc& desc) {
  for (auto& [buffer, view] : layouts) {
    if (view.get_desc() != desc) continue;
    if (&view == &layouts.front().second) plain_is_unused = false;
    return view;
  }
  Buffer buffer(device, desc.get_size());
  memory view = wrap(device, desc, buffer.data());
  memory& source = layouts.front().second;
  dnnl::reorder(source, view).execute(engine_of(device).stream, source, view);
  device.wait();
  layouts.emplace_back(std::move(buffer), view);
  // the layout as it came is needed no more once the weights have another, unless a step has it
  if (plain_is_unused) layouts.erase(layouts.begin());
  plain_is_unused = false;
  return view;
}

Step Linear::step(const void* x, Span y, std::int64_t rows, Activation activation, bool add) {
  State& layer = *state_;
  Device& device = layer.device;
  const memory::desc source = matrix(rows, layer.in, layer.type);
  const memory::desc target = matrix(rows, layer.out, y.type),
                     bias = matrix(1, layer.out, Type::f32);
  const bool in_bytes = layer.type == Type::u8, biased = layer.bias.bytes() > 0;
  const auto weight_type = in_bytes ? memory::data_type::s8 : data_type(layer.type);
  const memory::desc any({layer.in, layer.out}, weight_type, memory::format_tag::any);

  dnnl::primitive_attr attributes = own_scratchpad();
  attributes.set_post_ops(post_ops(activation, add, y));
  if (in_bytes) {
    attributes.set_scales_mask(DNNL_ARG_SRC, 0);
    attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1 << 1);
  }
  const dnnl::engine& engine = engine_of(device).engine;
  const dnnl::matmul::primitive_desc description =
      biased ? dnnl::matmul::primitive_desc(engine, source, any, bias, target, attributes)
             : dnnl::matmul::primitive_desc(engine, source, any, target, attributes);

  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SRC, wrap(device, source, const_cast<void*>(x))},
      {DNNL_ARG_DST, wrap(device, target, y.data)},
      {DNNL_ARG_WEIGHTS, layer.packed(description.weights_desc())}};
  if (biased) arguments.emplace(DNNL_ARG_BIAS, wrap(device, bias, layer.bias.data()));
  if (in_bytes) {
    const memory::desc one({1}, memory::data_type::f32, memory::format_tag::a);
    const memory::desc row({layer.out}, memory::data_type::f32, memory::format_tag::a);
    arguments.emplace(DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC,
                      wrap(device, one, layer.input_scale.data()));
    arguments.emplace(DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS,
                      wrap(device, row, layer.weight_scales.data()));
  }
  return step_of<dnnl::matmul>(device, description, std::move(arguments));
}

}  // namespace vit
