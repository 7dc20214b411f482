// oneDNN's primitives as steps, and the layouts of their matrices.
#pragma once

#include <unordered_map>
#include <utility>

#include "onednn/engine.hpp"

namespace vit {

// Attributes of all primitives. Memory that oneDNN itself gives them belongs to the thread that
// made them: others, which use another model, or this one later, would share it or not have it.
inline dnnl::primitive_attr own_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

// The step that executes a primitive, described with `own_scratchpad`, with these arguments.
template <class Primitive>
Step step_of(Device& device, const typename Primitive::primitive_desc& description,
             std::unordered_map<int, dnnl::memory> arguments) {
  const dnnl::memory::desc desc = description.scratchpad_desc();
  const auto scratch = engine_of(device).scratch.of(device, desc.get_size());
  arguments.emplace(DNNL_ARG_SCRATCHPAD, wrap(device, desc, scratch->data()));
  return [scratch, primitive = Primitive(description), arguments = std::move(arguments),
          &stream = engine_of(device).stream] { primitive.execute(stream, arguments); };
}

// The layout of matrices with these strides. The stride of a single row or column says nothing, but
// oneDNN may compute nonsense unless it is that of a dense matrix.
inline dnnl::memory::desc strided(const dnnl::memory::dims& sizes, dnnl::memory::data_type type,
                                  dnnl::memory::dims strides) {
  const std::size_t rows = sizes.size() - 2, columns = sizes.size() - 1;
  if (sizes[columns] == 1) strides[columns] = 1;
  if (sizes[rows] == 1) strides[rows] = sizes[columns] * strides[columns];
  return {sizes, type, strides};
}

}  // namespace vit
