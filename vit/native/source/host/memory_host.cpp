// Memory and steps of devices that are the host itself.
#include <cstdlib>
#include <cstring>
#include <utility>

#include "model/device.hpp"

namespace vit {

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
