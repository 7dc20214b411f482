// Products on all threads: how they are cut into tasks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "mojo/device_mojo.hpp"
#include "mojo/functions.hpp"

namespace vit {

inline std::int64_t pieces(std::int64_t size, std::int64_t piece) {
  return (size + piece - 1) / piece;
}
inline std::int64_t panels(std::int64_t columns) { return pieces(columns, vit_mojo_panel()); }

// Rows of a task: as many as it takes, but fewer where threads would have nothing to do.
inline std::int64_t task_rows(std::int64_t rows, std::int64_t columns, int threads) {
  const std::int64_t tile = vit_mojo_tile_rows();
  std::int64_t task = vit_mojo_task_rows();
  while (task > tile && pieces(rows, task) * panels(columns) < 2 * threads) {
    task = pieces(task / 2, tile) * tile;
  }
  return task;
}

// Calls run(first, rows, panel) for all rows and panels of a product, on all threads.
template <class Run>
void parallel_tasks(std::int64_t rows, std::int64_t columns, std::int64_t task, Run run) {
  const std::int64_t across = panels(columns);
  parallel(pieces(rows, task) * across, 1, [&](std::int64_t number, std::int64_t) {
    const std::int64_t first = number / across * task;
    run(first, std::min(task, rows - first), number % across);
  });
}

}  // namespace vit
