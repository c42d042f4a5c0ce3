// A step's centres enter the container (../head_step.h). With "refresh" the slots of the longest unrefreshed classes
// are found in three passes over the stamps: the smallest stamp, a histogram from it
// on, and the slots of its first bins.
#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include "head_step.h"

namespace attfc::cpu {
namespace {

using StampedSlot = std::pair<int64_t, int64_t>;

// The slots of the `count` smallest stamps, in their order. All stamps are different and below `end`.
std::vector<int64_t> oldest_slots(const int64_t* stamps, int64_t slots, int64_t count, int64_t end) {
  constexpr int64_t kBins = 4096;
  if (count == 0) return {};
  const int64_t first = *std::min_element(stamps, stamps + slots), width = (end - first) / kBins + 1;
  std::vector<int64_t> histogram(kBins);
  for (int64_t slot = 0; slot < slots; ++slot) ++histogram[static_cast<size_t>((stamps[slot] - first) / width)];
  int64_t bins = 0;
  for (int64_t seen = 0; seen < count; ++bins) seen += histogram[static_cast<size_t>(bins)];
  std::vector<StampedSlot> candidates;
  const int64_t bound = first + bins * width;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (stamps[slot] < bound) candidates.emplace_back(stamps[slot], slot);
  }
  std::partial_sort(candidates.begin(), candidates.begin() + count, candidates.end());
  std::vector<int64_t> oldest;
  for (int64_t i = 0; i < count; ++i) oldest.push_back(candidates[static_cast<size_t>(i)].second);
  return oldest;
}

// The slot of each row, -1 for rows that write nothing; the state but for the centres moves.
std::vector<int64_t> fifo_slots(const EnqueueArguments& p) {
  std::vector<int64_t> slots(static_cast<size_t>(p.rows), -1);
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.new_labels[row] >= 0) slots[static_cast<size_t>(row)] = (*p.clock)++ % p.slots;
  }
  return slots;
}

std::vector<int64_t> refresh_slots(const EnqueueArguments& p) {
  std::vector<int64_t> slots(static_cast<size_t>(p.rows), -1), homeless;
  std::unordered_map<int64_t, int64_t> last_row;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.new_labels[row] >= 0) last_row[p.new_labels[row]] = row;
  }
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t label = p.new_labels[row];
    if (label < 0 || last_row[label] != row) continue;
    const int64_t own = p.slot_of_class[label];
    if (own >= 0 && p.labels[own] == label) {  // an evicted class's entry is left standing
      slots[static_cast<size_t>(row)] = own;
      p.stamps[own] = *p.clock + row;
    } else {
      homeless.push_back(row);
    }
  }
  const std::vector<int64_t> oldest =
      oldest_slots(p.stamps, p.slots, static_cast<int64_t>(homeless.size()), *p.clock + p.rows);
  for (size_t i = 0; i < homeless.size(); ++i) {
    const int64_t row = homeless[i];
    slots[static_cast<size_t>(row)] = oldest[i];
    p.stamps[oldest[i]] = *p.clock + row;
    p.slot_of_class[p.new_labels[row]] = static_cast<int32_t>(oldest[i]);
  }
  *p.clock += p.rows;
  return slots;
}

}  // namespace

void enqueue(const EnqueueArguments& p, const ParallelFor& parallel_for) {
  const std::vector<int64_t> slots = p.stamps != nullptr ? refresh_slots(p) : fifo_slots(p);
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t slot = slots[static_cast<size_t>(row)];
    if (slot >= 0) p.labels[slot] = p.new_labels[row];
  }
  write_slots(p, slots.data(), parallel_for);
}

}  // namespace attfc::cpu
