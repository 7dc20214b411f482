#include "training/trainer.hpp"

#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "file/tensor_writer.hpp"

namespace vit {
namespace {

// Sizes of batches that stay set up: that of the epoch, and that of its rest.
constexpr std::size_t max_plans = 2;

const Shape& checked(const Shape& shape) {
  if (!shape.head) {
    throw std::runtime_error("the model has no head, which training needs for its loss");
  }
  for (const auto& [name, rate] :
       {std::pair{"dropout", shape.dropout}, {"drop_path", shape.drop_path}}) {
    if (rate != 0) {
      throw std::runtime_error("the model was made with " + std::string(name) +
                               " above 0, which this training does not have; train it with" +
                               " PyTorch, or set model." + name + " to 0 in its config.json");
    }
  }
  return shape;
}

// A JSON object of what tensors do not show, for files without config.json beside them.
std::string facts_of(const Shape& shape) {
  char eps[32];
  std::snprintf(eps, sizeof eps, "%.9g", static_cast<double>(shape.norm_eps));
  return "{\"heads\": " + std::to_string(shape.heads) + ", \"norm_eps\": " + eps +
         ", \"gelu\": \"" + (shape.tanh_gelu ? "tanh" : "exact") + "\", \"positions\": \"" +
         (shape.fixed_positions ? "sincos2d" : "learned") + "\"}";
}

}  // namespace

Trainer::Trainer(Device& device, TensorFile& file, const Shape& shape,
                 const OptimizerSettings& settings)
    : device_(device),
      file_(file),
      shape_(checked(shape)),
      parameters_(device, file, shape),
      optimizer_(device, parameters_, settings),
      plans_(max_plans) {}

double Trainer::gradients(const float* images, const float* targets, std::int64_t batch) {
  Training& training = plans_.of(batch, device_, parameters_, shape_);
  has_gradients_ = false;
  const double loss = training.loss(images, targets);
  if (!std::isfinite(loss)) {
    throw std::runtime_error("the loss is " + std::to_string(loss) +
                             ", so the step was left out; look at the images and targets of" +
                             " this batch, or use a lower learning rate");
  }
  training.gradients();
  has_gradients_ = true;
  return loss;
}

double Trainer::step(const float* images, const float* targets, std::int64_t batch, double lr) {
  if (!(lr >= 0 && std::isfinite(lr))) {
    throw std::runtime_error("lr is " + std::to_string(lr) + "; it must be finite, and at least 0");
  }
  const double loss = gradients(images, targets, batch);
  optimizer_.step(lr);
  return loss;
}

std::vector<float> Trainer::read(const std::string& what, const std::string& name) const {
  const Parameter& parameter = parameters_.at(name);
  if (what == "weight") return parameters_.download(parameter.data(), parameter.count());
  if (what == "moment1" || what == "moment2") return optimizer_.moment(name, what == "moment2");
  if (what != "gradient") {
    throw std::runtime_error("cannot read " + what + "; known: weight, gradient, moment1, moment2");
  }
  if (!parameter.gradient) throw std::runtime_error(name + " is not trained");
  if (!has_gradients_) throw std::runtime_error("there are no gradients before the first step");
  return parameters_.download(parameter.gradient, parameter.count());
}

void Trainer::save(const std::string& path) const {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, parameter] : parameters_.all()) {
    tensors.push_back({name, parameter.shape, [this, &parameter = parameter] {
                         return parameters_.download(parameter.data(), parameter.count());
                       }});
  }
  auto metadata = file_.metadata();
  metadata["vit"] = facts_of(shape_);
  metadata.emplace("format", "pt");
  write_tensors(path, metadata, tensors);
}

}  // namespace vit
