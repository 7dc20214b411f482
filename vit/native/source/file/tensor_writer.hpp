// Writing a safetensors file, whole or not at all.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace vit {

struct NamedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::function<std::vector<float>()> values;  // called once, when they are written
};

// Writes float32 tensors beside `path`, which is replaced when all is on disk. std::runtime_error
// names what could not be written; `path` is as it was then.
void write_tensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                   const std::vector<NamedTensor>& tensors);

}  // namespace vit
