// The host side of csrc/cuda/gpu/sm90.h: what runs beside the threads. Copies by TMA and products by wgmma are queued
// when they are issued and done at a moment that the seed chooses: seed 0 as late as possible.
//
// What a run shows, beyond host.h: a phase waited for by the wrong parity, a barrier with too many or too few arrivals
// or bytes, a stage filled or read too early, a swizzle or an operand that does not fit the copy, an accumulator read
// before its wait (it is NaN until then), products without wgmma_fence, stores that no fence made visible to copies and
// products, warpgroups that disagree, registers that are never free. What it cannot show: time, and the order in which
// the hardware makes other threads' writes visible.
//
// ThreadSanitizer sees a copy as writes of the issuing thread when it is issued, a product as reads of its warp both
// when it is issued and when it is waited for; arriving at a barrier releases, waiting for its phase acquires.
#pragma once

#include <array>
#include <list>
#include <map>
#include <vector>

#include "host.h"

#define ATTFC_GRID_CONSTANT

namespace attfc::gpu {

constexpr bool kSm90a = true;

namespace host {

struct BarrierState {
  unsigned count = 0, pending = 0, phase = 0;  // phase: completed ones
  long long bytes = 0;                         // expected and not yet there
  unsigned owner = 0;                          // who initialised it
  bool fenced = false;                         // copies may use it
  char points[2] = {};
};

struct HostMap {
  const char* data;
  int64_t rows, columns, row_bytes;
  int tile_rows;
};

struct TileCopy {
  uint32_t target;  // offset in the arena
  int bytes;
  HostMap map;
  int column, row;
  const void* barrier;
};

// A warp's share of a wgmma: its 16 rows.
struct Product {
  std::array<float*, kWarpSize> d;
  uint64_t a, b;
  int columns;
  bool by_rows;  // the inner axis of b goes over rows of its tiles
  bool add, bfloat16, done;
  int group;
  unsigned line;
};

using WarpAccumulator = std::array<std::array<float, 64>, kWarpSize>;

struct AsyncWarp {
  std::deque<Product> products;
  std::map<float*, WarpAccumulator> accumulators;  // by lane 0's registers, while products are under way
  std::vector<std::array<uint64_t, 3>> issued;     // a, b, and how: the same in the four warps of a group
  std::vector<int> register_changes;               // likewise
  int open_group = 0, registers = 0;
  bool fenced = false, waits_for_registers = false;
};

struct AsyncBlock {
  std::map<const void*, BarrierState> barriers;
  std::list<TileCopy> copies;
  std::vector<AsyncWarp> warps;
  int free_registers = 0;
};
inline AsyncBlock* async = nullptr;

inline AsyncWarp& own_async_warp() { return async->warps[self().index / kWarpSize]; }

inline BarrierState& barrier_state(const Barrier* barrier, const char* operation, unsigned line) {
  block->arena->check_inside(barrier, 8, operation, line);
  const auto found = async->barriers.find(barrier);
  if (found == async->barriers.end()) fail("%s, line %u: the barrier is not initialised", operation, line);
  return found->second;
}

// A thread that waits for something to happen to `what`, alone, and whoever makes it happen.
inline void wait_for(const char* operation, unsigned line, void* what) {
  Thread& me = self();
  if (own_warp().arrived != 0) {
    fail("divergent warp %u: a lane at %s, line %u, others at a warp operation", me.index / kWarpSize, operation, line);
  }
  me.state = State::kWaits;
  me.meeting = {operation, line, what};
  own_warp().runnable &= ~(1u << (me.index % kWarpSize));
  yield_to_next(true);
}
inline void wake(const void* what) {
  for (Thread& thread : block->threads) {
    if (thread.state != State::kWaits || thread.meeting.arguments != what) continue;
    thread.state = State::kRunnable;
    block->warps[thread.index / kWarpSize].runnable |= 1u << (thread.index % kWarpSize);
  }
}

inline void complete_phase_if_due(const void* barrier, BarrierState& state) {
  if (state.pending != 0 || state.bytes != 0) return;
  ++state.phase;
  state.pending = state.count;
  wake(barrier);
}

inline void land(const TileCopy& copy) {
  for (int row = 0; row < copy.map.tile_rows; ++row) {
    for (int chunk = 0; chunk < 8; ++chunk) {
      const uint32_t address = copy.target + static_cast<uint32_t>(row * 128 + chunk * 16);
      uint16_t* target = reinterpret_cast<uint16_t*>(block->arena->at(address ^ (address >> 7 & 7) << 4));
      for (int i = 0; i < 8; ++i) {
        const int64_t from_row = copy.row + row, from_column = copy.column + 8 * chunk + i;
        const bool inside =
            from_row >= 0 && from_row < copy.map.rows && from_column >= 0 && from_column < copy.map.columns;
        target[i] =
            inside ? *reinterpret_cast<const uint16_t*>(copy.map.data + from_row * copy.map.row_bytes + from_column * 2)
                   : 0;
      }
    }
  }
  BarrierState& state = async->barriers.at(copy.barrier);
  state.bytes -= copy.bytes;
  if (state.bytes < -(1 << 20)) fail("copy_tile: more bytes landed than a barrier counts");
  ++counters.tile_copies;
  complete_phase_if_due(copy.barrier, state);
}

inline uint32_t field(uint64_t descriptor, int first_bit) {
  return static_cast<uint32_t>(descriptor >> first_bit & 0x3fff) << 4;
}

// PTX ISA, "Matrix descriptor" and "128-byte swizzle": where element (row, column) of an operand lies. K-major: column
// is of the inner axis, the stride offset leads to the next 8 rows. MN-major (by_rows): row is of the inner axis, the
// stride offset leads to the next 8 of them, the leading offset to the next 64 columns.
inline uint32_t operand_address(uint64_t descriptor, int row, int column, unsigned line, bool by_rows = false) {
  const uint32_t start = field(descriptor, 0), stride = field(descriptor, 32);
  if (descriptor >> 62 != 1)
    fail("wgmma, line %u: the descriptor has swizzle mode %u, not 1 (128 bytes)", line,
         static_cast<unsigned>(descriptor >> 62));
  if ((descriptor >> 49 & 7) != 0) fail("wgmma, line %u: the descriptor has a base offset", line);
  const uint32_t tile = by_rows ? static_cast<uint32_t>(column / 64) * field(descriptor, 16) : 0;
  if (by_rows) column %= 64;
  const uint32_t address =
      start + tile + static_cast<uint32_t>(row / 8) * stride + static_cast<uint32_t>(row % 8 * 128 + column * 2);
  return address ^ (address >> 7 & 7) << 4;
}

struct Range {
  uint32_t begin, end;
  bool meets(const Range& other) const { return begin < other.end && other.begin < end; }
};
// The lines of 128 bytes that hold `rows` rows of an operand from `first` on.
inline Range operand_range(uint64_t descriptor, int first, int rows) {
  const uint32_t start = field(descriptor, 0) & ~127u, stride = field(descriptor, 32);
  return {start + static_cast<uint32_t>(first / 8) * stride,
          start + static_cast<uint32_t>((first + rows) / 8) * stride};
}
inline Range left_range(const Product& product, size_t warp) {
  return operand_range(product.a, static_cast<int>(warp % 4) * 16, 16);
}
inline bool reads(const Product& product, size_t warp, const Range& range) {
  if (range.meets(left_range(product, warp))) return true;
  if (!product.by_rows) return range.meets(operand_range(product.b, 0, product.columns));
  for (int column = 0; column < product.columns; column += 64) {
    Range tile = operand_range(product.b, 0, 16);
    const uint32_t offset = static_cast<uint32_t>(column / 64) * field(product.b, 16);
    if (range.meets({tile.begin + offset, tile.end + offset})) return true;
  }
  return false;
}

inline void check_operands_landed(const Product& product, size_t warp) {
  for (const TileCopy& copy : async->copies) {
    const Range target{copy.target, copy.target + static_cast<uint32_t>(copy.bytes)};
    if (reads(product, warp, target)) {
      fail("wgmma, line %u, of warp %zu reads what a copy_tile has not brought yet", product.line, warp);
    }
  }
}

inline float operand_element(uint64_t descriptor, bool bfloat16, int row, int column, unsigned line,
                             bool by_rows = false) {
  const uint32_t address = operand_address(descriptor, row, column, line, by_rows);
  const char* at = block->arena->at(address);
  block->arena->check_inside(at, 2, "wgmma operand", line);
  block->arena->check_visible(at, 2, "wgmma operand", line);
  const uint16_t bits = *reinterpret_cast<const uint16_t*>(at);
  return bfloat16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
}

inline void execute(Product& product, size_t warp) {
  check_operands_landed(product, warp);
  product.done = true;
  ++counters.wgmma;
  static float left[16][16], right[128][16];
  const int first = static_cast<int>(warp % 4) * 16;
  for (int k = 0; k < 16; ++k) {
    for (int m = 0; m < 16; ++m) left[m][k] = operand_element(product.a, product.bfloat16, first + m, k, product.line);
    for (int n = 0; n < product.columns; ++n) {
      right[n][k] = product.by_rows ? operand_element(product.b, product.bfloat16, k, n, product.line, true)
                                    : operand_element(product.b, product.bfloat16, n, k, product.line);
    }
  }
  WarpAccumulator& sums = async->warps[warp].accumulators.at(product.d[0]);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < product.columns / 2; ++i) {
      // PTX ISA, "Accumulator D" of wgmma.m64nNk16.
      const int row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float& own = sums[static_cast<size_t>(lane)][static_cast<size_t>(i)];
      double sum = product.add ? own : 0;
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(left[row][k]) * right[column][k];
      own = static_cast<float>(sum);
    }
  }
}

inline void execute_next(size_t warp) {
  for (Product& product : async->warps[warp].products) {
    if (product.done) continue;
    execute(product, warp);
    return;
  }
}

// Does something that is under way; `must`: nothing else can go on. False: nothing was done.
inline bool advance_async(bool must) {
  const size_t copies = async->copies.size();
  if (!must && (options.seed == 0 || random_below(4) != 0)) return false;
  if (must || (copies != 0 && random_below(2) == 0)) {
    if (copies == 0) return false;
    auto chosen = async->copies.begin();
    // Where nothing else can go on, even seeds bring the youngest first: nobody may count on the order.
    const uint32_t last = static_cast<uint32_t>(copies) - 1;
    std::advance(chosen, must && options.seed % 2 == 0 ? last : random_below(last + 1));
    const TileCopy copy = *chosen;
    async->copies.erase(chosen);
    land(copy);
    return true;
  }
  execute_next(random_below(static_cast<uint32_t>(async->warps.size())));
  return true;
}

inline void begin_async() {
  delete async;
  async = new AsyncBlock;
  async->warps.resize(block->warps.size());
  // What a launch gives each thread: an equal share, at most 255, in steps of 8.
  const int share = 65536 / static_cast<int>(block->threads.size()) / 8 * 8;
  for (AsyncWarp& warp : async->warps) warp.registers = share < 255 ? share : 255;
  async->free_registers = 65536 - (share < 255 ? share : 255) * static_cast<int>(block->threads.size());
}

inline void end_async() {
  if (!async->copies.empty()) fail("the block ended with copy_tile under way");
  for (size_t warp = 0; warp < async->warps.size(); ++warp) {
    const AsyncWarp& own = async->warps[warp];
    if (!own.products.empty()) fail("warp %zu left the kernel with wgmma under way", warp);
    const AsyncWarp& first = async->warps[warp / 4 * 4];
    if (own.issued != first.issued) fail("warps %zu and %zu of a warpgroup issued different wgmma", warp / 4 * 4, warp);
    if (own.register_changes != first.register_changes) {
      fail("warps %zu and %zu of a warpgroup changed their registers differently", warp / 4 * 4, warp);
    }
  }
}

inline const bool async_is_known = [] {
  asynchronous = {begin_async, advance_async, end_async};
  return true;
}();

inline void maybe_advance() {
  const Quiet quiet;
  advance_async(false);
}

}  // namespace host

inline void barrier_init(Barrier* barrier, unsigned arrivals, unsigned line = __builtin_LINE()) {
  {
    const host::Quiet quiet;
    host::block->arena->check_inside(barrier, 8, "barrier_init", line);
    if (arrivals == 0 || arrivals >= 1u << 20) host::fail("barrier_init, line %u: %u arrivals", line, arrivals);
    if (host::async->barriers.count(barrier) != 0) host::fail("barrier_init, line %u: a barrier in use", line);
    host::BarrierState& state = host::async->barriers[barrier];
    state.count = state.pending = arrivals;
    state.owner = host::self().index;
  }
  host::store_word(reinterpret_cast<char*>(&barrier->bits), arrivals);
}

inline void fence_barrier_init() {
  const host::Quiet quiet;
  for (auto& [barrier, state] : host::async->barriers) state.fenced |= state.owner == host::self().index;
}

namespace host {
// A use of the barrier, as ThreadSanitizer sees it: it must come after its initialisation.
inline void touch(const Barrier* barrier) {
  [[maybe_unused]] const uint64_t bits = *static_cast<const volatile uint64_t*>(&barrier->bits);
}

inline void arrive(Barrier* barrier, long long bytes, const char* operation, unsigned line) {
  char* point;
  {
    const Quiet quiet;
    BarrierState& state = barrier_state(barrier, operation, line);
    point = &state.points[state.phase & 1];
  }
  touch(barrier);
  happens_before(point);
  const Quiet quiet;
  BarrierState& state = barrier_state(barrier, operation, line);
  if (state.pending == 0) fail("%s, line %u: more arrivals than the barrier's %u", operation, line, state.count);
  state.bytes += bytes;
  if (state.bytes >= 1 << 20) fail("%s, line %u: more bytes than a barrier counts", operation, line);
  --state.pending;
  complete_phase_if_due(barrier, state);
}
}  // namespace host

inline void barrier_arrive(Barrier* barrier, unsigned line = __builtin_LINE()) {
  host::arrive(barrier, 0, "barrier_arrive", line);
  host::maybe_advance();
  const host::Quiet quiet;  // whoever waited may be faster than whatever this thread does next
  if (host::options.seed != 0 && host::random_below(8) == 0) host::yield_to_next(false);
}
inline void barrier_arrive_expect_tx(Barrier* barrier, unsigned bytes, unsigned line = __builtin_LINE()) {
  host::arrive(barrier, bytes, "barrier_arrive_expect_tx", line);
}

inline void barrier_wait(Barrier* barrier, unsigned parity, unsigned line = __builtin_LINE()) {
  char* point;
  host::touch(barrier);
  {
    const host::Quiet quiet;
    host::advance_async(false);
    host::BarrierState& state = host::barrier_state(barrier, "barrier_wait", line);
    while ((state.phase & 1) == (parity & 1)) {
      host::wait_for("barrier_wait", line, barrier);
    }
    point = &state.points[parity & 1];
  }
  host::happens_after(point);
}

inline const char* encode_tensor_map(TensorMap& map, const TiledMatrix& matrix) {
  if (reinterpret_cast<uintptr_t>(matrix.data) % 16 != 0 || matrix.row_stride % 8 != 0 || matrix.rows < 1 ||
      matrix.columns < 1 || matrix.rows > int64_t{1} << 32 || matrix.tile_rows < 1 || matrix.tile_rows > 256) {
    return "cuTensorMapEncodeTiled refuses the matrix";
  }
  const host::HostMap own{static_cast<const char*>(matrix.data), matrix.rows, matrix.columns, matrix.row_stride * 2,
                          matrix.tile_rows};
  std::memcpy(map.bytes, &own, sizeof own);
  return nullptr;
}

inline void copy_tile(void* shared, const TensorMap& map, Barrier* barrier, int column, int row,
                      unsigned line = __builtin_LINE()) {
  host::TileCopy copy;
  char* point;
  host::touch(barrier);
  {
    const host::Quiet quiet;
    std::memcpy(&copy.map, map.bytes, sizeof copy.map);
    copy.bytes = copy.map.tile_rows * 128;
    copy.target = host::block->arena->offset_of(shared);
    copy.column = column;
    copy.row = row;
    copy.barrier = barrier;
    if (copy.target % 1024 != 0) host::fail("copy_tile, line %u: the target is not aligned to 1024 bytes", line);
    for (int at = 0; at < copy.bytes; at += 128) {
      host::block->arena->check_inside(static_cast<char*>(shared) + at, 128, "copy_tile", line);
    }
    host::block->arena->check_visible(shared, copy.bytes, "copy_tile", line);
    host::BarrierState& state = host::barrier_state(barrier, "copy_tile", line);
    if (!state.fenced) host::fail("copy_tile, line %u: no fence_barrier_init since the barrier's barrier_init", line);
    point = &state.points[state.phase & 1];
    const host::Range target{copy.target, copy.target + static_cast<uint32_t>(copy.bytes)};
    for (size_t warp = 0; warp < host::async->warps.size(); ++warp) {
      for (const host::Product& product : host::async->warps[warp].products) {
        if (!host::reads(product, warp, target)) continue;
        host::fail("copy_tile, line %u, writes what a wgmma of warp %zu, line %u, still reads", line, warp,
                   product.line);
      }
    }
    for (const host::TileCopy& other : host::async->copies) {
      if (!target.meets({other.target, other.target + static_cast<uint32_t>(other.bytes)})) continue;
      host::fail("copy_tile, line %u, writes what another has not written yet", line);
    }
  }
  for (int at = 0; at < copy.bytes; at += 8) host::store_word(static_cast<char*>(shared) + at, host::kPoisonWord);
  host::happens_before(point);
  const host::Quiet quiet;
  host::async->copies.push_back(copy);
}

inline void fence_proxy_async() {
  const host::Quiet quiet;
  host::block->arena->make_visible(host::self().index);
}

inline int uniform(int value, unsigned line = __builtin_LINE()) {
  struct Arguments {
    int value;
  } arguments{value};
  host::meet("uniform", line, arguments, [](Arguments** all) {
    for (int lane = 1; lane < kWarpSize; ++lane) all[lane]->value = all[0]->value;
  });
  const host::Quiet quiet;
  return arguments.value;
}

namespace host {
inline void change_registers(const char* operation, int registers, bool raise, unsigned line) {
  struct Arguments {
  } none;
  if (registers % 8 != 0 || registers < 24 || registers > 256)
    fail("%s, line %u: %d registers", operation, line, registers);
  meet(operation, line, none, [&](Arguments**) {
    AsyncWarp& warp = own_async_warp();
    warp.register_changes.push_back(registers);
    if (raise ? registers < warp.registers : registers > warp.registers) {
      fail("%s, line %u: from %d to %d registers", operation, line, warp.registers, registers);
    }
    if (raise) {
      warp.waits_for_registers = true;
    } else {
      async->free_registers += (warp.registers - registers) * kWarpSize;
      warp.registers = registers;
      wake(&async->free_registers);
    }
  });
  const Quiet quiet;
  AsyncWarp& warp = own_async_warp();
  while (warp.waits_for_registers) {
    const int wanted = (registers - warp.registers) * kWarpSize;
    if (wanted <= async->free_registers) {
      async->free_registers -= wanted;
      warp.registers = registers;
      warp.waits_for_registers = false;
    } else {
      wait_for(operation, line, &async->free_registers);
    }
  }
}
}  // namespace host

template <int kRegisters>
void lower_registers(unsigned line = __builtin_LINE()) {
  host::change_registers("lower_registers", kRegisters, false, line);
}
template <int kRegisters>
void raise_registers(unsigned line = __builtin_LINE()) {
  host::change_registers("raise_registers", kRegisters, true, line);
}

inline Operand swizzled_operand(const void* tile) {
  const host::Quiet quiet;
  return Operand::of_columns(host::block->arena->offset_of(tile));
}

inline Operand swizzled_rows(const void* tile, int tile_bytes) {
  const host::Quiet quiet;
  return Operand::of_rows(host::block->arena->offset_of(tile), tile_bytes);
}

inline void wgmma_fence(unsigned line = __builtin_LINE()) {
  struct Arguments {
  } none;
  host::meet("wgmma_fence", line, none, [](Arguments**) { host::own_async_warp().fenced = true; });
}

namespace host {
// A warp's reads of the operands, as ThreadSanitizer sees them; by lane 0, which speaks for its warp at barriers.
inline void touch_operands([[maybe_unused]] const Product& product) {
#if defined(__SANITIZE_THREAD__)
  const auto read = [&](uint64_t descriptor, int first, int rows, int columns, bool by_rows) {
    for (int row = first; row < first + rows; ++row) {
      for (int column = 0; column < columns; column += 4) {
        [[maybe_unused]] const uint64_t word = *reinterpret_cast<const volatile uint64_t*>(
            block->arena->at(operand_address(descriptor, row, column, product.line, by_rows)));
      }
    }
  };
  read(product.a, static_cast<int>(self().index / kWarpSize % 4) * 16, 16, 16, false);
  if (product.by_rows) {
    read(product.b, 0, 16, product.columns, true);
  } else {
    read(product.b, 0, product.columns, 16, false);
  }
#endif
}

inline void issue_wgmma(float* d, int columns, uint64_t a, uint64_t b, bool by_rows, bool add, bool bfloat16,
                        unsigned line) {
  struct Arguments {
    float* d;
    uint64_t a, b;
  } mine{d, a, b};
  meet("wgmma", line, mine, [&](Arguments** all) {
    const size_t index = self().index / kWarpSize;
    AsyncWarp& warp = own_async_warp();
    Product product{{}, a, b, columns, by_rows, add, bfloat16, false, warp.open_group, line};
    for (size_t lane = 0; lane < kWarpSize; ++lane) {
      if (all[lane]->a != all[0]->a || all[lane]->b != all[0]->b) {
        fail("wgmma, line %u: the lanes of warp %zu have different descriptors", line, index);
      }
      product.d[lane] = all[lane]->d;
    }
    if (!warp.fenced) fail("wgmma, line %u: no wgmma_fence since the registers were last used", line);
    check_operands_landed(product, index);
    if (warp.accumulators.count(product.d[0]) == 0) {
      WarpAccumulator& sums = warp.accumulators[product.d[0]];
      for (size_t lane = 0; lane < kWarpSize; ++lane) {
        for (size_t i = 0; i < static_cast<size_t>(columns) / 2; ++i) {
          sums[lane][i] = product.d[lane][i];
          product.d[lane][i] = NAN;
        }
      }
    }
    warp.issued.push_back({a, b, static_cast<uint64_t>(columns) << 2 | (by_rows ? 2u : 0u) | (add ? 1u : 0u)});
    warp.products.push_back(product);
  });
  Product touched{};
  {
    const Quiet quiet;
    if (self().index % kWarpSize != 0) return;
    touched.a = a, touched.b = b, touched.columns = columns, touched.by_rows = by_rows, touched.line = line;
  }
  touch_operands(touched);
}

inline void wait_wgmma(int pending, unsigned line) {
  struct Arguments {
    std::vector<Product> finished;
  } mine;
  meet("wgmma_wait", line, mine, [&](Arguments** all) {
    const size_t index = self().index / kWarpSize;
    AsyncWarp& warp = own_async_warp();
    while (!warp.products.empty() && warp.products.front().group < warp.open_group - pending) {
      if (!warp.products.front().done) execute(warp.products.front(), index);
      const Product product = warp.products.front();
      warp.products.pop_front();
      all[0]->finished.push_back(product);
      bool last = true;
      for (const Product& other : warp.products) last = last && other.d[0] != product.d[0];
      if (!last) continue;
      const WarpAccumulator& sums = warp.accumulators.at(product.d[0]);
      for (size_t lane = 0; lane < kWarpSize; ++lane) {
        for (size_t i = 0; i < static_cast<size_t>(product.columns) / 2; ++i) product.d[lane][i] = sums[lane][i];
      }
      warp.accumulators.erase(product.d[0]);
    }
    warp.fenced = false;
  });
  if (thread_index() % kWarpSize != 0) return;
  for (const Product& product : mine.finished) touch_operands(product);
}
}  // namespace host

template <class Element, bool add>
void wgmma_64x128x16(float (&d)[64], Operand a, Operand b, unsigned line = __builtin_LINE()) {
  host::issue_wgmma(d, 128, a.descriptor(), b.descriptor(), false, add, kIsBFloat16<Element>, line);
}
template <class Element, bool add>
void wgmma_64x128x16_rows(float (&d)[64], Operand a, Operand b, unsigned line = __builtin_LINE()) {
  host::issue_wgmma(d, 128, a.descriptor(), b.descriptor(), true, add, kIsBFloat16<Element>, line);
}
template <class Element, bool add>
void wgmma_64x32x16(float (&d)[16], Operand a, Operand b, unsigned line = __builtin_LINE()) {
  host::issue_wgmma(d, 32, a.descriptor(), b.descriptor(), false, add, kIsBFloat16<Element>, line);
}
inline void wgmma_commit(unsigned line = __builtin_LINE()) {
  struct Arguments {
  } none;
  host::meet("wgmma_commit", line, none, [](Arguments**) { ++host::own_async_warp().open_group; });
}
template <int kPending>
void wgmma_wait(unsigned line = __builtin_LINE()) {
  host::wait_wgmma(kPending, line);
}
template <int kPending, int count>
void wgmma_wait(float (&)[count], unsigned line = __builtin_LINE()) {
  host::wait_wgmma(kPending, line);
}

}  // namespace attfc::gpu
