// Small tables of sums of products, for attention: of a tile of 64 queries with a tile of keys.
//
// On a GPU a warp has 16 of the queries, and each lane two rows of their sums, in which it has two
// of eight neighbouring columns: the layout of the tensor cores' m16n8k16 (PTX ISA, "Matrix
// Fragments for mma.m16n8k16"). On a CPU one thread has it all. What is computed of the sums in
// between is the same source: it goes over the rows and columns that a thread has.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/values.hpp"

namespace vit {

constexpr int tile_queries = 64;
using Tile = Block<2 * tile_queries>;  // four warps

// What separates the rows of a tile in memory that is shared, so that rows lie in other banks.
template <class Value>
constexpr int row_padding = 16 / sizeof(Value);

#ifdef VIT_GPU

// Two bfloat16 that lie together, as the tensor cores take them.
VIT_BOTH unsigned pair_at(const Bfloat16* at) { return *reinterpret_cast<const unsigned*>(at); }

template <int columns_>
struct Sums {
  static constexpr int rows = 2, columns = columns_ / 4;
  float values[rows][columns];

  VIT_BOTH static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  VIT_BOTH static int first_row() { return static_cast<int>(threadIdx.x) / 32 * 16 + lane() / 4; }
  VIT_BOTH static int row(int i) { return first_row() + 8 * i; }
  VIT_BOTH static int column(int j) { return j / 2 * 8 + lane() % 4 * 2 + j % 2; }
  // Over the lanes that share a row.
  VIT_BOTH static float row_max(float value) { return max_of_lanes<4>(value); }
  VIT_BOTH static float row_sum(float value) { return sum_of_lanes<4>(value); }
};

#else

template <int columns_>
struct Sums {
  static constexpr int rows = tile_queries, columns = columns_;
  float values[rows][columns];

  static constexpr int row(int i) { return i; }
  static constexpr int column(int j) { return j; }
  static float row_max(float value) { return value; }
  static float row_sum(float value) { return value; }
};

#endif

template <class Value>
VIT_BOTH float times(Value a, Value b) {
  return to_float(a) * to_float(b);
}
// The product of the lower parts is below what is rounded off.
VIT_BOTH float times(SplitFloat a, SplitFloat b) {
  const Halves left(a.value), right(b.value);
  return left.lower * right.upper + left.upper * right.lower + left.upper * right.upper;
}

// What goes into products from the left: a tile of queries, or the weights of their keys.
// The general form multiplies one by one what is in shared memory.
template <class Value, int depth>
struct Left {
  // Bytes of shared memory that `take` of sums needs.
  static constexpr int stride = depth + row_padding<Value>;
  static constexpr std::size_t bytes = sizeof(Value) * tile_queries * stride;

  const Value* table;

  // A table (64, depth) whose rows are `stride` apart.
  VIT_BOTH void take(const Value* table_) { table = table_; }
  // The sums of another product; `memory` is that of the warp's rows alone.
  VIT_BOTH void take(const Sums<depth>& sums, Value* memory) {
    using At = Sums<depth>;
    Warp().sync();
    VIT_UNROLL
    for (int i = 0; i < At::rows; ++i) {
      VIT_UNROLL
      for (int j = 0; j < At::columns; ++j) {
        assign(memory[At::row(i) * stride + At::column(j)], sums.values[i][j]);
      }
    }
    Warp().sync();
    table = memory;
  }

  // sums += this (64, depth) right^T, of which `right` has the rows (columns, depth).
  template <int columns>
  VIT_BOTH void add_by_rows(const Value* right, Sums<columns>& sums) const {
    using At = Sums<columns>;
    constexpr int together = 4;
    for (int k = 0; k < depth; k += together) {
      VIT_UNROLL
      for (int i = 0; i < At::rows; ++i) {
        const auto left = load<together>(table + At::row(i) * stride + k);
        VIT_UNROLL
        for (int j = 0; j < At::columns; ++j) {
          const auto other = load<together>(right + At::column(j) * stride + k);
          VIT_UNROLL
          for (int q = 0; q < together; ++q) {
            sums.values[i][j] += times(left.values[q], other.values[q]);
          }
        }
      }
    }
  }
  // sums += this (64, depth) right (depth, columns), whose rows are `right_stride` apart.
  template <int columns>
  VIT_BOTH void add(const Value* right, int right_stride, Sums<columns>& sums) const {
    using At = Sums<columns>;
    for (int k = 0; k < depth; ++k) {
      VIT_UNROLL
      for (int i = 0; i < At::rows; ++i) {
        const Value left = table[At::row(i) * stride + k];
        VIT_UNROLL
        for (int j = 0; j < At::columns; ++j) {
          sums.values[i][j] += times(left, right[k * right_stride + At::column(j)]);
        }
      }
    }
  }
};

#ifdef VIT_GPU

// bfloat16 on tensor cores: the sums of a product are, rounded, what the next one takes.
template <int depth>
struct Left<Bfloat16, depth> {
  static constexpr int stride = depth + row_padding<Bfloat16>;
  static constexpr std::size_t bytes = 0;

  unsigned parts[depth / 16][4];

  VIT_BOTH void take(const Bfloat16* table) {
    using At = Sums<depth>;
    const Bfloat16* const from = table + At::first_row() * stride + At::column(0);
    VIT_UNROLL
    for (int k = 0; k < depth / 16; ++k) {
      parts[k][0] = pair_at(from + k * 16);
      parts[k][1] = pair_at(from + k * 16 + 8 * stride);
      parts[k][2] = pair_at(from + k * 16 + 8);
      parts[k][3] = pair_at(from + k * 16 + 8 * stride + 8);
    }
  }
  VIT_BOTH void take(const Sums<depth>& sums, Bfloat16*) {
    VIT_UNROLL
    for (int k = 0; k < depth / 16; ++k) {
      VIT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int j = k * 4 + half * 2;
        parts[k][half * 2] = pair_of(sums.values[0][j], sums.values[0][j + 1]);
        parts[k][half * 2 + 1] = pair_of(sums.values[1][j], sums.values[1][j + 1]);
      }
    }
  }

  template <int columns>
  VIT_BOTH void add_by_rows(const Bfloat16* right, Sums<columns>& sums) const {
    using At = Sums<columns>;
    VIT_UNROLL
    for (int n = 0; n < columns / 8; ++n) {
      const Bfloat16* const row = right + (n * 8 + At::lane() / 4) * stride + At::column(0);
      VIT_UNROLL
      for (int k = 0; k < depth / 16; ++k) {
        multiply(&sums.values[0][n * 2], &sums.values[1][n * 2], parts[k], pair_at(row + k * 16),
                 pair_at(row + k * 16 + 8));
      }
    }
  }
  template <int columns>
  VIT_BOTH void add(const Bfloat16* right, int right_stride, Sums<columns>& sums) const {
    const int lane = Sums<columns>::lane();
    VIT_UNROLL
    for (int k = 0; k < depth / 16; ++k) {
      VIT_UNROLL
      for (int n = 0; n < columns / 8; n += 2) {
        unsigned blocks[4];
        load_transposed(right + (k * 16 + lane % 16) * right_stride + n * 8 + lane / 16 * 8,
                        blocks);
        multiply(&sums.values[0][n * 2], &sums.values[1][n * 2], parts[k], blocks[0], blocks[1]);
        multiply(&sums.values[0][n * 2 + 2], &sums.values[1][n * 2 + 2], parts[k], blocks[2],
                 blocks[3]);
      }
    }
  }
};

// What the tensor cores take of four values from the left.
template <class Value>
struct Factors {
  const float (&values)[4];

  VIT_BOTH void add(float* sums0, float* sums1, float right0, float right1) const {
    multiply(sums0, sums1, values, right0, right1);
  }
};
// As `times` multiplies, in the order of size.
template <>
struct Factors<SplitFloat> {
  float uppers[4], lowers[4];

  VIT_BOTH explicit Factors(const float (&values)[4]) {
    VIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Halves halves(values[i]);
      uppers[i] = halves.upper, lowers[i] = halves.lower;
    }
  }
  VIT_BOTH void add(float* sums0, float* sums1, float right0, float right1) const {
    const Halves first(right0), second(right1);
    multiply(sums0, sums1, lowers, first.upper, second.upper);
    multiply(sums0, sums1, uppers, first.lower, second.lower);
    multiply(sums0, sums1, uppers, first.upper, second.upper);
  }
};

// TF32 on tensor cores. Of eight that are summed over a lane has two neighbours, where the hardware
// counts them as the ones at a distance of four: the order of a sum is ours.
template <class Value, int depth>
struct LeftOfFloats {
  static constexpr int stride = depth + row_padding<Value>;
  static constexpr std::size_t bytes = 0;

  float parts[depth / 8][4];

  VIT_BOTH void take(const Value* table) {
    using At = Sums<depth>;
    const Value* const from = table + At::first_row() * stride + At::column(0);
    VIT_UNROLL
    for (int k = 0; k < depth / 8; ++k) {
      VIT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const auto pair = load<2>(from + k * 8 + i * 8 * stride);
        parts[k][i] = pair.values[0].value, parts[k][i + 2] = pair.values[1].value;
      }
    }
  }
  VIT_BOTH void take(const Sums<depth>& sums, Value*) {
    VIT_UNROLL
    for (int k = 0; k < depth / 8; ++k) {
      VIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        Value value;
        assign(value, sums.values[i % 2][k * 2 + i / 2]);
        parts[k][i] = value.value;
      }
    }
  }

  template <int columns>
  VIT_BOTH void add_by_rows(const Value* right, Sums<columns>& sums) const {
    using At = Sums<columns>;
    VIT_UNROLL
    for (int k = 0; k < depth / 8; ++k) {
      const Factors<Value> left{parts[k]};
      const Value* const from = right + At::lane() / 4 * stride + k * 8 + At::column(0);
      VIT_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        const auto pair = load<2>(from + n * 8 * stride);
        left.add(&sums.values[0][n * 2], &sums.values[1][n * 2], pair.values[0].value,
                 pair.values[1].value);
      }
    }
  }
  template <int columns>
  VIT_BOTH void add(const Value* right, int right_stride, Sums<columns>& sums) const {
    using At = Sums<columns>;
    VIT_UNROLL
    for (int k = 0; k < depth / 8; ++k) {
      const Factors<Value> left{parts[k]};
      const Value* const row = right + (k * 8 + At::column(0)) * right_stride + At::lane() / 4;
      VIT_UNROLL
      for (int n = 0; n < columns / 8; ++n) {
        left.add(&sums.values[0][n * 2], &sums.values[1][n * 2], row[n * 8].value,
                 row[n * 8 + right_stride].value);
      }
    }
  }
};

template <int depth>
struct Left<TensorFloat, depth> : LeftOfFloats<TensorFloat, depth> {};
template <int depth>
struct Left<SplitFloat, depth> : LeftOfFloats<SplitFloat, depth> {};

#endif

}  // namespace vit
