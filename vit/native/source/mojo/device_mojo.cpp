#include "mojo/device_mojo.hpp"

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "model/precision.hpp"
#include "mojo/functions.hpp"

namespace vit {

Device::Device(const Options& options) : state_(new State(options)), kernels_(&mojo_kernels) {}

Device::~Device() = default;

std::string Device::name() const {
  return std::string(kernels_->name) + ", " + std::to_string(state_->threads) + " threads";
}

std::unique_lock<std::mutex> Device::enter() { return state_->enter(); }

void Device::wait() {}

void* Device::allocate(std::size_t bytes) {
  // vit_mojo_byte_product reads whole groups of four bytes, up to three behind the last
  void* pointer = nullptr;
  if (posix_memalign(&pointer, 64, bytes + 3) != 0) throw std::bad_alloc();
  return pointer;
}

int largest_code(Device&) { return static_cast<int>(vit_mojo_largest_code()); }

void check_precision(Device&, Precision precision) {
  if (precision == Precision::float32 || precision == Precision::int8) return;
  const char* const needed =
      precision == Precision::tf32     ? "tf32 needs the back end cuda; use precision=float32"
      : precision == Precision::float8 ? "float8 needs the back end cuda; use precision=int8"
                                       : "bfloat16 needs another one; use precision=float32";
  throw std::runtime_error(std::string("the back end mojo computes in float32 and int8; ") +
                           needed);
}

}  // namespace vit
