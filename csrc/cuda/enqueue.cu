// The enqueue kernels (enqueue.h).
//
// fifo: fifo_plan (one block: the place of each row among those written), scatter.
// refresh, for k rows that need a slot:
//   refresh_plan      block 0: the last row of each class by a hash table, whether its class has a slot (whose stamp it
//                     raises), the order of the others; blocks 1 ..: a lower bound for the stamps, an empty histogram
//   stamp_histogram   the stamps over bins that are fine at the old end
//   collect_oldest    the slots in the bins up to the one of the k-th smallest stamp: a list in any order
//   hand_out          each of the list counts who is older: the k oldest get the k rows, in order
//   scatter           a warp a row: the centres, in the container's dtype
// Bound by reading 8 S bytes of stamps three times, by latency where S is small. hand_out compares the list with
// itself: k + k / 64 slots or so, all of them only where the k-th stamp lies far from the oldest and near all others,
// which evicts those that made it so. Which stamps the bound is of depends on the order of threads, what is written
// does not: stamps are all different.
#include "enqueue.h"

#include "block_sums.h"
#include "element.h"
#include "enqueue_parameters.h"

namespace attfc::cuda {

namespace {

constexpr int kThreads = kEnqueueThreads, kWarps = kThreads / gpu::kWarpSize;
constexpr int kHandOutThreads = 128, kScatterWarps = 4;
constexpr unsigned kMaxHandOutBlocks = 264;
constexpr int64_t kHighest = INT64_MAX;

using Ranks = BlockRanks<kThreads>;

ATTFC_KERNEL(kThreads, 1) fifo_plan_kernel(const EnqueueParameters p) {
  gpu::SharedArena arena;
  Ranks ranks(arena);
  const int64_t clock = *p.clock;
  int64_t written = 0;
  for (int64_t first = 0; first < p.rows; first += kThreads) {
    const int64_t row = first + gpu::thread_index();
    const int64_t label = row < p.rows ? p.new_labels[row] : -1;
    uint32_t total;
    const int64_t rank =
        written + ranks.before(label >= 0 ? 1 : 0, total);  // a barrier: every thread has read the clock
    written += total;
    const int64_t slot = (clock + rank) % p.slots;  // fault: fifo_slot
    if (row < p.rows) p.slot_of_row[row] = label >= 0 ? static_cast<int32_t>(slot) : -1;
    if (label >= 0) p.labels[slot] = label;
  }
  if (gpu::thread_index() == 0) *p.clock = clock + written;  // fault: fifo_clock
}

// Block 0 of refresh_plan.
ATTFC_DEVICE void plan_rows(const EnqueueParameters& p, Ranks& ranks) {
  const int thread = static_cast<int>(gpu::thread_index());
  for (int at = thread; at < p.table.size; at += kThreads) {
    p.table.keys[at] = kNoLabel;
    p.last_row[at] = -1;
  }
  gpu::sync_block();
  for (int64_t row = thread; row < p.rows; row += kThreads) {
    const int64_t label = p.new_labels[row];
    if (label >= 0) gpu::atomic_max(p.last_row + p.table.insert(label), static_cast<int32_t>(row));  // fault: last_row
  }
  gpu::sync_block();  // fault: last_row_barrier
  const int64_t clock = *p.clock;
  uint32_t waiting = 0;
  for (int64_t first = 0; first < p.rows; first += kThreads) {
    const int64_t row = first + thread;
    const int64_t label = row < p.rows ? p.new_labels[row] : -1;
    const bool is_written = label >= 0 && p.last_row[p.table.find(label)] == row;
    const int32_t own = is_written ? p.slot_of_class[label] : -1;
    // An evicted class's entry is left standing and recognised here: its slot shows another label.
    const bool is_held = own >= 0 && p.labels[own] == label;       // fault: held_slot
    if (is_held) gpu::store_relaxed(p.stamps + own, clock + row);  // fault: raised_stamp
    if (row < p.rows) p.slot_of_row[row] = is_held ? own : -1;
    uint32_t total;
    const uint32_t rank = waiting + ranks.before(is_written && !is_held ? 1 : 0, total);
    if (is_written && !is_held) p.waiting_rows[rank] = static_cast<int32_t>(row);
    waiting += total;
  }
  if (thread == 0) {
    *p.state = {clock, waiting, 0};
    *p.clock = clock + p.rows;
  }
}

// visit(slot) for each slot of this one of p.scan_blocks.
template <class Visit>
ATTFC_DEVICE void for_slots(const EnqueueParameters& p, unsigned block, Visit visit) {
  const int64_t step = static_cast<int64_t>(p.scan_blocks) * kThreads;
  ATTFC_UNROLL_BY_4
  for (int64_t slot = static_cast<int64_t>(block) * kThreads + gpu::thread_index(); slot < p.slots; slot += step) {
    visit(slot);
  }
}

// The least of a number of each thread, in all of them; `shared` [kWarps].
ATTFC_DEVICE int64_t least_of_block(int64_t value, int64_t* shared) {
  ATTFC_UNROLL
  for (int lanes = gpu::kWarpSize / 2; lanes > 0; lanes /= 2) {
    const int64_t other = gpu::shuffle_xor(value, lanes);
    value = other < value ? other : value;
  }
  const unsigned thread = gpu::thread_index();
  if (thread % gpu::kWarpSize == 0) gpu::store_shared(shared + thread / gpu::kWarpSize, value);
  gpu::sync_block();
  for (int warp = 0; warp < kWarps; ++warp) {
    const int64_t other = gpu::load_shared(shared + warp);
    value = other < value ? other : value;
  }
  return value;
}

ATTFC_KERNEL(kThreads, 1) refresh_plan_kernel(const EnqueueParameters p) {
  gpu::SharedArena arena;
  int64_t* shared = arena.take<int64_t>(kWarps);
  Ranks ranks(arena);
  if (gpu::block_index_x() == 0) {
    plan_rows(p, ranks);
    return;
  }
  const unsigned block = gpu::block_index_x() - 1;
  for (int bin = static_cast<int>(block * kThreads + gpu::thread_index()); bin < kStampBins;
       bin += static_cast<int>(p.scan_blocks) * kThreads) {
    p.histogram[bin] = 0;
  }
  // Block 0 may be raising them: what was there before is a bound as well.
  int64_t least = kHighest;
  for_slots(p, block, [&](int64_t slot) {
    const int64_t stamp = gpu::load_relaxed(p.stamps + slot);  // fault: least_stamp
    least = stamp < least ? stamp : least;
  });
  least = least_of_block(least, shared);
  if (gpu::thread_index() == 0) p.least_of_block[block] = least;
}

ATTFC_DEVICE int64_t least_stamp(const EnqueueParameters& p, int64_t* shared) {
  const unsigned thread = gpu::thread_index();
  return least_of_block(thread < p.scan_blocks ? p.least_of_block[thread] : kHighest, shared);
}

ATTFC_KERNEL(kThreads, 2) stamp_histogram_kernel(const EnqueueParameters p) {
  gpu::SharedArena arena;
  int64_t* shared = arena.take<int64_t>(kWarps);
  uint32_t* counts = arena.take<uint32_t>(kStampBins);
  if (p.state->waiting == 0) return;  // the whole grid
  for (int bin = static_cast<int>(gpu::thread_index()); bin < kStampBins; bin += kThreads) {
    gpu::store_shared(counts + bin, 0u);
  }
  const int64_t least = least_stamp(p, shared);  // a barrier
  for_slots(p, gpu::block_index_x(),
            [&](int64_t slot) { gpu::atomic_add(counts + stamp_bin(p.stamps[slot], least), 1u); });
  gpu::sync_block();  // fault: histogram_barrier
  for (int bin = static_cast<int>(gpu::thread_index()); bin < kStampBins; bin += kThreads) {
    const uint32_t count = gpu::load_shared(counts + bin);
    if (count != 0) gpu::atomic_add(p.histogram + bin, count);
  }
}

// The bin in which the k-th smallest stamp lies, to all threads of the block.
ATTFC_DEVICE int bin_of_kth(const EnqueueParameters& p, uint32_t k, Ranks& ranks, uint32_t* shared) {
  constexpr int kOwnBins = (kStampBins + kThreads - 1) / kThreads;
  const int first = static_cast<int>(gpu::thread_index()) * kOwnBins;
  uint32_t own = 0, total;
  for (int bin = first; bin < first + kOwnBins && bin < kStampBins; ++bin) own += p.histogram[bin];
  uint32_t before = ranks.before(own, total);
  if (before < k && k <= before + own) {  // one thread
    int bin = first;
    while ((before += p.histogram[bin]) < k) ++bin;  // fault: kth_bin
    gpu::store_shared(shared, static_cast<uint32_t>(bin));
  }
  gpu::sync_block();
  return static_cast<int>(gpu::load_shared(shared));
}

ATTFC_KERNEL(kThreads, 2) collect_oldest_kernel(const EnqueueParameters p) {
  gpu::SharedArena arena;
  int64_t* shared = arena.take<int64_t>(kWarps);
  Ranks ranks(arena);
  uint32_t* shared_bin = arena.take<uint32_t>(1);
  const uint32_t waiting = p.state->waiting;
  if (waiting == 0) return;  // the whole grid
  const int64_t least = least_stamp(p, shared);
  const int last_bin = bin_of_kth(p, waiting, ranks, shared_bin);
  for_slots(p, gpu::block_index_x(), [&](int64_t slot) {
    const int64_t stamp = p.stamps[slot];
    if (stamp_bin(stamp, least) > last_bin) return;
    const uint32_t at = gpu::atomic_add(&p.state->candidates, 1u);  // fault: list_place
    p.candidate_stamp[at] = stamp;
    p.candidate_slot[at] = static_cast<int32_t>(slot);
  });
}

ATTFC_DEVICE void take_slot(const EnqueueParameters& p, int32_t slot, int32_t row) {
  const int64_t label = p.new_labels[row];
  p.labels[slot] = label;
  p.stamps[slot] = p.state->clock + row;  // fault: new_stamp
  p.slot_of_class[label] = slot;
  p.slot_of_row[row] = slot;
}

ATTFC_KERNEL(kHandOutThreads, 4) hand_out_kernel(const EnqueueParameters p) {
  int64_t* stamps = gpu::SharedArena{}.take<int64_t>(kHandOutThreads);
  const uint32_t waiting = p.state->waiting, count = waiting == 0 ? 0 : p.state->candidates;
  const unsigned thread = gpu::thread_index(), blocks = p.scan_blocks;
  for (uint32_t first = gpu::block_index_x() * kHandOutThreads; first < count; first += blocks * kHandOutThreads) {
    const uint32_t own = first + thread;
    const int64_t stamp = own < count ? p.candidate_stamp[own] : kHighest;
    uint32_t older = 0;
    for (uint32_t other = 0; other < count; other += kHandOutThreads) {
      gpu::sync_block();  // fault: list_barrier
      gpu::store_shared(stamps + thread, other + thread < count ? p.candidate_stamp[other + thread] : kHighest);
      gpu::sync_block();
      ATTFC_UNROLL_BY_4
      for (int i = 0; i < kHandOutThreads; ++i) older += gpu::load_shared(stamps + i) < stamp ? 1 : 0;
    }
    if (own < count && older < waiting) take_slot(p, p.candidate_slot[own], p.waiting_rows[older]);  // fault: hand_out
  }
}

ATTFC_KERNEL(kScatterWarps* gpu::kWarpSize, 1) scatter_kernel(const EnqueueParameters p) {
  const unsigned thread = gpu::thread_index();
  const int64_t row = static_cast<int64_t>(gpu::block_index_x()) * kScatterWarps + thread / gpu::kWarpSize;
  if (row >= p.rows || p.slot_of_row[row] < 0) return;  // fault: scatter_rows
  const float* center = static_cast<const float*>(p.new_centers) + row * p.dim;
  const int64_t first = static_cast<int64_t>(p.slot_of_row[row]) * p.dim;
  ATTFC_UNROLL_BY_4
  for (int d = static_cast<int>(thread % gpu::kWarpSize); d < p.dim; d += gpu::kWarpSize) {
    store_element(p.container_dtype, p.centers, first + d, center[d]);
  }
}

unsigned divide_up(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// The pieces of the workspace, one after the other; null: to be counted only.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += (sizeof(T) * static_cast<size_t>(count) + 15) / 16 * 16;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

EnqueueParameters lay_out(const EnqueueArguments& arguments, Workspace& workspace) {
  EnqueueParameters p{};
  static_cast<EnqueueArguments&>(p) = arguments;
  p.slot_of_row = workspace.take<int32_t>(p.rows);
  if (p.stamps == nullptr) return p;
  const unsigned blocks = divide_up(p.slots, kThreads * kStampsPerThread);
  p.scan_blocks = blocks < kThreads ? blocks : kThreads;  // a bound of each block to a thread
  p.state = workspace.take<RefreshState>(1);
  p.waiting_rows = workspace.take<int32_t>(p.rows);
  p.table.size = label_table_size(p.rows);
  p.table.keys = workspace.take<int64_t>(p.table.size);
  p.last_row = workspace.take<int32_t>(p.table.size);
  p.histogram = workspace.take<uint32_t>(kStampBins);
  p.least_of_block = workspace.take<int64_t>(p.scan_blocks);
  p.candidate_stamp = workspace.take<int64_t>(p.slots);
  p.candidate_slot = workspace.take<int32_t>(p.slots);
  return p;
}

const char* launch_refresh_plan(const EnqueueParameters& p, void* stream) {
  constexpr size_t kBoundBytes = sizeof(int64_t) * kWarps;
  const auto launch = [&](auto kernel, unsigned blocks, size_t shared_bytes) {
    return gpu::launch(kernel, gpu::Grid{blocks, 1}, kThreads, shared_bytes, stream, p);
  };
  const char* error = launch(refresh_plan_kernel, 1 + p.scan_blocks, kBoundBytes + Ranks::kBytes);
  if (error == nullptr) {
    error = launch(stamp_histogram_kernel, p.scan_blocks, kBoundBytes + sizeof(uint32_t) * kStampBins);
  }
  if (error == nullptr) {
    error = launch(collect_oldest_kernel, p.scan_blocks, kBoundBytes + Ranks::kBytes + sizeof(uint32_t));
  }
  if (error != nullptr) return error;
  EnqueueParameters list = p;
  const unsigned blocks = divide_up(p.slots, kHandOutThreads);
  list.scan_blocks = blocks < kMaxHandOutBlocks ? blocks : kMaxHandOutBlocks;
  return gpu::launch(hand_out_kernel, gpu::Grid{list.scan_blocks, 1}, kHandOutThreads,
                     sizeof(int64_t) * kHandOutThreads, stream, list);
}

}  // namespace

const char* why_not(const EnqueueArguments& p) {
  if (p.container_dtype == Dtype::kFloat64) return "it takes float32 and 16-bit floats, not float64";
  if (p.slots > INT32_MAX) return "it takes at most 2^31 - 1 slots";
  if (p.rows > p.slots) return "it takes at most as many rows as there are slots";
  if (p.rows > INT32_MAX / 4) return "it takes at most 2^29 - 1 rows";
  return nullptr;
}

size_t enqueue_workspace_bytes(const EnqueueArguments& arguments) {
  Workspace workspace(nullptr);
  lay_out(arguments, workspace);
  return workspace.used();
}

const char* launch_enqueue(const EnqueueArguments& arguments, void* workspace, void* stream) {
  if (const char* reason = why_not(arguments)) return reason;
  if (arguments.rows == 0) return nullptr;
  Workspace pieces(workspace);
  const EnqueueParameters p = lay_out(arguments, pieces);
  const char* error = p.stamps != nullptr
                          ? launch_refresh_plan(p, stream)
                          : gpu::launch(fifo_plan_kernel, gpu::Grid{1, 1}, kThreads, Ranks::kBytes, stream, p);
  if (error != nullptr) return error;
  return gpu::launch(scatter_kernel, gpu::Grid{divide_up(p.rows, kScatterWarps), 1}, kScatterWarps * gpu::kWarpSize, 0,
                     stream, p);
}

}  // namespace attfc::cuda
