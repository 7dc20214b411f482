#include "options.hpp"

#include <charconv>
#include <filesystem>
#include <sstream>
#include <stdexcept>

namespace vit {
namespace {

Precision precision_of(const std::string& value) {
  if (value == "float32") return Precision::float32;
  if (value == "tf32") return Precision::tf32;
  if (value == "bfloat16") return Precision::bfloat16;
  if (value == "int8") return Precision::int8;
  if (value == "float8") return Precision::float8;
  throw std::runtime_error("precision is " + value +
                           "; known: float32, tf32, bfloat16, int8, float8");
}

int threads_of(const std::string& value) {
  int threads = -1;
  const char* const last = value.data() + value.size();
  const auto [end, error] = std::from_chars(value.data(), last, threads);
  if (error != std::errc() || end != last || threads < 0 || threads > 256) {
    throw std::runtime_error("threads is " + value + "; give a number from 0 to 256");
  }
  return threads;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> settings_of(const std::string& text) {
  std::vector<std::pair<std::string, std::string>> settings;
  std::istringstream parts(text);
  for (std::string setting; std::getline(parts, setting, ',');) {
    const std::size_t equals = setting.find('=');
    settings.emplace_back(setting.substr(0, equals),
                          equals == std::string::npos ? "" : setting.substr(equals + 1));
  }
  return settings;
}

Options parse_options(const std::string& text) {
  Options options;
  for (const auto& [name, value] : settings_of(text)) {
    if (name == "precision") {
      options.precision = precision_of(value);
    } else if (name == "threads") {
      options.threads = threads_of(value);
    } else if (name == "device") {
      options.device = value;
    } else {
      throw std::runtime_error("unknown option " + name + "; known: precision, threads, device");
    }
  }
  return options;
}

std::string weights_path(const std::string& checkpoint) {
  namespace fs = std::filesystem;
  return fs::is_directory(checkpoint) ? (fs::path(checkpoint) / "model.safetensors").string()
                                      : checkpoint;
}

std::string config_path(const std::string& checkpoint) {
  return (std::filesystem::path(weights_path(checkpoint)).parent_path() / "config.json").string();
}

}  // namespace vit
