#include "model/forward.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace vit {

Forward::Forward(Device& device, Model& model, std::int64_t batch, Observer observer)
    : device_(device),
      model_(model),
      batch_(batch),
      observer_(std::move(observer)),
      rows_(batch * model.shape.tokens()) {
  if (observer_ && model.precision != Precision::float32) {
    throw std::runtime_error("only models that are open with precision=float32 can be observed");
  }
  const Shape& shape = model.shape;
  const auto buffer = [&](std::int64_t rows, std::int64_t columns, Type type = Type::f32) {
    return Buffer(device, static_cast<std::size_t>(rows * columns) * size_of(type));
  };
  images_ = buffer(batch, 3 * shape.image * shape.image);
  patches_ = buffer(batch * shape.patches(), shape.patch_values());
  tokens_ = buffer(rows_, shape.width);
  first_ = buffer(batch, shape.width);
  hidden_ = buffer(rows_, shape.width);
  wide_ = buffer(rows_, std::max(3 * shape.width, shape.hidden));
  pooled_ = buffer(batch, shape.width);
  features_ = buffer(batch, shape.width);
  logits_ = buffer(batch, shape.outputs);
  embed();
  for (Block& block : model.blocks) this->block(block, &block == &model.blocks.back());
  finish();
  // an observer reads in the middle, which cannot be recorded
  run_ = observer_ ? in_order(std::move(steps_)) : device.sequence(std::move(steps_));
}

void Forward::run(const float* images, float* logits) {
  device_.upload(images_.data(), images, images_.bytes());
  run_();
  device_.wait();
  device_.download(logits, logits_.data(), logits_.bytes());
}

void Forward::norm(const float* x, std::int64_t stride, const Norm& norm, Span out,
                   std::int64_t rows) {
  add(device_.kernels().layer_norm, x, stride, norm.weight.data<const float>(),
      norm.bias.data<const float>(), model_.shape.norm_eps, out, rows, model_.shape.width);
}

void Forward::observe(const Block& block, const char* layer, const Buffer& values,
                      std::int64_t rows, std::int64_t columns) {
  if (!observer_) return;
  const std::int64_t number = &block - model_.blocks.data();
  const std::string name = "blocks." + std::to_string(number) + "." + layer;
  steps_.push_back([=, &values, host = std::vector<float>(rows * columns)]() mutable {
    device_.wait();
    device_.download(host.data(), values.data(), host.size() * sizeof(float));
    observer_(name, host.data(), rows, columns);
  });
}

void Forward::embed() {
  const Shape& shape = model_.shape;
  const Span patches = model_.patch_embed->input(patches_.data());
  add(device_.kernels().patches, images_.data<float>(), patches, batch_, shape.image, shape.patch);
  steps_.push_back(model_.patch_embed->step(patches.data, Span{hidden_.data()},
                                            batch_ * shape.patches(), Activation::none, false));
  add(device_.kernels().embed, hidden_.data<float>(), model_.start.data<float>(),
      tokens_.data<float>(), batch_, shape.patches(), shape.tokens(), shape.width);
}

// The head reads only the class token, so the last block computes no other after its attention.
void Forward::block(Block& block, bool last) {
  const Shape& shape = model_.shape;
  const std::int64_t width = shape.width;
  const bool only_first = last && shape.class_token;
  const std::int64_t keep = only_first ? 1 : shape.tokens(), rows = batch_ * keep;
  const Type middle = model_.precision == Precision::bfloat16 ? Type::bf16 : Type::f32;
  float* const tokens = only_first ? first_.data<float>() : tokens_.data<float>();

  norm(tokens_.data<float>(), width, block.norm1, block.qkv->input(hidden_.data()), rows_);
  observe(block, "attn.qkv", hidden_, rows_, width);
  const Span qkv{wide_.data(), middle};
  steps_.push_back(block.qkv->step(hidden_.data(), qkv, rows_, Activation::none, false));
  const Span mixed = block.proj->input(hidden_.data());
  steps_.push_back(device_.kernels().attention(device_, qkv, mixed, batch_, shape.tokens(), keep,
                                               shape.heads, width));
  observe(block, "attn.proj", hidden_, rows, width);
  if (only_first) {
    add(device_.kernels().gather, tokens_.data<float>(), shape.tokens() * width, tokens, batch_,
        width);
  }
  steps_.push_back(block.proj->step(mixed.data, Span{tokens}, rows, Activation::none, true));

  norm(tokens, width, block.norm2, block.fc1->input(hidden_.data()), rows);
  observe(block, "mlp.fc1", hidden_, rows, width);
  const Span inner = block.fc2->input(wide_.data());
  const Activation gelu = shape.tanh_gelu ? Activation::gelu_tanh : Activation::gelu;
  steps_.push_back(block.fc1->step(hidden_.data(), inner, rows, gelu, false));
  observe(block, "mlp.fc2", wide_, rows, shape.hidden);
  steps_.push_back(block.fc2->step(inner.data, Span{tokens}, rows, Activation::none, true));
}

void Forward::finish() {
  const Shape& shape = model_.shape;
  const std::int64_t width = shape.width;
  float* features =
      model_.head || model_.pre_logits ? features_.data<float>() : logits_.data<float>();
  const auto mean = [&](const float* x, float* out) {
    add(device_.kernels().mean, x, out, batch_, shape.tokens(), shape.registers, width);
  };
  if (shape.class_token) {
    norm(first_.data<float>(), width, model_.norm, Span{features}, batch_);
  } else if (shape.fc_norm) {
    mean(tokens_.data<float>(), pooled_.data<float>());
    norm(pooled_.data<float>(), width, model_.norm, Span{features}, batch_);
  } else {
    norm(tokens_.data<float>(), width, model_.norm, Span{hidden_.data()}, rows_);
    mean(hidden_.data<float>(), features);
  }
  if (model_.pre_logits) {
    float* out = model_.head ? pooled_.data<float>() : logits_.data<float>();
    steps_.push_back(model_.pre_logits->step(features, Span{out}, batch_, Activation::tanh, false));
    features = out;
  }
  if (model_.head) {
    steps_.push_back(
        model_.head->step(features, Span{logits_.data()}, batch_, Activation::none, false));
  }
}

}  // namespace vit
