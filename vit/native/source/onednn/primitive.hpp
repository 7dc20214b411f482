// oneDNN's primitives as steps, and the layouts of their matrices.
#pragma once

#include <unordered_map>
#include <utility>

#include "onednn/engine.hpp"

namespace vit {

// The step that executes a primitive with these arguments.
template <class Primitive>
Step step_of(Device& device, const typename Primitive::primitive_desc& description,
             std::unordered_map<int, dnnl::memory> arguments) {
  return [primitive = Primitive(description), arguments = std::move(arguments),
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
