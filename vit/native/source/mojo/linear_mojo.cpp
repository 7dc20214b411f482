#include <algorithm>
#include <utility>

#include "model/linear.hpp"
#include "mojo/product.hpp"

namespace vit {

struct Linear::State {
  Device& device;
  std::int64_t in, out;
  Buffer bias;             // empty without one
  Buffer weight;           // panels of float32, or of codes
  Buffer scales, offsets;  // of codes: for each column of the panels

  Target target(Span y, Activation activation, bool add) const {
    const float* base = add ? static_cast<const float*>(y.data) : nullptr;
    const float* values = bias.bytes() ? bias.data<const float>() : nullptr;
    return {y, out, out, values, base, out, 1.0f, static_cast<std::int32_t>(activation)};
  }
  void pack(const std::vector<float>& values);
  void pack_codes(const DenseValues& values);
};

void Linear::State::pack(const std::vector<float>& values) {
  const std::int64_t across = panels(out);
  weight = Buffer(device, static_cast<std::size_t>(across * vit_mojo_panel() * in) * sizeof(float));
  parallel(across, 1, [&](std::int64_t number, std::int64_t) {
    vit_mojo_pack_panel(values.data(), 1, in, in, out, number, weight.data<float>());
  });
}

void Linear::State::pack_codes(const DenseValues& values) {
  const std::int64_t across = panels(out), columns = across * vit_mojo_panel();
  std::vector<float> factors(static_cast<std::size_t>(columns), 0.0f);
  std::transform(values.scales.begin(), values.scales.end(), factors.begin(),
                 [&](float scale) { return scale * values.input.scale; });
  scales = uploaded(device, factors);
  offsets = Buffer(device, factors.size() * sizeof(std::int32_t));
  weight = Buffer(device, static_cast<std::size_t>(columns * pieces(in, 4) * 4));
  parallel(across, 1, [&](std::int64_t number, std::int64_t) {
    vit_mojo_pack_codes(values.codes.data(), in, out, number, weight.data<std::int8_t>(),
                        offsets.data<std::int32_t>(), values.input.zero);
  });
}

Linear::Linear(Device& device, DenseValues values, Type type)
    : input_(values.input), state_(new State{device, values.in, values.out, {}, {}, {}, {}}) {
  input_.type = type;
  if (!values.bias.empty()) state_->bias = uploaded(device, values.bias);
  if (values.quantised()) {
    state_->pack_codes(values);
  } else {
    state_->pack(values.weight);
  }
}

Linear::~Linear() = default;

Step Linear::step(const void* x, Span y, std::int64_t rows, Activation activation, bool add) {
  const State& state = *state_;
  const std::int64_t in = state.in, out = state.out;
  const std::int64_t task = task_rows(rows, out, state.device.state().threads);
  const Target target = state.target(y, activation, add);
  if (input_.type == Type::u8) {
    const ByteProduct product{static_cast<const std::uint8_t*>(x),
                              in,
                              state.weight.data<const std::int8_t>(),
                              pieces(in, 4),
                              state.offsets.data<const std::int32_t>(),
                              state.scales.data<const float>(),
                              target};
    return [=] {
      parallel_tasks(rows, out, task, [&](std::int64_t first, std::int64_t some, std::int64_t at) {
        vit_mojo_byte_product(&product, first, some, at);
      });
    };
  }
  const std::int64_t panel = vit_mojo_panel();
  const Product product{static_cast<const float*>(x),
                        in,
                        0,
                        state.weight.data<const float>(),
                        panel,
                        panel * in,
                        in,
                        target};
  return [=] {
    parallel_tasks(rows, out, task, [&](std::int64_t first, std::int64_t some, std::int64_t at) {
      vit_mojo_product(&product, first, some, at);
    });
  };
}

}  // namespace vit
