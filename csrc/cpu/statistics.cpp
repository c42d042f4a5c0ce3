// What a head reports of a step (../head_step.h). One pass over the slots' labels; the rest is B numbers.
#include <algorithm>
#include <vector>

#include "head_step.h"
#include "labels_of_batch.h"

namespace attfc::cpu {
namespace {

constexpr int64_t kSlotsPerTask = 1 << 16;

struct SlotCounts {
  int64_t filled = 0, own_pairs = 0;
};

SlotCounts count_slots(const StepStatisticsArguments& p, const ParallelFor& parallel_for) {
  const LabelsOfBatch batch(p.labels, p.rows);
  const int64_t tasks = (p.slots + kSlotsPerTask - 1) / kSlotsPerTask;
  std::vector<SlotCounts> parts(static_cast<size_t>(tasks));
  parallel_for(tasks, [&](int64_t task) {
    SlotCounts part;
    const int64_t end = std::min(p.slots, (task + 1) * kSlotsPerTask);
    for (int64_t slot = task * kSlotsPerTask; slot < end; ++slot) {
      if (p.slot_labels[slot] < 0) continue;
      ++part.filled;
      part.own_pairs += batch.count(p.slot_labels[slot]);
    }
    parts[static_cast<size_t>(task)] = part;
  });
  SlotCounts all;
  for (const SlotCounts& part : parts) {
    all.filled += part.filled;
    all.own_pairs += part.own_pairs;
  }
  return all;
}

int64_t counting(const int64_t* labels, int64_t rows) {
  return std::count_if(labels, labels + rows, [](int64_t label) { return label >= 0; });
}

template <class Real>
void statistics(const StepStatisticsArguments& p, const ParallelFor& parallel_for) {
  const auto number = [](const void* values, int64_t row) { return static_cast<const Real*>(values)[row]; };
  const SlotCounts slots = count_slots(p, parallel_for);
  const int64_t rows = counting(p.labels, p.rows), pairs = rows * slots.filled - slots.own_pairs;
  double cosine = 0, omitted = 0;
  int64_t hard = 0, nearest = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.labels[row] < 0) continue;
    cosine += number(p.cosine, row);
    omitted += number(p.omitted_mass, row);
    hard += p.hard_count[row];
    nearest += number(p.cosine, row) > number(p.max_cosine, row);
  }
  const double share = 1.0 / static_cast<double>(std::max<int64_t>(rows, 1));
  Real* means = static_cast<Real*>(p.means);
  means[kLoss] = number(p.loss, 0);
  means[kPositiveCosine] = static_cast<Real>(cosine * share);
  means[kHardFraction] =
      static_cast<Real>(static_cast<double>(hard) / static_cast<double>(std::max<int64_t>(pairs, 1)));
  means[kContainerTop1] = static_cast<Real>(static_cast<double>(nearest) * share);
  means[kOmittedMass] = static_cast<Real>(omitted * share);
  means[kT] = p.t != nullptr ? static_cast<Real>(*p.t) : Real(0);
  p.counts[kFill] = slots.filled;
  p.counts[kStepRows] = rows + counting(p.extra_labels, p.extra_rows);
}

}  // namespace

void step_statistics(const StepStatisticsArguments& p, const ParallelFor& parallel_for) {
  if (p.is_double) {
    statistics<double>(p, parallel_for);
  } else {
    statistics<float>(p, parallel_for);
  }
}

}  // namespace attfc::cpu
