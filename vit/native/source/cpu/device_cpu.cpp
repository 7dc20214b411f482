#include <omp.h>

#include <algorithm>
#include <new>
#include <stdexcept>

#include "cpu/kernels_cpu.hpp"
#include "host/host.hpp"
#include "onednn/engine.hpp"

namespace vit {

struct Device::State : Host {
  using Host::Host;
  Engine engine;
};

Device::Device(const Options& options) : state_(new State(options)) {
  if (dnnl::version()->cpu_runtime == DNNL_RUNTIME_SYCL) {
    // it has the same name, so the one that a process loads first serves both; it would not wait
    throw std::runtime_error(
        "this process has loaded oneDNN for SYCL; use the back ends cpu and sycl in processes of"
        " their own");
  }
  omp_set_num_threads(state_->threads);
  state_->engine.engine = dnnl::engine(dnnl::engine::kind::cpu, 0);
  state_->engine.stream = dnnl::stream(state_->engine.engine);
  kernels_ = &best_kernels();
}

Device::~Device() = default;

std::string Device::name() const {
  return std::string(kernels_->name) + ", " + std::to_string(state_->threads) + " threads";
}

std::unique_lock<std::mutex> Device::enter() { return state_->enter(); }

void Device::wait() { state_->engine.stream.wait(); }

void* Device::allocate(std::size_t bytes) {
  void* pointer = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

Engine& engine_of(Device& device) { return device.state().engine; }

dnnl::memory wrap(Device& device, const dnnl::memory::desc& desc, void* pointer) {
  return dnnl::memory(desc, engine_of(device).engine, pointer);
}

}  // namespace vit
