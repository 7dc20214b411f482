#include "file/tensor_writer.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace vit {
namespace {

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char character : text) {
    const auto code = static_cast<unsigned char>(character);
    if (character == '"' || character == '\\') {
      json += '\\', json += character;
    } else if (code < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", code);
      json += escape;
    } else {
      json += character;
    }
  }
  return json + "\"";
}

std::string header_of(const std::map<std::string, std::string>& metadata,
                      const std::vector<NamedTensor>& tensors) {
  std::string header = "{\"__metadata__\":{", separator;
  for (const auto& [name, value] : metadata) {
    header += separator + quoted(name) + ":" + quoted(value);
    separator = ",";
  }
  header += "}";
  std::int64_t begin = 0;
  for (const NamedTensor& tensor : tensors) {
    std::int64_t end = sizeof(float);
    header += "," + quoted(tensor.name) + ":{\"dtype\":\"F32\",\"shape\":[";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      header += (i ? "," : "") + std::to_string(tensor.shape[i]);
      end *= tensor.shape[i];
    }
    end += begin;
    header += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
    begin = end;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');  // tensors begin at a multiple of 8 bytes
  return header;
}

// A new file, which is gone again unless it is kept.
class NewFile {
 public:
  NewFile(const std::string& path, const std::string& target)
      : path_(path), target_(target), file_(::open(path.c_str(), flags, 0666)) {
    if (file_ < 0) fail();
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (file_ >= 0) ::close(file_);
    if (!kept_) ::unlink(path_.c_str());
  }

  void write(const void* data, std::size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t done = ::write(file_, at, bytes);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) fail();
      at += done, bytes -= static_cast<std::size_t>(done);
    }
  }

  void keep() {
    if (::fsync(file_) || std::rename(path_.c_str(), target_.c_str())) fail();
    kept_ = true;
  }

 private:
  static constexpr int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  [[noreturn]] void fail() const {
    throw std::runtime_error(target_ + " could not be written: " + std::strerror(errno));
  }

  std::string path_, target_;
  int file_;
  bool kept_ = false;
};

}  // namespace

void write_tensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                   const std::vector<NamedTensor>& tensors) {
  const std::string header = header_of(metadata, tensors);
  unsigned char prefix[8];
  for (std::size_t i = 0; i < sizeof prefix; ++i) {
    prefix[i] = static_cast<unsigned char>(header.size() >> (8 * i));
  }
  NewFile file(path + "." + std::to_string(::getpid()) + ".tmp", path);
  file.write(prefix, sizeof prefix);
  file.write(header.data(), header.size());
  for (const NamedTensor& tensor : tensors) {
    const std::vector<float> values = tensor.values();
    file.write(values.data(), values.size() * sizeof(float));
  }
  file.keep();
}

}  // namespace vit
