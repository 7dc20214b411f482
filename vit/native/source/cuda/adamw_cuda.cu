// AdamW for all tensors in one launch: a team for each 256 values of one of them.
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/kernels_cuda.hpp"
#include "cuda/launch.hpp"

namespace vit {
namespace {

// 256 values of a tensor, or what is left of it.
struct Piece {
  std::int32_t tensor, block;
};

struct AdamW {
  using Team = Block<static_cast<int>(state_block)>;
  static constexpr int mine = state_block / Team::threads;  // values of a thread

  AdamWFactors factors, still;  // of what decays, and of what does not
  const AdamWTensor* tensors;
  const Piece* pieces;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t item, unsigned char*) const {
    const Piece piece = pieces[item];
    const AdamWTensor& tensor = tensors[piece.tensor];
    const std::int64_t first = piece.block * state_block;
    if (tensor.first) {
      VIT_UNROLL
      for (int k = 0; k < mine; ++k) {
        const std::int64_t i = first + k * team.size() + team.rank();
        if (i < tensor.count) update(tensor, i, tensor.first[i], tensor.second[i]);
      }
      return;
    }
    float firsts[mine], seconds[mine];
    VIT_UNROLL
    for (int k = 0; k < mine; ++k) {
      const std::int64_t i = first + k * team.size() + team.rank();
      firsts[k] = loaded(tensor.first8, i, piece.block);
      seconds[k] = loaded(tensor.second8, i, piece.block);
      update(tensor, i, firsts[k], seconds[k]);
    }
    keep(team, tensor.first8, first, piece.block, firsts);
    keep(team, tensor.second8, first, piece.block, seconds);
  }

  // New moments, and the weight that they give.
  VIT_BOTH void update(const AdamWTensor& tensor, std::int64_t i, float& first,
                       float& second) const {
    const AdamWFactors& f = tensor.decays ? factors : still;
    const float gradient = tensor.gradient[i];
    first += f.rate1 * (gradient - first);
    second = f.beta2 * second + f.rate2 * (gradient * gradient);
    const float deviation = sqrtf(second) / f.deviation + f.eps;
    tensor.weights[i] = tensor.weights[i] * f.keep - f.step_size * (first / deviation);
  }

  VIT_BOTH static float loaded(const State8& state, std::int64_t i, std::int32_t block) {
    return state.map[state.codes[i]] * state.scales[block];
  }

  // Rounds a block: the nearest of the map's values to value / scale, where the largest is 1.
  template <class T>
  VIT_BOTH static void keep(T team, const State8& state, std::int64_t first, std::int32_t block,
                            const float (&values)[mine]) {
    float most = 0.0f;
    for (float value : values) most = fmaxf(most, fabsf(value));
    // the barriers in it are after all have read the scale that one now writes
    const float scale = fmaxf(team.max(most), 1e-12f);
    if (team.rank() == 0) state.scales[block] = scale;
    VIT_UNROLL
    for (int k = 0; k < mine; ++k) {
      const float share = values[k] / scale;
      int code = 0;  // of the largest value that is not above
      for (int half = 128; half > 0; half /= 2) code += share >= state.map[code + half] ? half : 0;
      const int next = code < 255 ? code + 1 : 255;
      const bool up = share - state.map[code] >= (state.map[next] - state.map[code]) * 0.5f;
      state.codes[first + k * team.size() + team.rank()] =
          static_cast<std::uint8_t>(up ? next : code);
    }
  }
};

}  // namespace

Update adamw(Device& device, std::vector<AdamWTensor> tensors) {
  std::vector<Piece> pieces;
  for (std::size_t tensor = 0; tensor < tensors.size(); ++tensor) {
    const std::int64_t blocks = (tensors[tensor].count + state_block - 1) / state_block;
    for (std::int64_t block = 0; block < blocks; ++block) {
      pieces.push_back({static_cast<std::int32_t>(tensor), static_cast<std::int32_t>(block)});
    }
  }
  const auto count = static_cast<std::int64_t>(pieces.size());
  return [&device, count, table = std::make_shared<Buffer>(uploaded(device, tensors)),
          places =
              std::make_shared<Buffer>(uploaded(device, pieces))](const AdamWFactors& factors) {
    launch(
        device, count,
        AdamW{factors, without_decay(factors), table->data<AdamWTensor>(), places->data<Piece>()});
  };
}

}  // namespace vit
