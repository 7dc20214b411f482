// What the devices over oneDNN have: an engine with its stream, and oneDNN's view of memory.
//
// device_cpu.cpp and device_sycl.cpp implement the functions.
#pragma once

#include <oneapi/dnnl/dnnl.hpp>

#include "model/device.hpp"
#include "model/kernels.hpp"

namespace vit {

struct Engine {
  dnnl::engine engine;
  dnnl::stream stream;
  Scratch scratch;  // of primitives
};

Engine& engine_of(Device& device);
dnnl::memory wrap(Device& device, const dnnl::memory::desc& desc, void* pointer);

inline dnnl::memory::data_type data_type(Type type) {
  return type == Type::f32    ? dnnl::memory::data_type::f32
         : type == Type::bf16 ? dnnl::memory::data_type::bf16
                              : dnnl::memory::data_type::u8;
}

}  // namespace vit
