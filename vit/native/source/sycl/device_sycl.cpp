#include "sycl/device_sycl.hpp"

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <oneapi/dnnl/dnnl_sycl.hpp>
#include <stdexcept>
#include <utility>
#include <vector>

#include "sycl/kernels_sycl.hpp"

namespace vit {
namespace {

namespace extension = sycl::ext::oneapi::experimental;
namespace interop = dnnl::sycl_interop;

std::string known_devices() {
  std::string names;
  for (const sycl::device& device : sycl::device::get_devices()) {
    names += (names.empty() ? "" : ", ") + device.get_info<sycl::info::device::name>();
  }
  return names.empty() ? "none; is the OpenCL or Level Zero runtime of the device installed?"
                       : names;
}

// oneDNN computes on CPUs and on GPUs of Intel's, whose number of a vendor is 0x8086.
bool usable(sycl::device& device) {
  return device.ext_oneapi_can_build(extension::source_language::sycl) &&
         (device.is_cpu() || device.get_info<sycl::info::device::vendor_id>() == 0x8086);
}

sycl::device chosen(const std::string& choice) {
#ifdef VIT_OPENCL_CPU
  // the runtime of CPUs; as a pip package it is not registered with the loader of OpenCL
  setenv("OCL_ICD_FILENAMES", VIT_OPENCL_CPU, 0);
#endif
  if (choice != "" && choice != "cpu" && choice != "gpu") {
    throw std::runtime_error("device is " + choice + "; known to this back end: cpu, gpu");
  }
  std::vector<sycl::info::device_type> types;
  if (choice != "cpu") types.push_back(sycl::info::device_type::gpu);
  if (choice != "gpu") types.push_back(sycl::info::device_type::cpu);
  for (const auto type : types) {
    for (sycl::device& device : sycl::device::get_devices(type)) {
      if (usable(device)) return device;
    }
  }
  throw std::runtime_error("SYCL finds no " + (choice.empty() ? "device" : choice) +
                           " that oneDNN and its compiler know; devices: " + known_devices());
}

}  // namespace

Device::State::State(const std::string& choice)
    : failure(std::make_shared<std::exception_ptr>()),
      queue(
          chosen(choice),
          [failure = failure](const sycl::exception_list& errors) {
            if (!*failure && errors.size()) *failure = *errors.begin();
          },
          sycl::property::queue::in_order()) {}

sycl::kernel Device::State::kernel(const Program& program, const char* name) {
  using Bundle = sycl::kernel_bundle<sycl::bundle_state::executable>;
  using Bundles = std::map<std::pair<const Program*, std::size_t>, Bundle>;
  static std::mutex mutex;
  // never destroyed: when a process ends, libsycl may be gone before this
  static Bundles& bundles = *std::make_unique<Bundles>().release();
  const std::lock_guard<std::mutex> lock(mutex);
  // queues of a device share its context, so that what is compiled for one runs on all
  const auto key = std::make_pair(&program, std::hash<sycl::device>()(queue.get_device()));
  auto found = bundles.find(key);
  if (found == bundles.end()) {
    try {
      auto bundle = extension::create_kernel_bundle_from_source(
          queue.get_context(), extension::source_language::sycl, std::string(program.source));
      found = bundles.emplace(key, extension::build(bundle)).first;
    } catch (const sycl::exception& error) {
      throw std::runtime_error(std::string("the kernels for ") + program.name +
                               " do not compile for this device: " + error.what());
    }
  }
  return found->second.ext_oneapi_get_kernel(name);
}

// Neither SYCL nor oneDNN's build for it can be told a number of threads.
Device::Device(const Options& options) : state_(std::make_unique<State>(options.device)) {
  Engine& engine = state_->engine;
  engine.engine = interop::make_engine(state_->queue.get_device(), state_->queue.get_context());
  engine.stream = interop::make_stream(engine.engine, state_->queue);
  kernels_ = &sycl_kernels;
}

Device::~Device() = default;

std::string Device::name() const {
  return state_->queue.get_device().get_info<sycl::info::device::name>();
}

// Calls of all models exclude each other: the runtime of CPUs computes wrongly now and then, or
// crashes, while two queues of a process are in use.
std::unique_lock<std::mutex> Device::enter() {
  static std::mutex mutex;
  return std::unique_lock<std::mutex>(mutex);
}

void Device::wait() {
  state_->queue.wait_and_throw();
  if (const std::exception_ptr failure = std::exchange(*state_->failure, nullptr)) {
    std::rethrow_exception(failure);
  }
}

void* Device::allocate(std::size_t bytes) {
  void* const pointer = sycl::aligned_alloc_device(64, bytes, state_->queue);
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

void Device::release(void* pointer) noexcept {
  try {
    state_->queue.wait();  // after an error, something may still use it
    sycl::free(pointer, state_->queue);
  } catch (const sycl::exception&) {  // a device that is gone has no memory to give back
  }
}

void Device::upload(void* device, const void* host, std::size_t bytes) {
  state_->queue.memcpy(device, host, bytes).wait();
}

void Device::download(void* host, const void* device, std::size_t bytes) {
  state_->queue.memcpy(host, device, bytes).wait();
}

void Device::clear(void* device, std::size_t bytes) { state_->queue.memset(device, 0, bytes); }

Step Device::sequence(std::vector<Step> steps) { return in_order(std::move(steps)); }

Engine& engine_of(Device& device) { return device.state().engine; }

dnnl::memory wrap(Device& device, const dnnl::memory::desc& desc, void* pointer) {
  return interop::make_memory(desc, engine_of(device).engine, interop::memory_kind::usm, pointer);
}

}  // namespace vit
