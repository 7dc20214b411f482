#include "cuda/host/simulated.hpp"

#include <ucontext.h>

#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "file/number.hpp"

SimulatedIndex threadIdx, blockIdx, blockDim;

namespace {

constexpr unsigned lanes = 32, most_threads = 1024;
constexpr std::size_t stack_bytes = 256 << 10;
constexpr std::size_t most_shared_bytes = 99 << 10;  // of compute capability 8.6 and 8.9

enum State { ready, at_warp, at_block, done };

// A thread of a block: it runs until it waits for others.
struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  State state;
  // What it tells the others of its warp.
  float value;
  unsigned a[4], b[2];
  float a_floats[4], b_floats[2];
  const std::uint16_t* row;
};

std::vector<Thread> threads;
std::vector<std::uint64_t> shared;
ucontext_t scheduler;
const std::function<void()>* work;

Thread& self() { return threads[threadIdx.x]; }
// A thread of the same warp, by its number there.
Thread& lane(unsigned number) { return threads[threadIdx.x / lanes * lanes + number]; }

void run() {
  (*work)();
  self().state = done;
  setcontext(&scheduler);
}

void wait(State state) {
  Thread& thread = self();
  thread.state = state;
  swapcontext(&thread.context, &scheduler);
}

// Ends a thread, and with it the simulation; no exception may leave its stack.
const char* failure = nullptr;
void fail(const char* words) {
  failure = words;
  setcontext(&scheduler);
}

void start(unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.stack.resize(stack_bytes);
    thread.state = ready;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run, 0);
  }
}

// Lets the threads from `first` on go on if all of them wait for that; false if not all do.
bool released(unsigned first, unsigned count, State state) {
  for (unsigned i = first; i < first + count; ++i) {
    if (threads[i].state != state) return false;
  }
  for (unsigned i = first; i < first + count; ++i) threads[i].state = ready;
  return true;
}

// Runs all threads of a block to their ends.
void run_block(unsigned count) {
  start(count);
  for (unsigned left = count; left > 0;) {
    bool goes_on = false;
    left = count;
    for (unsigned i = 0; i < count; ++i) {
      threadIdx.x = i;
      if (threads[i].state == ready) swapcontext(&scheduler, &threads[i].context);
      if (failure) throw std::logic_error(std::exchange(failure, nullptr));
      left -= threads[i].state == done;
    }
    for (unsigned i = 0; i < count; i += lanes) goes_on |= released(i, lanes, at_warp);
    goes_on |= released(0, count, at_block);
    if (left > 0 && !goes_on) throw std::logic_error("threads of a block wait in vain");
  }
}

// What a thread adds to its sums: those of left(row, k) right(k, column) over k, when all threads
// of the warp have told what they have. Both kinds of tensor cores have these sums in the same
// places.
template <class Left, class Right>
void add_products(unsigned depth, float* sums0, float* sums1, Left&& left, Right&& right) {
  __syncwarp();
  const unsigned row = threadIdx.x % lanes / 4, column = threadIdx.x % 4 * 2;
  for (unsigned i = 0; i < 2; ++i) {
    for (unsigned k = 0; k < depth; ++k) {
      sums0[i] += left(row, k) * right(k, column + i);
      sums1[i] += left(row + 8, k) * right(k, column + i);
    }
  }
  __syncwarp();
}

}  // namespace

void __syncthreads() { wait(at_block); }
void __syncwarp() { wait(at_warp); }

float __shfl_xor_sync(unsigned, float value, int bits) {
  self().value = value;
  __syncwarp();
  const float result = lane(threadIdx.x % lanes ^ static_cast<unsigned>(bits)).value;
  __syncwarp();  // before another value is told
  return result;
}

namespace vit {

float float_of(std::uint16_t bits) { return from_bfloat16(bits); }
std::uint16_t bfloat16_of(float value) { return to_bfloat16(value); }
float tensor_float_of(float value) { return to_tensor_float(value); }
unsigned pair_of(float low, float high) {
  return to_bfloat16(low) | static_cast<unsigned>(to_bfloat16(high)) << 16U;
}
unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(shared.data()); }

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": of a and b a register has
// two neighbours along the 16 that are summed over.
void multiply(float* sums0, float* sums1, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  std::memcpy(self().a, a, sizeof a);
  self().b[0] = b0, self().b[1] = b1;
  const auto half = [](unsigned pair, unsigned k) {
    return from_bfloat16(static_cast<std::uint16_t>(k % 2 ? pair >> 16U : pair));
  };
  add_products(
      16, sums0, sums1,
      [&](unsigned row, unsigned k) {
        return half(lane(row % 8 * 4 + k % 8 / 2).a[k / 8 * 2 + row / 8], k);
      },
      [&](unsigned k, unsigned column) { return half(lane(column * 4 + k % 8 / 2).b[k / 8], k); });
}

// PTX ISA, "Matrix Fragments for mma.m16n8k8", of .tf32.
void multiply(float* sums0, float* sums1, const float (&a)[4], float b0, float b1) {
  std::memcpy(self().a_floats, a, sizeof a);
  self().b_floats[0] = b0, self().b_floats[1] = b1;
  add_products(
      8, sums0, sums1,
      [](unsigned row, unsigned k) {
        return lane(row % 8 * 4 + k % 4).a_floats[k / 4 * 2 + row / 8];
      },
      [](unsigned k, unsigned column) { return lane(column * 4 + k % 4).b_floats[k / 4]; });
}

// PTX ISA, ldmatrix with .trans: a lane gets two neighbours of a column.
void load_transposed(const void* row, unsigned (&blocks)[4]) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("unaligned row");
  self().row = static_cast<const std::uint16_t*>(row);
  __syncwarp();
  const unsigned first = threadIdx.x % 4 * 2, column = threadIdx.x % lanes / 4;
  for (unsigned i = 0; i < 4; ++i) {
    blocks[i] = lane(i * 8 + first).row[column] |
                static_cast<unsigned>(lane(i * 8 + first + 1).row[column]) << 16U;
  }
  __syncwarp();
}

void simulate(unsigned blocks, unsigned count, std::size_t shared_bytes,
              const std::function<void()>& thread) {
  if (shared_bytes > most_shared_bytes) throw std::logic_error("too much shared memory");
  threads.resize(most_threads);
  work = &thread;
  blockDim.x = count;
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    shared.assign(shared_bytes / sizeof(std::uint64_t) + 8, ~std::uint64_t{0});  // NaN
    run_block(count);
  }
}

}  // namespace vit
