// Which labels a batch holds, asked once for each slot of the container: a filter of 8 KiB answers nearly all of
// them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace attfc::cpu {

class LabelsOfBatch {
 public:
  // Labels below 0 are left out.
  LabelsOfBatch(const int64_t* labels, int64_t count) : filter_(kFilterBits / 64) {
    for (int64_t i = 0; i < count; ++i) {
      if (labels[i] < 0) continue;
      sorted_.push_back(labels[i]);
      const uint64_t bit = filter_bit(labels[i]);
      filter_[bit / 64] |= uint64_t{1} << bit % 64;
    }
    std::sort(sorted_.begin(), sorted_.end());
  }

  // How many of the batch's rows have this label.
  int64_t count(int64_t label) const {
    const uint64_t bit = filter_bit(label);
    if ((filter_[bit / 64] >> bit % 64 & 1) == 0) return 0;
    const auto [first, last] = std::equal_range(sorted_.begin(), sorted_.end(), label);
    return last - first;
  }

 private:
  static constexpr uint64_t kFilterBits = uint64_t{1} << 16;
  static uint64_t filter_bit(int64_t label) { return static_cast<uint64_t>(label) * 0x9E3779B97F4A7C15u >> 48; }

  std::vector<uint64_t> filter_;
  std::vector<int64_t> sorted_;
};

}  // namespace attfc::cpu
