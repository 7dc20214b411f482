#include "training/optimizer.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "model/kernels.hpp"
#include "options.hpp"

namespace vit {
namespace {

// Smaller tensors keep moments in float32, as in bitsandbytes and torchao.
constexpr std::int64_t min_values_of_8_bits = 4096;

double number_of(const std::string& name, const std::string& value, double below) {
  double number = -1;
  const char* const last = value.data() + value.size();
  const auto [end, error] = std::from_chars(value.data(), last, number);
  if (error != std::errc() || end != last || !(number >= 0 && number < below)) {
    throw std::runtime_error(name + " is " + value + "; give a number of at least 0 and below " +
                             std::to_string(static_cast<int>(below)));
  }
  return number;
}

// Kernels decay; biases, norms, factors, tokens and positions do not (vit/optim.py).
bool decays(const std::string& name, const Parameter& parameter) {
  return parameter.shape.size() > 1 && name != "pos_embed" && name != "cls_token" &&
         name != "reg_token";
}

// The values of dynamic 8-bit codes (arXiv 1511.04561): decades, each cut into twice as many parts
// as the one below it. In float32, step by step as torchao.optim computes them.
std::vector<float> dynamic_map(bool with_sign) {
  std::vector<float> map{0.0f, 1.0f};
  for (int exponent = 0; exponent < 7; ++exponent) {
    const int parts = with_sign ? 1 << exponent : 2 << exponent;
    const double start = 0.1f, width = (1.0f - 0.1f) / static_cast<float>(parts);
    const auto bound = [&](int i) {  // as torch.linspace: from the nearer end, rounded once
      return static_cast<float>(i < (parts + 1) / 2 ? start + width * i : 1 - width * (parts - i));
    };
    const auto factor = static_cast<float>(std::pow(10.0, exponent - 6));
    for (int i = 0; i < parts; ++i) {
      const float value = factor * ((bound(i) + bound(i + 1)) / 2.0f);
      map.push_back(value);
      if (with_sign) map.push_back(-value);
    }
  }
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

OptimizerSettings OptimizerSettings::parse(const std::string& text) {
  OptimizerSettings settings;
  for (const auto& [name, value] : settings_of(text)) {
    if (name == "optimizer") {
      if (value != "adamw" && value != "adamw8bit") {
        throw std::runtime_error("optimizer is " + value + "; known: adamw, adamw8bit");
      }
      settings.eight_bits = value == "adamw8bit";
    } else if (name == "beta1") {
      settings.beta1 = number_of(name, value, 1);
    } else if (name == "beta2") {
      settings.beta2 = number_of(name, value, 1);
    } else if (name == "eps") {
      settings.eps = number_of(name, value, 1);
    } else if (name == "weight_decay") {
      settings.weight_decay = number_of(name, value, 1e6);
    } else {
      throw std::runtime_error("unknown option " + name +
                               "; known: optimizer, beta1, beta2, eps, weight_decay");
    }
  }
  return settings;
}

Optimizer::Optimizer(Device& device, const Parameters& parameters,
                     const OptimizerSettings& settings)
    : device_(device), parameters_(parameters), settings_(settings) {
  if (settings.eight_bits) {
    for (Buffer* map : {&signed_map_, &unsigned_map_}) {
      *map = uploaded(device, dynamic_map(map == &signed_map_));
    }
  }
  std::vector<AdamWTensor> tensors;
  for (const auto& [name, parameter] : parameters.all()) {
    if (!parameter.gradient) continue;
    const std::int64_t count = parameter.count();
    const auto& [first, second] =
        moments_[name] = {zeros(count, signed_map_), zeros(count, unsigned_map_)};
    tensors.push_back({parameter.gradient, parameter.data(), count, decays(name, parameter),
                       first.floats(), second.floats(), first.state(), second.state()});
  }
  update_ = device.kernels().training->adamw(device, std::move(tensors));
}

Optimizer::Moment Optimizer::zeros(std::int64_t count, const Buffer& map) const {
  Moment moment;
  const auto size = static_cast<std::size_t>(count);
  if (map.bytes() > 0 && count >= min_values_of_8_bits && count % state_block == 0) {
    moment.map = map.data<float>();
    moment.scales = Buffer(device_, size / state_block * sizeof(float));
    device_.clear(moment.scales.data(), moment.scales.bytes());  // so each code is a 0
    moment.values = Buffer(device_, size);
  } else {
    moment.values = Buffer(device_, size * sizeof(float));
  }
  device_.clear(moment.values.data(), moment.values.bytes());
  return moment;
}

void Optimizer::step(double lr) {
  ++steps_;
  const double step = static_cast<double>(steps_);
  AdamWFactors factors{};
  factors.rate1 = static_cast<float>(1 - settings_.beta1);
  factors.rate2 = static_cast<float>(1 - settings_.beta2);
  factors.beta2 = static_cast<float>(settings_.beta2);
  factors.eps = static_cast<float>(settings_.eps);
  factors.step_size = static_cast<float>(lr / (1 - std::pow(settings_.beta1, step)));
  factors.deviation = static_cast<float>(std::sqrt(1 - std::pow(settings_.beta2, step)));
  factors.keep = static_cast<float>(1 - lr * settings_.weight_decay);
  update_(factors);
  device_.wait();
}

std::int64_t Optimizer::state_bytes() const {
  std::size_t bytes = signed_map_.bytes() + unsigned_map_.bytes();
  for (const auto& [name, moments] : moments_) {
    for (const Moment* moment : {&moments.first, &moments.second}) {
      bytes += moment->values.bytes() + moment->scales.bytes();
    }
  }
  return static_cast<std::int64_t>(bytes);
}

std::vector<float> Optimizer::moment(const std::string& name, bool second) const {
  const std::int64_t count = parameters_.at(name).count();
  const auto found = moments_.find(name);
  if (found == moments_.end()) throw std::runtime_error(name + " is not trained");
  const Moment& moment = second ? found->second.second : found->second.first;
  if (!moment.map) return parameters_.download(moment.values.data<float>(), count);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(count));
  device_.download(codes.data(), moment.values.data(), codes.size());
  const std::vector<float> scales =
      parameters_.download(moment.scales.data<float>(), count / state_block);
  const std::vector<float> map = parameters_.download(moment.map, 256);
  std::vector<float> values(codes.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = map[codes[i]] * scales[i / state_block];
  }
  return values;
}

}  // namespace vit
