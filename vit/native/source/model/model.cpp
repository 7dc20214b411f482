#include "model/model.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace vit {
namespace {

// Puts what a model is made of on the device.
class Loader {
 public:
  Loader(Device& device, Weights& weights, const Shape& shape, Precision precision)
      : device_(device), weights_(weights), shape_(shape), precision_(precision) {}

  Norm norm(const std::string& name) {
    return {uploaded(device_, weights_.floats(name + ".weight", {shape_.width})),
            uploaded(device_, weights_.floats(name + ".bias", {shape_.width}))};
  }

  // A layer outside of blocks: never in 8 bits.
  std::unique_ptr<Linear> outer(const std::string& name, std::int64_t out) {
    return std::make_unique<Linear>(device_, floats(name, {out, shape_.width}, true), Type::f32);
  }

  std::unique_ptr<Linear> patch_embed() {
    DenseValues values =
        floats("patch_embed.proj", {shape_.width, 3, shape_.patch, shape_.patch}, true);
    return std::make_unique<Linear>(device_, std::move(values), patch_type());
  }

  // A layer of a block; the factors of LayerScale become part of it.
  std::unique_ptr<Linear> inner(const std::string& name, std::int64_t in, std::int64_t out,
                                bool biased, const std::string& scale = "") {
    DenseValues values =
        needs_codes(precision_) ? codes(name, in, out, biased) : floats(name, {out, in}, biased);
    if (shape_.layer_scale && !scale.empty()) multiply(values, weights_.floats(scale, {out}));
    return std::make_unique<Linear>(device_, std::move(values), type_of(precision_));
  }

  // (T, D): what the tokens are before the patches are added.
  Buffer start() {
    const std::int64_t width = shape_.width, prefix = shape_.prefix();
    const std::vector<float> positions = weights_.floats("pos_embed", {1, shape_.positions, width});
    std::vector<float> start(static_cast<std::size_t>(shape_.tokens() * width), 0.0f);
    std::copy(positions.rbegin(), positions.rend(), start.rbegin());
    const auto add = [&](const std::vector<float>& token, std::int64_t row) {
      for (std::size_t i = 0; i < token.size(); ++i) start[row * width + i] += token[i];
    };
    if (shape_.class_token) add(weights_.floats("cls_token", {1, 1, width}), 0);
    if (shape_.registers) {
      add(weights_.floats("reg_token", {1, shape_.registers, width}), prefix - shape_.registers);
    }
    return uploaded(device_, start);
  }

 private:
  Type patch_type() const {
    return precision_ == Precision::bfloat16 ? Type::bf16 : Type::f32;  // 8 bits are for blocks
  }

  DenseValues floats(const std::string& name, const std::vector<std::int64_t>& shape, bool biased) {
    DenseValues values;
    values.out = shape[0];
    values.weight = weights_.floats(name + ".weight", shape);
    values.in = static_cast<std::int64_t>(values.weight.size()) / values.out;
    if (biased) values.bias = weights_.floats(name + ".bias", {values.out});
    return values;
  }

  DenseValues codes(const std::string& name, std::int64_t in, std::int64_t out, bool biased) {
    DenseValues values;
    values.in = in, values.out = out;
    values.codes = weights_.bytes(name + ".weight", {out, in});
    values.scales = weights_.floats(name + ".weight_scale", {out});
    values.input = input(name + ".input_range");
    if (biased) values.bias = weights_.floats(name + ".bias", {out});
    return values;
  }

  // How the inputs of a layer become codes, by the name of the tensor with their range.
  Span input(const std::string& name) {
    const std::vector<float> range = weights_.floats(name, {2});
    const float low = range[0], high = range[1], width = high - low;
    if (!(low <= 0.0f && high >= 0.0f && std::isnormal(width / 255.0f) &&
          std::isnormal(255.0f / width))) {
      throw std::runtime_error(weights_.path() + ": " + name + " goes from " + std::to_string(low) +
                               " to " + std::to_string(high) +
                               ", where a range of values around 0 is needed");
    }
    Span span{nullptr, type_of(precision_)};
    if (span.type == Type::f8) {
      span.scale = std::max(-low, high) / largest_f8;
      return span;
    }
    span.top = largest_code(device_);
    span.scale = width / static_cast<float>(span.top);
    span.zero = static_cast<std::int32_t>(std::nearbyint(-low / span.scale));
    return span;
  }

  static void multiply(DenseValues& values, const std::vector<float>& factors) {
    for (std::int64_t row = 0; row < values.out; ++row) {
      if (!values.bias.empty()) values.bias[row] *= factors[row];
      if (!values.scales.empty()) values.scales[row] *= factors[row];
      if (values.weight.empty()) continue;
      for (std::int64_t i = 0; i < values.in; ++i)
        values.weight[row * values.in + i] *= factors[row];
    }
  }

  Device& device_;
  Weights& weights_;
  const Shape& shape_;
  Precision precision_;
};

// std::runtime_error unless the file holds what the precision needs.
void check_file(const Weights& weights, Precision precision) {
  const bool quantised = weights.has("blocks.0.attn.qkv.weight_scale");
  if (quantised && !needs_codes(precision)) {
    throw std::runtime_error(weights.path() +
                             " is quantised; open it with precision=int8, or float8");
  }
  if (!quantised && needs_codes(precision)) {
    throw std::runtime_error(weights.path() + " is not quantised, which " +
                             (precision == Precision::int8 ? "int8" : "float8") +
                             " needs; python -m vit.native quantise"
                             " CHECKPOINT IMAGES... --out FOLDER writes a file that is");
  }
}

}  // namespace

Model::Model(Device& device, Weights& weights, const Shape& shape_, Precision precision_)
    : shape(shape_), precision(precision_) {
  check_precision(device, precision);
  check_file(weights, precision);
  Loader load(device, weights, shape, precision);
  patch_embed = load.patch_embed();
  start = load.start();
  for (std::int64_t i = 0; i < shape.depth; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    const std::int64_t width = shape.width, hidden = shape.hidden;
    Block block;
    block.norm1 = load.norm(name + "norm1");
    block.qkv = load.inner(name + "attn.qkv", width, 3 * width, shape.qkv_bias);
    block.proj = load.inner(name + "attn.proj", width, width, true, name + "ls1.gamma");
    block.norm2 = load.norm(name + "norm2");
    block.fc1 = load.inner(name + "mlp.fc1", width, hidden, true);
    block.fc2 = load.inner(name + "mlp.fc2", hidden, width, true, name + "ls2.gamma");
    blocks.push_back(std::move(block));
  }
  norm = load.norm(shape.fc_norm ? "fc_norm" : "norm");
  if (shape.pre_logits) pre_logits = load.outer("pre_logits.fc", shape.width);
  if (shape.head) head = load.outer("head", shape.outputs);
}

}  // namespace vit
