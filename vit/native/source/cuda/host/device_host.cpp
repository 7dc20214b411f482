// A CPU in place of a GPU, for tests of the kernels.
#include <omp.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>

#include "cuda/kernels_cuda.hpp"
#include "model/precision.hpp"

namespace vit {

struct Device::State {
  explicit State(const Options& options)
      : threads(options.threads > 0 ? options.threads : omp_get_num_procs()),
        precision(options.precision) {}

  int threads;
  Precision precision;
  std::mutex mutex;
  std::weak_ptr<Buffer> scratch;
};

Device::Device(const Options& options) : state_(new State(options)), kernels_(&cuda_kernels) {
  if (!options.device.empty() && options.device != "cpu") {
    throw std::runtime_error("device is " + options.device + ", but this back end has only cpu");
  }
}

Device::~Device() = default;

std::string Device::name() const { return "the kernels of cuda on a CPU, for tests"; }

std::unique_lock<std::mutex> Device::enter() {
  omp_set_num_threads(state_->threads);
  return std::unique_lock<std::mutex>(state_->mutex);
}

void Device::wait() {}

void* Device::allocate(std::size_t bytes) {
  void* pointer = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

bool has_tensor_floats(Device& device) { return device.state().precision == Precision::tf32; }

std::weak_ptr<Buffer>& shared_scratch(Device& device) { return device.state().scratch; }

int largest_code(Device&) { return 255; }

void check_precision(Device&, Precision) {}

}  // namespace vit
