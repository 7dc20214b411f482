#include "training/training.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "model/kernels.hpp"
#include "training/training_kernels.hpp"

namespace vit {

Training::Training(Device& device, const Parameters& parameters, const Shape& shape,
                   std::int64_t batch)
    : device_(device),
      parameters_(parameters),
      shape_(shape),
      batch_(batch),
      stream_rows_(batch * shape.tokens()) {
  const std::int64_t width = shape.width, tokens = shape.tokens(), rows = stream_rows_;
  images_ = memory(batch, 3 * shape.image * shape.image);
  targets_ = memory(batch, shape.outputs);
  logits_ = memory(batch, shape.outputs);
  losses_ = memory(batch, 1);
  ones_ = memory(1, rows);
  start_ = memory(tokens, width);
  stream_gradient_ = memory(rows, width);
  branch_gradient_ = memory(rows, width);
  hidden_gradient_ = memory(rows, width);
  wide_gradient_ = memory(rows, std::max(3 * width, shape.hidden));
  scores_gradient_ = memory(batch * shape.heads * tokens, tokens);
  features_gradient_ = memory(batch, width);
  logits_gradient_ = memory(batch, shape.outputs);
  const std::vector<float> ones(static_cast<std::size_t>(rows), 1.0f);
  device.upload(ones_, ones.data(), ones.size() * sizeof(float));
  start();
  embed();
  for (std::int64_t i = 0; i < shape.depth; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    attention(block, shape.class_token && i + 1 == shape.depth);
    mlp(block);
  }
  finish();
  Steps back;
  for (auto steps = backward_.rbegin(); steps != backward_.rend(); ++steps) {
    std::move(steps->begin(), steps->end(), std::back_inserter(back));
  }
  run_forward_ = device.sequence(std::move(forward_));
  run_backward_ = device.sequence(std::move(back));
}

double Training::loss(const float* images, const float* targets) {
  const auto bytes = [&](std::int64_t values) { return batch_ * values * sizeof(float); };
  device_.upload(images_, images, bytes(3 * shape_.image * shape_.image));
  device_.upload(targets_, targets, bytes(shape_.outputs));
  run_forward_();
  device_.wait();
  std::vector<float> losses(static_cast<std::size_t>(batch_));
  device_.download(losses.data(), losses_, bytes(1));
  double sum = 0;
  for (float loss : losses) sum += loss;
  return sum / static_cast<double>(batch_);
}

void Training::gradients() {
  run_backward_();
  device_.wait();
}

float* Training::memory(std::int64_t rows, std::int64_t columns) {
  buffers_.emplace_back(device_, static_cast<std::size_t>(rows * columns) * sizeof(float));
  return buffers_.back().data<float>();
}

void Training::add(Pass pass) {
  forward_.push_back(std::move(pass.forward));
  backward_.push_back({std::move(pass.backward)});
}

// What the tokens are before the patches are added: it follows the parameters.
void Training::start() {
  const Kernels& kernels = device_.kernels();
  const std::int64_t width = shape_.width, tokens = shape_.tokens();
  const std::int64_t bare = tokens - shape_.positions;  // first tokens that have no position
  const auto copy = [&](const std::string& name, std::int64_t row, std::int64_t rows) {
    forward_.push_back(step_of(device_, kernels.gather, parameters_.at(name).data(), width,
                               start_ + row * width, rows, width));
  };
  const auto add = [&](const std::string& name, std::int64_t row, std::int64_t rows) {
    if (bare > 0) return copy(name, row, rows);
    forward_.push_back(step_of(device_, kernels.training->add_rows, parameters_.at(name).data(),
                               start_ + row * width, width, rows, width));
  };
  copy("pos_embed", bare, shape_.positions);
  if (shape_.class_token) add("cls_token", 0, 1);
  if (shape_.registers) add("reg_token", shape_.class_token, shape_.registers);
}

void Training::embed() {
  const Kernels& kernels = device_.kernels();
  const std::int64_t width = shape_.width, tokens = shape_.tokens(), patches = shape_.patches();
  float* const cut = memory(batch_ * patches, shape_.patch_values());
  float* const embedded = memory(batch_ * patches, width);
  stream_ = memory(stream_rows_, width);
  forward_.push_back(
      step_of(device_, kernels.patches, images_, Span{cut}, batch_, shape_.image, shape_.patch));
  linear("patch_embed.proj", cut, embedded, batch_ * patches, hidden_gradient_, nullptr);
  forward_.push_back(
      step_of(device_, kernels.embed, embedded, start_, stream_, batch_, patches, tokens, width));
  backward_.push_back(
      {product(device_, Matrix(ones_, 1, batch_), Matrix(stream_gradient_, batch_, tokens * width),
               Matrix(parameters_.start_gradient(), 1, tokens * width)),
       step_of(device_, kernels.gather, stream_gradient_ + shape_.prefix() * width, tokens * width,
               hidden_gradient_, batch_, patches * width)});
}

// The head reads only the class token, so the last block computes no other after its attention.
void Training::attention(const std::string& block, bool only_first) {
  const std::int64_t width = shape_.width, tokens = shape_.tokens(), rows = stream_rows_;
  float *const x = stream_, *const x_gradient = stream_gradient_;
  const std::int64_t keep = only_first ? 1 : tokens;
  float* first = x;
  if (only_first) {
    stream_rows_ = batch_;
    first = memory(batch_, width), stream_gradient_ = memory(batch_, width);
    forward_.push_back(
        step_of(device_, device_.kernels().gather, x, tokens * width, first, batch_, width));
  }
  // the gradient by x: through the norm, then what passes the attention by
  float* const through = only_first ? x_gradient : branch_gradient_;
  backward_.push_back({step_of(device_, device_.kernels().training->add_rows,
                               only_first ? stream_gradient_ : branch_gradient_, x_gradient,
                               only_first ? tokens * width : width, stream_rows_, width)});
  float* const normal = memory(rows, width);
  norm(block + "norm1", x, normal, rows, hidden_gradient_, through);
  float* const qkv = memory(rows, 3 * width);
  linear(block + "attn.qkv", normal, qkv, rows, wide_gradient_, hidden_gradient_);
  float* const mixed = memory(stream_rows_, width);
  mix(qkv, mixed, keep);
  stream_ = first;
  branch(block + "attn.proj", block + "ls1.gamma", mixed, memory(stream_rows_, width), stream_rows_,
         hidden_gradient_);
}

// mixed = softmax(q k^T / sqrt(d)) v for the first `keep` queries of each image.
void Training::mix(float* qkv, float* mixed, std::int64_t keep) {
  const std::int64_t width = shape_.width, tokens = shape_.tokens(), heads = shape_.heads;
  const std::int64_t depth = width / heads;
  const auto matrices = [&](float* data, std::int64_t rows, std::int64_t columns,
                            std::int64_t row_stride, std::int64_t head_stride,
                            std::int64_t image_stride) {
    Matrix matrix(data, rows, columns);
    matrix.row_stride = row_stride;
    matrix.images = batch_, matrix.heads = heads;
    matrix.image_stride = image_stride, matrix.head_stride = head_stride;
    return matrix;
  };
  const auto part = [&](float* data, int number, std::int64_t rows) {
    return matrices(data + number * width, rows, depth, 3 * width, depth, tokens * 3 * width);
  };
  const auto table = [&](float* data) {
    return matrices(data, keep, tokens, tokens, keep * tokens, heads * keep * tokens);
  };
  const auto result = [&](float* data) {
    return matrices(data, keep, depth, width, depth, keep * width);
  };
  const float factor = 1.0f / std::sqrt(static_cast<float>(depth));
  Matrix q = part(qkv, 0, keep);
  const Matrix k = part(qkv, 1, tokens), v = part(qkv, 2, tokens);
  if (keep == 1) {  // oneDNN 3.13 multiplies wrongly by single rows that lie apart
    q = result(memory(batch_, width));
    forward_.push_back(
        step_of(device_, device_.kernels().gather, qkv, tokens * 3 * width, q.data, batch_, width));
  }
  const Matrix scores = table(memory(batch_ * heads * keep, tokens));
  Pass soft = softmax(device_, scores, scores_gradient_);
  forward_.push_back(scaled_product(device_, q, k.transposed(), scores, factor));
  forward_.push_back(std::move(soft.forward));
  forward_.push_back(product(device_, scores, v, result(mixed)));

  float* const to = wide_gradient_;
  const Matrix out = result(hidden_gradient_), change = table(scores_gradient_);
  Steps steps;
  if (keep < tokens) {  // the other queries count for nothing
    const auto bytes = static_cast<std::size_t>(batch_ * tokens * 3 * width) * sizeof(float);
    steps.push_back([=, &device = device_] { device.clear(to, bytes); });
  }
  steps.push_back(product(device_, scores.transposed(), out, part(to, 2, tokens)));
  steps.push_back(product(device_, out, v.transposed(), change));
  steps.push_back(std::move(soft.backward));
  steps.push_back(scaled_product(device_, change, k, part(to, 0, keep), factor));
  steps.push_back(scaled_product(device_, change.transposed(), q, part(to, 1, tokens), factor));
  backward_.push_back(std::move(steps));
}

void Training::mlp(const std::string& block) {
  const std::int64_t width = shape_.width, hidden = shape_.hidden, rows = stream_rows_;
  backward_.push_back({step_of(device_, device_.kernels().training->add_rows, branch_gradient_,
                               stream_gradient_, width, rows, width)});
  float* const normal = memory(rows, width);
  norm(block + "norm2", stream_, normal, rows, hidden_gradient_, branch_gradient_);
  float *const before = memory(rows, hidden), *const after = memory(rows, hidden);
  linear(block + "mlp.fc1", normal, before, rows, wide_gradient_, hidden_gradient_);
  add(activation(device_, shape_.tanh_gelu ? Activation::gelu_tanh : Activation::gelu, before,
                 after, wide_gradient_, rows, hidden));
  branch(block + "mlp.fc2", block + "ls2.gamma", after, memory(rows, width), rows, wide_gradient_);
}

void Training::pool() {
  const std::int64_t width = shape_.width, tokens = shape_.tokens(), skip = shape_.registers;
  const auto mean = [&](float* x, float* out, float* out_gradient, float* x_gradient) {
    forward_.push_back(
        step_of(device_, device_.kernels().mean, x, out, batch_, tokens, skip, width));
    backward_.push_back({step_of(device_, device_.kernels().training->mean_gradient, out_gradient,
                                 x_gradient, batch_, tokens, skip, width)});
  };
  features_ = memory(batch_, width);
  if (shape_.class_token) {
    norm("norm", stream_, features_, batch_, features_gradient_, stream_gradient_);
  } else if (shape_.fc_norm) {
    float *const pooled = memory(batch_, width), *const gradient = memory(batch_, width);
    mean(stream_, pooled, gradient, stream_gradient_);
    norm("fc_norm", pooled, features_, batch_, features_gradient_, gradient);
  } else {
    float* const normal = memory(stream_rows_, width);
    norm("norm", stream_, normal, stream_rows_, hidden_gradient_, stream_gradient_);
    mean(normal, features_, features_gradient_, hidden_gradient_);
  }
}

void Training::finish() {
  const std::int64_t width = shape_.width;
  pool();
  if (shape_.pre_logits) {
    float *const before = memory(batch_, width), *const after = memory(batch_, width);
    float* const gradient = memory(batch_, width);
    linear("pre_logits.fc", features_, before, batch_, gradient, features_gradient_);
    add(activation(device_, Activation::tanh, before, after, gradient, batch_, width));
    features_ = after, features_gradient_ = gradient;
  }
  linear("head", features_, logits_, batch_, logits_gradient_, features_gradient_);
  forward_.push_back(step_of(device_, device_.kernels().training->cross_entropy, logits_, targets_,
                             losses_, logits_gradient_, batch_, shape_.outputs));
}

void Training::linear(const std::string& name, float* x, float* out, std::int64_t rows,
                      float* out_gradient, float* x_gradient, const float* base) {
  const Parameter& weight = parameters_.at(name + ".weight");
  const Parameter* bias =
      parameters_.has(name + ".bias") ? &parameters_.at(name + ".bias") : nullptr;
  const std::int64_t outputs = weight.shape[0], inputs = weight.count() / outputs;
  const Matrix from(x, rows, inputs), matrix(weight.data(), outputs, inputs);
  const Matrix change(out_gradient, rows, outputs);
  forward_.push_back(product(device_, from, matrix.transposed(), Matrix(out, rows, outputs),
                             bias ? bias->data() : nullptr, base));
  Steps steps{
      product(device_, change.transposed(), from, Matrix(weight.gradient, outputs, inputs))};
  if (bias) {
    steps.push_back(
        product(device_, Matrix(ones_, 1, rows), change, Matrix(bias->gradient, 1, outputs)));
  }
  if (x_gradient) {
    steps.push_back(product(device_, change, matrix, Matrix(x_gradient, rows, inputs)));
  }
  backward_.push_back(std::move(steps));
}

// The gradient of the stream passes by, and that by the branch is the same.
void Training::branch(const std::string& layer, const std::string& scale, float* x, float* out,
                      std::int64_t rows, float* x_gradient) {
  const std::int64_t width = shape_.width;
  if (!shape_.layer_scale) {
    linear(layer, x, out, rows, stream_gradient_, x_gradient, stream_);
  } else {
    const Parameter& gamma = parameters_.at(scale);
    const TrainingKernels& kernels = *device_.kernels().training;
    float* const bare = memory(rows, width);
    linear(layer, x, bare, rows, branch_gradient_, x_gradient);
    forward_.push_back(
        step_of(device_, kernels.layer_scale, stream_, bare, gamma.data(), out, rows, width));
    backward_.push_back({step_of(device_, kernels.layer_scale_gradient, stream_gradient_, bare,
                                 gamma.data(), branch_gradient_, gamma.gradient, rows, width)});
  }
  stream_ = out;
}

void Training::norm(const std::string& name, float* x, float* out, std::int64_t rows,
                    float* out_gradient, float* x_gradient) {
  const Parameter& weight = parameters_.at(name + ".weight");
  const Parameter& bias = parameters_.at(name + ".bias");
  NormMemory at{};
  at.x = x, at.out = out, at.mean = memory(rows, 1), at.variance = memory(rows, 1);
  at.weight = weight.data(), at.bias = bias.data();
  at.out_gradient = out_gradient, at.x_gradient = x_gradient;
  at.weight_gradient = weight.gradient, at.bias_gradient = bias.gradient;
  add(layer_norm(device_, at, rows, shape_.width, shape_.norm_eps));
}

}  // namespace vit
