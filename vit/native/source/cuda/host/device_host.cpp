// A CPU in place of a GPU, for tests of the kernels.
#include <cstdlib>
#include <new>

#include "cuda/kernels_cuda.hpp"
#include "host/host.hpp"
#include "model/precision.hpp"

namespace vit {

struct Device::State : Host {
  explicit State(const Options& options) : Host(options), precision(options.precision) {}

  Precision precision;
  Scratch scratch;
};

Device::Device(const Options& options) : state_(new State(options)), kernels_(&cuda_kernels) {}

Device::~Device() = default;

std::string Device::name() const { return "the kernels of cuda on a CPU, for tests"; }

std::unique_lock<std::mutex> Device::enter() { return state_->enter(); }

void Device::wait() {}

void* Device::allocate(std::size_t bytes) {
  void* pointer = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

bool has_tensor_floats(Device& device) { return device.state().precision == Precision::tf32; }

Scratch& scratch_of(Device& device) { return device.state().scratch; }

int largest_code(Device&) { return 255; }

void check_precision(Device&, Precision) {}

}  // namespace vit
