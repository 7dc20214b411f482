#include "training/parameters.hpp"

#include <stdexcept>
#include <utility>

namespace vit {

Parameters::Parameters(Device& device, TensorFile& file, const Shape& shape)
    : device_(device), file_(file), path_(file.path()) {
  const std::int64_t width = shape.width;
  add_layer("patch_embed.proj", {width, 3, shape.patch, shape.patch});
  add("pos_embed", {1, shape.positions, width});
  if (shape.class_token) add("cls_token", {1, 1, width});
  if (shape.registers) add("reg_token", {1, shape.registers, width});
  for (std::int64_t i = 0; i < shape.depth; ++i) {
    add_block("blocks." + std::to_string(i) + ".", shape);
  }
  add_norm(shape.fc_norm ? "fc_norm" : "norm", width);
  if (shape.pre_logits) add_layer("pre_logits.fc", {width, width});
  if (shape.head) add_layer("head", {shape.outputs, width});
  place_gradients(shape);
}

void Parameters::add_block(const std::string& name, const Shape& shape) {
  const std::int64_t width = shape.width, hidden = shape.hidden;
  add_norm(name + "norm1", width);
  add_layer(name + "attn.qkv", {3 * width, width}, shape.qkv_bias);
  add_layer(name + "attn.proj", {width, width});
  add_norm(name + "norm2", width);
  add_layer(name + "mlp.fc1", {hidden, width});
  add_layer(name + "mlp.fc2", {width, hidden});
  if (shape.layer_scale) {
    add(name + "ls1.gamma", {width});
    add(name + "ls2.gamma", {width});
  }
}

void Parameters::add(const std::string& name, std::vector<std::int64_t> shape) {
  const std::vector<float> values = file_.floats(name, shape);
  Parameter parameter;
  parameter.values = uploaded(device_, values);
  parameter.shape = std::move(shape);
  parameters_.emplace(name, std::move(parameter));
}

void Parameters::add_layer(const std::string& name, std::vector<std::int64_t> shape, bool biased) {
  if (biased) add(name + ".bias", {shape[0]});
  add(name + ".weight", std::move(shape));
}

void Parameters::add_norm(const std::string& name, std::int64_t width) {
  add(name + ".weight", {width});
  add(name + ".bias", {width});
}

void Parameters::place_gradients(const Shape& shape) {
  const std::int64_t width = shape.width;
  start_gradient_ =
      Buffer(device_, static_cast<std::size_t>(shape.tokens() * width) * sizeof(float));
  float* const start = start_gradient_.data<float>();
  for (auto& [name, parameter] : parameters_) {
    if (name == "cls_token") {
      parameter.gradient = start;
    } else if (name == "reg_token") {
      parameter.gradient = start + shape.class_token * width;
    } else if (name == "pos_embed") {
      if (!shape.fixed_positions) {
        parameter.gradient = start + (shape.tokens() - shape.positions) * width;
      }
    } else {
      gradients_.emplace_back(device_, parameter.values.bytes());
      parameter.gradient = gradients_.back().data<float>();
    }
  }
}

const Parameter& Parameters::at(const std::string& name) const {
  const auto found = parameters_.find(name);
  if (found == parameters_.end()) {
    throw std::runtime_error("the model has no parameter " + name + "; it has " +
                             parameters_.begin()->first + " and " +
                             std::to_string(parameters_.size() - 1) + " more");
  }
  return found->second;
}

std::vector<float> Parameters::floats(const std::string& name,
                                      const std::vector<std::int64_t>& shape) {
  const Parameter& parameter = at(name);
  if (parameter.shape != shape) throw std::logic_error(name + " has another shape");
  return download(parameter.data(), parameter.count());
}

std::vector<std::int8_t> Parameters::bytes(const std::string& name,
                                           const std::vector<std::int64_t>&) {
  throw std::logic_error(name + " is trained in float32, and has no integers");
}

std::vector<float> Parameters::download(const float* from, std::int64_t count) const {
  std::vector<float> values(static_cast<std::size_t>(count));
  device_.download(values.data(), from, values.size() * sizeof(float));
  return values;
}

}  // namespace vit
