// What a device that is the host itself has: threads, and one call at a time.
#pragma once

#include <mutex>

#include "model/device.hpp"

namespace vit {

struct Host {
  // std::runtime_error if the options name another device than the CPU.
  explicit Host(const Options& options);

  // As Device::enter.
  std::unique_lock<std::mutex> enter();

  int threads;
  std::mutex mutex;
};

}  // namespace vit
