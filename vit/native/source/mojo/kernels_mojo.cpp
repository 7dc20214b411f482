#include <omp.h>

#include "mojo/device_mojo.hpp"
#include "mojo/functions.hpp"

namespace vit {
namespace {

void patches(Device&, const float* images, Span rows, std::int64_t batch, std::int64_t side,
             std::int64_t patch) {
  parallel(batch * (side / patch), 1, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_patches(images, &rows, side, patch, first, last);
  });
}

void embed(Device&, const float* patches, const float* start, float* tokens, std::int64_t batch,
           std::int64_t num_patches, std::int64_t num_tokens, std::int64_t width) {
  parallel_rows(batch * num_tokens, width, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_embed(patches, start, tokens, num_patches, num_tokens, width, first, last);
  });
}

void layer_norm(Device&, const float* x, std::int64_t stride, const float* weight,
                const float* bias, float eps, Span out, std::int64_t rows, std::int64_t width) {
  parallel_rows(rows, width, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_layer_norm(x, stride, weight, bias, eps, &out, width, nullptr, nullptr, first, last);
  });
}

Step attention(Device& device, Span qkv, Span out, std::int64_t batch, std::int64_t tokens,
               std::int64_t keep, std::int64_t heads, std::int64_t width) {
  Device::State& state = device.state();
  const std::int64_t size = vit_mojo_attention_memory(tokens, width / heads);
  state.reserve(device, state.threads * size);
  return [=, &state] {
    const float* from = static_cast<const float*>(qkv.data);
    float* const memory = state.memory.data<float>();
    parallel(batch * heads, 1, [&](std::int64_t number, std::int64_t) {
      vit_mojo_attention(from, &out, tokens, keep, heads, width, number,
                         memory + omp_get_thread_num() * size);
    });
  };
}

void gather(Device&, const float* x, std::int64_t stride, float* out, std::int64_t rows,
            std::int64_t width) {
  parallel_rows(rows, width, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_gather(x, stride, out, width, first, last);
  });
}

void mean(Device&, const float* x, float* out, std::int64_t batch, std::int64_t tokens,
          std::int64_t skip, std::int64_t width) {
  parallel(batch, 1, [&](std::int64_t first, std::int64_t last) {
    vit_mojo_mean(x, out, tokens, skip, width, first, last);
  });
}

}  // namespace

const Kernels mojo_kernels{"mojo",    patches, embed, layer_norm,
                           attention, gather,  mean,  &mojo_training_kernels};

}  // namespace vit
