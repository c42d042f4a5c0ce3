// The statistics kernel (statistics.h): many blocks, each a share of the slots. A block puts the rows' labels into a
// table in shared memory, at most kTableRows at a time, and looks each of its slots up: no comparison of B x S, and the
// slots' labels are read once, 8 S bytes, which is what bounds it at S 1M. Counts are added as integers, in any order;
// the block that ends last makes the means, in the order of the rows. 256 threads; shared memory: the table, 12 bytes
// an entry (48 KiB at most), and sums.
#include "statistics.h"

#include "block_sums.h"
#include "label_table.h"

namespace attfc::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kSlotsPerThread = 8, kMaxBlocks = 512;
constexpr int64_t kTableRows = 2048;

struct Totals {
  int64_t fill, own_pairs;
  uint32_t blocks_done, unused;
};
static_assert(sizeof(Totals) == kStepStatisticsWorkspaceBytes);

struct StatisticsParameters : StepStatisticsArguments {
  Totals* totals;
  unsigned blocks;
  int table_size;
};

using CountSums = BlockSums<int64_t, 4, kThreads>;
using MeanSums = BlockSums<float, 2, kThreads>;

// The slots of this block: filled ones, and (row, slot) pairs of one class for rows first .. first + kTableRows.
ATTFC_DEVICE void count_slots(const StatisticsParameters& p, const LabelTable& table, uint32_t* counts, int64_t first,
                              int64_t& fill, int64_t& own_pairs) {
  const int thread = static_cast<int>(gpu::thread_index());
  for (int at = thread; at < table.size; at += kThreads) {
    gpu::store_shared(table.keys + at, kNoLabel);
    gpu::store_shared(counts + at, 0u);
  }
  gpu::sync_block();
  for (int64_t row = first + thread; row < p.rows && row < first + kTableRows; row += kThreads) {
    if (p.labels[row] >= 0) gpu::atomic_add(counts + table.insert(p.labels[row]), 1u);  // fault: repeated_labels
  }
  gpu::sync_block();  // fault: table_barrier
  const int64_t step = static_cast<int64_t>(p.blocks) * kThreads;
  ATTFC_UNROLL_BY_4
  for (int64_t slot = static_cast<int64_t>(gpu::block_index_x()) * kThreads + thread; slot < p.slots; slot += step) {
    const int64_t label = p.slot_labels[slot];
    if (label < 0) continue;
    fill += first == 0 ? 1 : 0;  // fault: fill_once
    const int at = table.find(label);
    if (at >= 0) own_pairs += counts[at];
  }
  gpu::sync_block();  // the table may be emptied again
}

ATTFC_DEVICE void write_results(const StatisticsParameters& p, CountSums& count_sums, MeanSums& mean_sums) {
  const float *cosine = static_cast<const float*>(p.cosine), *max_cosine = static_cast<const float*>(p.max_cosine);
  const float* omitted = static_cast<const float*>(p.omitted_mass);
  int64_t counts[4] = {0, 0, 0, 0};  // rows, extra rows, hard negatives, rows ahead of all their negatives
  float sums[2] = {0, 0};            // cosine, omitted mass
  for (int64_t row = gpu::thread_index(); row < p.rows; row += kThreads) {
    if (p.labels[row] < 0) continue;  // fault: statistics_rows
    counts[0] += 1;
    counts[2] += p.hard_count[row];
    counts[3] += cosine[row] > max_cosine[row] ? 1 : 0;
    sums[0] += cosine[row];
    sums[1] += omitted[row];
  }
  for (int64_t row = gpu::thread_index(); row < p.extra_rows; row += kThreads) counts[1] += p.extra_labels[row] >= 0;
  count_sums.add(counts);
  mean_sums.add(sums);
  if (gpu::thread_index() != 0) return;
  const int64_t pairs = counts[0] * p.totals->fill - p.totals->own_pairs;  // fault: valid_pairs
  const float rows = static_cast<float>(counts[0] > 0 ? counts[0] : 1);
  float* means = static_cast<float*>(p.means);
  means[kLoss] = *static_cast<const float*>(p.loss);
  means[kPositiveCosine] = sums[0] / rows;
  means[kHardFraction] = static_cast<float>(counts[2]) / static_cast<float>(pairs > 0 ? pairs : 1);
  means[kContainerTop1] = static_cast<float>(counts[3]) / rows;
  means[kOmittedMass] = sums[1] / rows;
  means[kT] = p.t != nullptr ? *p.t : 0.0f;
  p.counts[kFill] = p.totals->fill;
  p.counts[kStepRows] = counts[0] + counts[1];
  *p.totals = {0, 0, 0, 0};  // fault: totals_end_zero
}

ATTFC_KERNEL(kThreads, 2) step_statistics_kernel(const StatisticsParameters p) {
  gpu::SharedArena arena;
  const LabelTable table{arena.take<int64_t>(p.table_size), p.table_size};
  CountSums count_sums(arena);
  uint32_t* counts = arena.take<uint32_t>(p.table_size);
  MeanSums mean_sums(arena);
  uint32_t* is_last = arena.take<uint32_t>(1);
  int64_t of_slots[4] = {0, 0, 0, 0};  // fill, own pairs
  int64_t first = 0;
  do {  // once without rows: slots are counted all the same
    count_slots(p, table, counts, first, of_slots[0], of_slots[1]);
    first += kTableRows;
  } while (first < p.rows);
  count_sums.add(of_slots);
  if (gpu::thread_index() == 0) {
    gpu::atomic_add(&p.totals->fill, of_slots[0]);
    gpu::atomic_add(&p.totals->own_pairs, of_slots[1]);
    gpu::store_shared(is_last, gpu::take_ticket(&p.totals->blocks_done) == p.blocks - 1 ? 1u : 0u);  // fault: ticket
  }
  gpu::sync_block();
  if (gpu::load_shared(is_last) != 0) write_results(p, count_sums, mean_sums);
}

}  // namespace

const char* launch_step_statistics(const StepStatisticsArguments& arguments, void* workspace, void* stream) {
  if (arguments.is_double) return "it takes float32, not float64";
  StatisticsParameters p{};
  static_cast<StepStatisticsArguments&>(p) = arguments;
  p.totals = static_cast<Totals*>(workspace);
  const int64_t share = kThreads * kSlotsPerThread, wanted = (p.slots + share - 1) / share;
  p.blocks = static_cast<unsigned>(wanted < 1 ? 1 : wanted > kMaxBlocks ? kMaxBlocks : wanted);
  p.table_size = label_table_size(p.rows < kTableRows ? p.rows : kTableRows);
  const size_t table_bytes = (sizeof(int64_t) + sizeof(uint32_t)) * static_cast<size_t>(p.table_size);
  const size_t shared_bytes = table_bytes + CountSums::kBytes + MeanSums::kBytes + sizeof(uint32_t);
  return gpu::launch(step_statistics_kernel, gpu::Grid{p.blocks, 1}, kThreads, shared_bytes, stream, p);
}

}  // namespace attfc::cuda
