// Tensors of a safetensors file, read one at a time.
//
// The header is not trusted: each statement is checked against the size of the file before a byte
// of a tensor is read. https://github.com/huggingface/safetensors describes the format.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "file/weights.hpp"

namespace vit {

// Where a tensor lies in the file, and what it is.
struct Entry {
  std::string dtype;  // "F32", "F16", "BF16", "I8", ...
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // bytes from the start of the file

  std::int64_t count() const;
};

class TensorFile : public Weights {
 public:
  // std::runtime_error says what is wrong with the file.
  explicit TensorFile(const std::string& path);

  const std::string& path() const override { return path_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool has(const std::string& name) const override { return entries_.count(name) > 0; }

  // The entry of a tensor; std::runtime_error if there is none, or if it has another shape.
  const Entry& entry(const std::string& name) const;
  const Entry& entry(const std::string& name, const std::vector<std::int64_t>& shape) const;

  // std::runtime_error names a tensor whose values have not been read: it would have mattered.
  void check_used() const;

  // Values of a tensor of this shape as float32; F16 and BF16 are converted.
  std::vector<float> floats(const std::string& name,
                            const std::vector<std::int64_t>& shape) override;
  // Values of a tensor of 8-bit integers.
  std::vector<std::int8_t> bytes(const std::string& name,
                                 const std::vector<std::int64_t>& shape) override;

 private:
  [[noreturn]] void fail(const std::string& reason) const;
  void read_header(std::uint64_t file_bytes);
  void check_cover(std::uint64_t start, std::uint64_t file_bytes) const;
  void read(const Entry& entry, void* to);

  std::string path_;
  std::ifstream file_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
  std::set<std::string> used_;
};

}  // namespace vit
