// Sums over the rows of a table whose elements are computed, as gradients of parameters are.
#pragma once

#include <cstdint>

#include "cuda/launch.hpp"

namespace vit {

// A team has 8 neighbouring columns, which are what memory gives at once, and of each 128 parts,
// which take every 128th row: so there are enough teams for a GPU, and threads for long columns.
template <class Term>
struct ColumnSums {
  using Team = Block<1024>;
  static constexpr int columns = 8, parts = 128;

  Term term;
  float* sums;
  std::int64_t rows, width;

  template <class T>
  VIT_BOTH void operator()(T team, std::int64_t group, unsigned char* memory) const {
    float* const table = reinterpret_cast<float*>(memory);  // (parts, columns)
    for (int place = team.rank(); place < parts * columns; place += team.size()) {
      const std::int64_t column = group * columns + place % columns;
      float sum = 0.0f;
      if (column < width) {
        for (std::int64_t row = place / columns; row < rows; row += parts) sum += term(row, column);
      }
      table[place] = sum;
    }
    for (int half = parts / 2; half > 0; half /= 2) {
      team.sync();
      for (int place = team.rank(); place < half * columns; place += team.size()) {
        table[place] += table[place + half * columns];
      }
    }
    // a thread of the last round has what it summed up itself
    for (int place = team.rank(); place < columns; place += team.size()) {
      const std::int64_t column = group * columns + place;
      if (column < width) sums[column] = table[place];
    }
  }
};

// sums (width) = those of term(row, column) over all rows.
template <class Term>
void sum_columns(Device& device, const Term& term, float* sums, std::int64_t rows,
                 std::int64_t width) {
  using Kernel = ColumnSums<Term>;
  launch(device, (width + Kernel::columns - 1) / Kernel::columns, Kernel{term, sums, rows, width},
         sizeof(float) * Kernel::parts * Kernel::columns);
}

}  // namespace vit
