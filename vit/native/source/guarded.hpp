// The border of the C interface: no exception crosses it, each leaves its words behind.
#pragma once

#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>

namespace vit {

// The words of this thread's last error, cut off if they are longer.
inline thread_local char last_error[1024] = "";

inline void set_error(const char* words) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", words);
}

// Runs the function; returns 0, or 1 after an exception.
template <class Function>
int guarded(Function&& function) noexcept {
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    set_error("not enough memory; use smaller batches or images");
  } catch (const std::length_error&) {
    set_error("not enough memory; use smaller batches or images");
  } catch (const std::exception& error) {
    set_error(error.what());
  } catch (...) {
    set_error("an unknown error");
  }
  return 1;
}

}  // namespace vit
