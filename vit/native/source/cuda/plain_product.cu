// Products of any sizes and strides: what cuBLAS refuses on a GPU, and all on a CPU.
#include "cuda/launch.hpp"
#include "cuda/product.hpp"
#include "cuda/values.hpp"

namespace vit {
namespace {

// Neighbours in a row of c that a thread computes at once: on a CPU, in two of its registers.
template <class T>
struct Lanes {
#ifdef VIT_GPU
  static constexpr int count = 4, registers = count;
  using Register = T;
#else
  static constexpr int count = 16, registers = 2;
  typedef T Register __attribute__((vector_size(count / registers * sizeof(T))));
#endif
  Register values[registers];

  VIT_BOTH void add(T factor, const Lanes& other) {
    VIT_UNROLL
    for (int i = 0; i < registers; ++i) values[i] += factor * other.values[i];
  }
  VIT_BOTH T at(int i) const { return reinterpret_cast<const T*>(values)[i]; }
};

VIT_BOTH int to_sum(std::int8_t value, int) { return value; }
template <class T>
VIT_BOTH float to_sum(T value, float) {
  return to_float(value);
}

// A team computes a tile of c from pieces of a and b that it shares.
template <class In, class Sum, class Out>
struct PlainProduct {
  using Team = Block<256>;
  static constexpr int lanes = Lanes<Sum>::count, height = 4;  // of what a thread computes
  static constexpr int side = 64;                              // of a tile
  static constexpr int piece = Team::threads == 1 ? 64 : 16;
  static constexpr int parts = side / height * (side / lanes);
  static constexpr int parts_of_thread = parts / Team::threads;
  static constexpr std::size_t bytes = sizeof(Sum) * 2 * piece * side;

  Product of;

  std::int64_t tiles_down() const { return (of.rows + side - 1) / side; }
  std::int64_t tiles_across() const { return (of.columns + side - 1) / side; }
  std::int64_t items() const { return of.count() * tiles_down() * tiles_across(); }
  std::int64_t across = tiles_across(), down = tiles_down();

  // to (piece, side) = what lies along two strides, 0 beyond the counts.
  template <class T>
  VIT_BOTH static void fill(T team, const In* from, std::int64_t stride, std::int64_t count,
                            std::int64_t deep_stride, std::int64_t deep_count, Sum* to) {
    const bool deep_first = deep_stride == 1;  // which of two neighbours lie together
    for (int i = team.rank(); i < piece * side; i += team.size()) {
      const int k = deep_first ? i % piece : i / side, other = deep_first ? i / piece : i % side;
      const bool inside = other < count && k < deep_count;
      to[k * side + other] = inside ? to_sum(from[other * stride + k * deep_stride], Sum{}) : Sum{};
    }
  }

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t item, unsigned char* memory) const {
    const std::int64_t column = item % across * side, row = item / across % down * side;
    const std::int64_t matrix = item / across / down;
    const std::int64_t image = matrix / of.heads, head = matrix % of.heads;
    const auto place = [&](const Table& table) {
      return image * table.image_stride + head * table.head_stride;
    };
    const In* const a = static_cast<const In*>(of.a.data) + place(of.a) + row * of.a.row_stride;
    const In* const b =
        static_cast<const In*>(of.b.data) + place(of.b) + column * of.b.column_stride;
    Sum *const a_piece = reinterpret_cast<Sum*>(memory), *const b_piece = a_piece + piece * side;
    Lanes<Sum> sums[parts_of_thread][height] = {};
    for (std::int64_t first = 0; first < of.depth; first += piece) {
      team.sync();
      fill(team, a + first * of.a.column_stride, of.a.row_stride, of.rows - row, of.a.column_stride,
           of.depth - first, a_piece);
      fill(team, b + first * of.b.row_stride, of.b.column_stride, of.columns - column,
           of.b.row_stride, of.depth - first, b_piece);
      team.sync();
      VIT_UNROLL
      for (int part = 0; part < parts_of_thread; ++part) {
        const int at = part * Team::threads + team.rank();
        const int r = at / (side / lanes) * height, c = at % (side / lanes) * lanes;
        if (row + r >= of.rows || column + c >= of.columns) continue;
        add_piece(a_piece + r, b_piece + c, sums[part]);
      }
    }
    VIT_UNROLL
    for (int part = 0; part < parts_of_thread; ++part) {
      const int at = part * Team::threads + team.rank();
      const std::int64_t r = row + at / (side / lanes) * height;
      const std::int64_t c = column + at % (side / lanes) * lanes;
      finish(sums[part], r, c, place(of.c));
    }
  }

  // The sum of a piece by itself, then all: the fewer are added in a row, the less is rounded off.
  VIT_BOTH static void add_piece(const Sum* a, const Sum* b, Lanes<Sum> (&sums)[height]) {
    Lanes<Sum> local[height] = {};
    for (int k = 0; k < piece; ++k) {
      const Lanes<Sum>& row = *reinterpret_cast<const Lanes<Sum>*>(b + k * side);
      VIT_UNROLL
      for (int i = 0; i < height; ++i) local[i].add(a[k * side + i], row);
    }
    VIT_UNROLL
    for (int i = 0; i < height; ++i) sums[i].add(Sum{1}, local[i]);
  }

  VIT_BOTH void finish(const Lanes<Sum> (&sums)[height], std::int64_t row, std::int64_t column,
                       std::int64_t place) const {
    VIT_UNROLL
    for (int i = 0; i < height && row + i < of.rows; ++i) {
      VIT_UNROLL
      for (int j = 0; j < lanes && column + j < of.columns; ++j) {
        const std::int64_t at = place + (row + i) * of.c.row_stride + column + j;
        put(sums[i].at(j), column + j, at);
      }
    }
  }
  VIT_BOTH void put(int value, std::int64_t, std::int64_t at) const {
    static_cast<std::int32_t*>(of.c.data)[at] = value;
  }
  VIT_BOTH void put(float value, std::int64_t column, std::int64_t at) const {
    value *= of.factor;
    if (of.bias) value += to_float(static_cast<const Out*>(of.bias)[column]);
    if (of.base) value += to_float(static_cast<const Out*>(of.base)[at]);
    if (of.gelu_tanh) value = activated(Activation::gelu_tanh, value);
    assign(static_cast<Out*>(of.c.data)[at], value);
  }
};

template <class In, class Sum, class Out>
Step step_of_types(Device& device, const Product& product) {
  return [&device, kernel = PlainProduct<In, Sum, Out>{product}] {
    launch(device, kernel.items(), kernel, kernel.bytes);
  };
}

}  // namespace

Step plain_product(Device& device, const Product& product) {
  if (product.a.type == Number::s8)
    return step_of_types<std::int8_t, int, std::int32_t>(device, product);
  if (product.a.type == Number::f8) return step_of_types<Float8, float, float>(device, product);
  if (product.a.type == Number::f32) return step_of_types<float, float, float>(device, product);
  if (product.c.type == Number::f32) return step_of_types<Bfloat16, float, float>(device, product);
  return step_of_types<Bfloat16, float, Bfloat16>(device, product);
}

Step product_step(Device& device, const Product& product) {
  if (auto step = library_product(device, product)) return *step;
  return plain_product(device, product);
}

}  // namespace vit
