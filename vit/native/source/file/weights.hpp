// Values of named tensors, wherever they are: in a file, or on a device that trains them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vit {

class Weights {
 public:
  virtual ~Weights() = default;

  // The file that they came from, for errors.
  virtual const std::string& path() const = 0;
  virtual bool has(const std::string& name) const = 0;
  // Values of a tensor of this shape as float32; std::runtime_error if there is none.
  virtual std::vector<float> floats(const std::string& name,
                                    const std::vector<std::int64_t>& shape) = 0;
  // Values of a tensor of 8-bit integers.
  virtual std::vector<std::int8_t> bytes(const std::string& name,
                                         const std::vector<std::int64_t>& shape) = 0;
};

}  // namespace vit
