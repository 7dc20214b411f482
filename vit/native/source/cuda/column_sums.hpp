// Sums over the rows of a table whose elements are computed, as gradients of parameters are.
#pragma once

#include <cstdint>

#include "cuda/launch.hpp"

namespace vit {

// A team has 32 neighbouring columns, and of each 32 parts, which take every 32nd row.
template <class Term>
struct ColumnSums {
  using Team = Block<1024>;
  static constexpr int side = 32;

  Term term;
  float* sums;
  std::int64_t rows, width;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t group, unsigned char* memory) const {
    float* const parts = reinterpret_cast<float*>(memory);
    for (int place = team.rank(); place < side * side; place += team.size()) {
      const std::int64_t column = group * side + place % side;
      float sum = 0.0f;
      if (column < width) {
        for (std::int64_t row = place / side; row < rows; row += side) sum += term(row, column);
      }
      parts[place] = sum;
    }
    team.sync();
    for (int place = team.rank(); place < side; place += team.size()) {
      const std::int64_t column = group * side + place;
      float sum = 0.0f;
      for (int part = 0; part < side; ++part) sum += parts[part * side + place];
      if (column < width) sums[column] = sum;
    }
  }
};

// sums (width) = those of term(row, column) over all rows.
template <class Term>
void sum_columns(Device& device, const Term& term, float* sums, std::int64_t rows,
                 std::int64_t width) {
  using Kernel = ColumnSums<Term>;
  launch(device, (width + Kernel::side - 1) / Kernel::side, Kernel{term, sums, rows, width},
         sizeof(float) * Kernel::side * Kernel::side);
}

}  // namespace vit
