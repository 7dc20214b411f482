#include "host/host.hpp"

#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace vit {

Host::Host(const Options& options)
    : threads(options.threads > 0 ? options.threads : omp_get_num_procs()) {
  if (!options.device.empty() && options.device != "cpu") {
    throw std::runtime_error("device is " + options.device + ", but this back end has only cpu");
  }
}

std::unique_lock<std::mutex> Host::enter() {
  omp_set_num_threads(threads);
  return std::unique_lock<std::mutex>(mutex);
}

// Memory and steps of every such device.

void Device::release(void* pointer) noexcept { std::free(pointer); }

void Device::upload(void* device, const void* host, std::size_t bytes) {
  if (bytes) std::memcpy(device, host, bytes);
}

void Device::download(void* host, const void* device, std::size_t bytes) {
  if (bytes) std::memcpy(host, device, bytes);
}

void Device::clear(void* device, std::size_t bytes) { std::memset(device, 0, bytes); }

Step Device::sequence(std::vector<Step> steps) { return in_order(std::move(steps)); }

}  // namespace vit
