#include <omp.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "cpu/kernels_cpu.hpp"
#include "model/device.hpp"

namespace vit {

struct Device::State {
  int threads;
};

Device::Device(const std::string& choice, int threads) : state_(new State) {
  if (dnnl::version()->cpu_runtime == DNNL_RUNTIME_SYCL) {
    // it has the same name, so the one that a process loads first serves both; it would not wait
    throw std::runtime_error(
        "this process has loaded oneDNN for SYCL; use the back ends cpu and sycl in processes of"
        " their own");
  }
  if (!choice.empty() && choice != "cpu") {
    throw std::runtime_error("device is " + choice + ", but this back end has only cpu");
  }
  state_->threads = threads > 0 ? threads : omp_get_num_procs();
  enter();
  engine_ = dnnl::engine(dnnl::engine::kind::cpu, 0);
  stream_ = dnnl::stream(engine_);
  kernels_ = &best_kernels();
}

Device::~Device() = default;

std::string Device::name() const {
  return std::string(kernels_->name) + ", " + std::to_string(state_->threads) + " threads";
}

void Device::enter() const { omp_set_num_threads(state_->threads); }

void Device::wait() { stream_.wait(); }

void* Device::allocate(std::size_t bytes) {
  void* pointer = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

void Device::release(void* pointer) noexcept { std::free(pointer); }

void Device::upload(void* device, const void* host, std::size_t bytes) {
  if (bytes) std::memcpy(device, host, bytes);
}

void Device::download(void* host, const void* device, std::size_t bytes) {
  if (bytes) std::memcpy(host, device, bytes);
}

void Device::clear(void* device, std::size_t bytes) { std::memset(device, 0, bytes); }

dnnl::memory Device::wrap(const dnnl::memory::desc& desc, void* pointer) const {
  return dnnl::memory(desc, engine_, pointer);
}

}  // namespace vit
