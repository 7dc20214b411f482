// What a SYCL device has beside oneDNN: a queue, and kernels that are compiled when first launched.
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <sycl/sycl.hpp>

#include "model/device.hpp"
#include "onednn/engine.hpp"

namespace vit {

// Items of a work-group; every GPU and CPU that SYCL runs on can have as many.
constexpr std::int64_t group_items = 256;

// Device code, in SYCL: functions marked as kernels, with C linkage.
struct Program {
  const char* name;  // for errors
  const char* source;
};

struct Device::State {
  // The device is "cpu", "gpu", or "" for a GPU if there is one; std::runtime_error if not there.
  explicit State(const std::string& choice);

  // The first error that was reported after something was submitted.
  std::shared_ptr<std::exception_ptr> failure;
  sycl::queue queue;  // in order: a kernel sees what those before it wrote
  Engine engine;
  Scratch scores;  // of attention

  // A kernel of a program, which a process compiles once for each device; std::runtime_error has
  // the compiler's words.
  sycl::kernel kernel(const Program& program, const char* name);
};

// An argument of a kernel: this many floats of memory that the items of a group share.
struct LocalFloats {
  std::int64_t count;
};

template <class T>
T argument(sycl::handler&, T value) {
  return value;
}
inline sycl::local_accessor<float, 1> argument(sycl::handler& handler, LocalFloats floats) {
  return {sycl::range<1>(static_cast<std::size_t>(floats.count)), handler};
}

// Submits a kernel over this many work-groups; arguments are pointers of the device, numbers,
// structs of both, and LocalFloats.
template <class... Arguments>
void launch(Device& device, const Program& program, const char* name, std::int64_t groups,
            Arguments... arguments) {
  const sycl::kernel kernel = device.state().kernel(program, name);
  const std::size_t items = group_items;
  device.state().queue.submit([&](sycl::handler& handler) {
    handler.set_args(argument(handler, arguments)...);
    handler.parallel_for(sycl::nd_range<1>(static_cast<std::size_t>(groups) * items, items),
                         kernel);
  });
}

// Submits a kernel with an item for each of `count` elements; its last argument is the count.
template <class... Arguments>
void launch_each(Device& device, const Program& program, const char* name, std::int64_t count,
                 Arguments... arguments) {
  launch(device, program, name, (count + group_items - 1) / group_items, arguments..., count);
}

}  // namespace vit
