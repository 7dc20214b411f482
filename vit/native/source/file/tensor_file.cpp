#include "file/tensor_file.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <stdexcept>

#include "file/json.hpp"
#include "file/number.hpp"

namespace vit {
namespace {

// A tenth of the format's limit, and ten times what a ViT needs: a list of that many zeros takes
// a hundred times its bytes once it is read.
constexpr std::uint64_t max_header = 10'000'000;
constexpr std::size_t max_reason = 400;  // of an error: names and shapes come from the file

// Bytes of an element, by dtype.
const std::map<std::string, std::uint64_t> element_bytes = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
    {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + ")";
}

std::uint64_t memory_bytes() {
  return static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

std::int64_t Entry::count() const {
  std::int64_t count = 1;
  for (std::int64_t side : shape) count *= side;
  return count;
}

TensorFile::TensorFile(const std::string& path) : path_(path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) fail("is not there, or is no file");
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  file_.open(path, std::ios::binary);
  if (error || !file_) fail(std::string("cannot be opened: ") + std::strerror(errno));
  // memory that is asked for is often granted, and the process killed when it is used
  if (size > memory_bytes()) {
    fail("has " + std::to_string(size) + " bytes, more than the memory of this machine (" +
         std::to_string(memory_bytes()) + ")");
  }
  try {
    read_header(size);
  } catch (const std::bad_alloc&) {
    fail("has a header that memory cannot hold");
  }
}

void TensorFile::fail(const std::string& reason) const {
  const bool whole = reason.size() <= max_reason;
  throw std::runtime_error(path_ + " " + (whole ? reason : reason.substr(0, max_reason) + " ..."));
}

void TensorFile::read_header(std::uint64_t file_bytes) {
  unsigned char prefix[8];
  if (!file_.read(reinterpret_cast<char*>(prefix), sizeof prefix)) {
    fail("has " + std::to_string(file_bytes) + " bytes, which is no safetensors file");
  }
  std::uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8U | prefix[i];
  if (header_bytes > max_header || header_bytes > file_bytes - sizeof prefix) {
    fail("states a header of " + std::to_string(header_bytes) + " bytes, but has " +
         std::to_string(file_bytes) + ": it is truncated, or no safetensors file");
  }
  std::string header(header_bytes, '\0');
  if (!file_.read(header.data(), static_cast<std::streamsize>(header_bytes))) {
    fail("cannot be read to the end of its header");
  }
  const std::uint64_t start = sizeof prefix + header_bytes;
  try {
    const json::Value parsed = json::parse(header);
    for (const json::Value& member : parsed.items()) {
      if (member.name() == "__metadata__") {
        if (!member.is_object()) fail("has metadata that is no table");
        for (const json::Value& fact : member.items()) metadata_[fact.name()] = fact.as_string();
        continue;
      }
      Entry& entry = entries_[member.name()];
      entry.dtype = member.at("dtype").as_string();
      for (const json::Value& side : member.at("shape").items()) {
        entry.shape.push_back(side.as_int());
      }
      const json::Values& offsets = member.at("data_offsets").items();
      if (offsets.size() != 2) fail("has other than two offsets for " + member.name());
      const std::int64_t first = offsets[0].as_int(), last = offsets[1].as_int();
      if (first < 0 || last < first || static_cast<std::uint64_t>(last) > file_bytes - start) {
        fail("states bytes " + std::to_string(first) + " to " + std::to_string(last) + " for " +
             member.name() + ", but has " + std::to_string(file_bytes - start) +
             " bytes of tensors: it is truncated or damaged");
      }
      entry.begin = start + static_cast<std::uint64_t>(first);
      entry.end = start + static_cast<std::uint64_t>(last);
    }
  } catch (const std::runtime_error& error) {
    const std::string reason = error.what();
    if (reason.compare(0, path_.size(), path_) == 0) throw;
    fail("has a damaged header: " + reason);
  }
  check_cover(start, file_bytes);
}

void TensorFile::check_cover(std::uint64_t start, std::uint64_t file_bytes) const {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
  for (const auto& [name, entry] : entries_) {
    const auto size = element_bytes.find(entry.dtype);
    if (size == element_bytes.end()) fail("has " + name + " in an unknown type " + entry.dtype);
    std::uint64_t bytes = size->second;
    for (std::int64_t side : entry.shape) {
      if (side < 0 || (side > 0 && bytes > file_bytes / static_cast<std::uint64_t>(side))) {
        fail("states an impossible shape " + text_of(entry.shape) + " for " + name);
      }
      bytes *= static_cast<std::uint64_t>(side);
    }
    if (bytes != entry.end - entry.begin) {
      fail("states " + std::to_string(entry.end - entry.begin) + " bytes for " + name +
           ", whose shape needs " + std::to_string(bytes));
    }
    places.emplace_back(entry.begin, entry.end);
  }
  std::sort(places.begin(), places.end());
  std::uint64_t end = start;
  for (const auto& [first, last] : places) {
    if (first != end) fail("has tensors that overlap, or bytes that belong to none");
    end = last;
  }
  if (end != file_bytes) fail("has bytes after its last tensor");
}

const Entry& TensorFile::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail("has no tensor " + name);
  return found->second;
}

void TensorFile::check_used() const {
  for (const auto& [name, entry] : entries_) {
    if (used_.count(name) == 0) {
      fail("has " + name.substr(0, 100) + ", which a model of its other tensors does not use:" +
           " blocks are missing, or it is of a kind that this code does not compute");
    }
  }
}

const Entry& TensorFile::entry(const std::string& name,
                               const std::vector<std::int64_t>& shape) const {
  const Entry& found = entry(name);
  if (found.shape != shape) {
    fail("has " + name + " of shape " + text_of(found.shape) + ", where the model needs " +
         text_of(shape));
  }
  return found;
}

void TensorFile::read(const Entry& entry, void* to) {
  file_.clear();
  file_.seekg(static_cast<std::streamoff>(entry.begin));
  file_.read(static_cast<char*>(to), static_cast<std::streamsize>(entry.end - entry.begin));
  if (!file_) fail("could not be read to its end; did it change?");
}

std::vector<float> TensorFile::floats(const std::string& name,
                                      const std::vector<std::int64_t>& shape) {
  const Entry& found = entry(name, shape);
  used_.insert(name);
  std::vector<float> values(static_cast<std::size_t>(found.count()));
  if (found.dtype == "F32") {
    read(found, values.data());
    return values;
  }
  const bool half = found.dtype == "F16";
  if (!half && found.dtype != "BF16") {
    fail("has " + name + " as " + found.dtype + "; F32, F16 and BF16 can be read");
  }
  std::vector<std::uint16_t> stored(values.size());
  read(found, stored.data());
  std::transform(stored.begin(), stored.end(), values.begin(), half ? from_half : from_bfloat16);
  return values;
}

std::vector<std::int8_t> TensorFile::bytes(const std::string& name,
                                           const std::vector<std::int64_t>& shape) {
  const Entry& found = entry(name, shape);
  used_.insert(name);
  if (found.dtype != "I8") fail("has " + name + " as " + found.dtype + ", not as I8");
  std::vector<std::int8_t> values(static_cast<std::size_t>(found.count()));
  read(found, values.data());
  return values;
}

}  // namespace vit
