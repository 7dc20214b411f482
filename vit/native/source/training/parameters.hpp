// The weights that a training changes, in float32 and as the file has them, with their gradients.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "file/shape.hpp"
#include "file/tensor_file.hpp"
#include "file/weights.hpp"
#include "model/device.hpp"

namespace vit {

struct Parameter {
  std::vector<std::int64_t> shape;
  Buffer values;
  float* gradient = nullptr;  // null for a tensor that is not trained

  std::int64_t count() const { return static_cast<std::int64_t>(values.bytes() / sizeof(float)); }
  float* data() const { return values.data<float>(); }
};

class Parameters : public Weights {
 public:
  // All tensors of the model, under timm's names.
  Parameters(Device& device, TensorFile& file, const Shape& shape);

  const std::map<std::string, Parameter>& all() const { return parameters_; }
  // std::runtime_error for an unknown name, with some that are known.
  const Parameter& at(const std::string& name) const;
  bool has(const std::string& name) const override { return parameters_.count(name) > 0; }

  // (T, D): the gradient by what each token is before the patches are added. Those by positions,
  // class token and registers are parts of it.
  float* start_gradient() const { return start_gradient_.data<float>(); }

  const std::string& path() const override { return path_; }
  std::vector<float> floats(const std::string& name,
                            const std::vector<std::int64_t>& shape) override;
  std::vector<std::int8_t> bytes(const std::string& name,
                                 const std::vector<std::int64_t>& shape) override;
  // Copies `count` floats from the device, be they values, gradients or moments.
  std::vector<float> download(const float* from, std::int64_t count) const;

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape);
  void add_layer(const std::string& name, std::vector<std::int64_t> shape, bool biased = true);
  void add_norm(const std::string& name, std::int64_t width);
  void add_block(const std::string& name, const Shape& shape);
  void place_gradients(const Shape& shape);

  Device& device_;
  TensorFile& file_;
  std::string path_;
  std::map<std::string, Parameter> parameters_;
  std::vector<Buffer> gradients_;
  Buffer start_gradient_;
};

}  // namespace vit
