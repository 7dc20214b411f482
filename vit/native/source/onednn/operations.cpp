#include "training/operations.hpp"

#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "onednn/primitive.hpp"

namespace vit {
namespace {

using dnnl::memory;
using dnnl::prop_kind;
constexpr auto f32 = memory::data_type::f32;

memory::desc plain(std::int64_t rows, std::int64_t columns) {
  return {{rows, columns}, f32, memory::format_tag::ab};
}

memory::desc layout(const Matrix& matrix) {
  if (matrix.images == 0) {
    return strided({matrix.rows, matrix.columns}, f32, {matrix.row_stride, matrix.column_stride});
  }
  return strided(
      {matrix.images, matrix.heads, matrix.rows, matrix.columns}, f32,
      {matrix.image_stride, matrix.head_stride, matrix.row_stride, matrix.column_stride});
}

dnnl::algorithm algorithm_of(Activation kind) {
  switch (kind) {
    case Activation::gelu:
      return dnnl::algorithm::eltwise_gelu_erf;
    case Activation::gelu_tanh:
      return dnnl::algorithm::eltwise_gelu_tanh;
    case Activation::tanh:
      return dnnl::algorithm::eltwise_tanh_use_dst_for_bwd;
    default:
      throw std::logic_error("no activation");
  }
}

Step product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c, const float* bias,
             dnnl::post_ops post_ops, std::unordered_map<int, memory> arguments) {
  const memory::desc source = layout(a), weights = layout(b), target = layout(c);
  const memory::desc row = plain(1, c.columns);
  dnnl::primitive_attr attributes = own_scratchpad();
  attributes.set_post_ops(post_ops);
  arguments.emplace(DNNL_ARG_SRC, wrap(device, source, a.data));
  arguments.emplace(DNNL_ARG_WEIGHTS, wrap(device, weights, b.data));
  arguments.emplace(DNNL_ARG_DST, wrap(device, target, c.data));
  if (bias) arguments.emplace(DNNL_ARG_BIAS, wrap(device, row, const_cast<float*>(bias)));
  const auto& engine = engine_of(device).engine;
  const dnnl::matmul::primitive_desc description =
      bias ? dnnl::matmul::primitive_desc(engine, source, weights, row, target, attributes)
           : dnnl::matmul::primitive_desc(engine, source, weights, target, attributes);
  return step_of<dnnl::matmul>(device, description, std::move(arguments));
}

}  // namespace

Step product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c, const float* bias,
             const float* base) {
  dnnl::post_ops post_ops;
  std::unordered_map<int, memory> arguments;
  if (base) {
    const memory::desc desc = plain(c.rows, c.columns);
    post_ops.append_binary(dnnl::algorithm::binary_add, desc);
    arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
                      wrap(device, desc, const_cast<float*>(base)));
  }
  return product(device, a, b, c, bias, post_ops, std::move(arguments));
}

Step scaled_product(Device& device, const Matrix& a, const Matrix& b, const Matrix& c,
                    float factor) {
  dnnl::post_ops post_ops;
  post_ops.append_eltwise(dnnl::algorithm::eltwise_linear, factor, 0.0f);
  return product(device, a, b, c, nullptr, post_ops, {});
}

Pass layer_norm(Device& device, const NormMemory& at, std::int64_t rows, std::int64_t width,
                float eps) {
  using dnnl::normalization_flags;
  const memory::desc table = plain(rows, width);
  const memory::desc column({rows}, f32, memory::format_tag::a);
  const memory::desc row({width}, f32, memory::format_tag::a);
  const auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
  const dnnl::layer_normalization_forward::primitive_desc forward(
      engine_of(device).engine, prop_kind::forward_training, table, table, eps, flags,
      own_scratchpad());
  const dnnl::layer_normalization_backward::primitive_desc backward(
      engine_of(device).engine, prop_kind::backward, table, table, table, eps, flags, forward,
      own_scratchpad());
  const std::unordered_map<int, memory> shared{
      {DNNL_ARG_SRC, wrap(device, table, at.x)},
      {DNNL_ARG_MEAN, wrap(device, column, at.mean)},
      {DNNL_ARG_VARIANCE, wrap(device, column, at.variance)},
      {DNNL_ARG_SCALE, wrap(device, row, at.weight)},
      {DNNL_ARG_SHIFT, wrap(device, row, at.bias)}};
  auto onward = shared, back = shared;
  onward.emplace(DNNL_ARG_DST, wrap(device, table, at.out));
  back.emplace(DNNL_ARG_DIFF_DST, wrap(device, table, at.out_gradient));
  back.emplace(DNNL_ARG_DIFF_SRC, wrap(device, table, at.x_gradient));
  back.emplace(DNNL_ARG_DIFF_SCALE, wrap(device, row, at.weight_gradient));
  back.emplace(DNNL_ARG_DIFF_SHIFT, wrap(device, row, at.bias_gradient));
  return {step_of<dnnl::layer_normalization_forward>(device, forward, std::move(onward)),
          step_of<dnnl::layer_normalization_backward>(device, backward, std::move(back))};
}

Pass activation(Device& device, Activation kind, float* x, float* out, float* gradient,
                std::int64_t rows, std::int64_t columns) {
  const dnnl::algorithm algorithm = algorithm_of(kind);
  const memory::desc table = plain(rows, columns);
  const dnnl::eltwise_forward::primitive_desc forward(engine_of(device).engine,
                                                      prop_kind::forward_training, algorithm, table,
                                                      table, 0.0f, 0.0f, own_scratchpad());
  const dnnl::eltwise_backward::primitive_desc backward(engine_of(device).engine, algorithm, table,
                                                        table, table, 0.0f, 0.0f, forward,
                                                        own_scratchpad());
  const bool by_result = kind == Activation::tanh;
  return {step_of<dnnl::eltwise_forward>(
              device, forward,
              {{DNNL_ARG_SRC, wrap(device, table, x)}, {DNNL_ARG_DST, wrap(device, table, out)}}),
          step_of<dnnl::eltwise_backward>(
              device, backward,
              {{by_result ? DNNL_ARG_DST : DNNL_ARG_SRC, wrap(device, table, by_result ? out : x)},
               {DNNL_ARG_DIFF_DST, wrap(device, table, gradient)},
               {DNNL_ARG_DIFF_SRC, wrap(device, table, gradient)}})};
}

Pass softmax(Device& device, const Matrix& scores, float* gradient) {
  const memory::desc table = layout(scores);
  const int axis = static_cast<int>(table.get_ndims()) - 1;
  const auto algorithm = dnnl::algorithm::softmax_accurate;
  const dnnl::softmax_forward::primitive_desc forward(engine_of(device).engine,
                                                      prop_kind::forward_training, algorithm, table,
                                                      table, axis, own_scratchpad());
  const dnnl::softmax_backward::primitive_desc backward(
      engine_of(device).engine, algorithm, table, table, table, axis, forward, own_scratchpad());
  const memory values = wrap(device, table, scores.data), change = wrap(device, table, gradient);
  return {step_of<dnnl::softmax_forward>(device, forward,
                                         {{DNNL_ARG_SRC, values}, {DNNL_ARG_DST, values}}),
          step_of<dnnl::softmax_backward>(
              device, backward,
              {{DNNL_ARG_DST, values}, {DNNL_ARG_DIFF_DST, change}, {DNNL_ARG_DIFF_SRC, change}})};
}

}  // namespace vit
