// A case of the sweep, run on the host and held to plain float64 loops, under each of several thread schedules, whose
// results must be the same bits.
#pragma once

#include <initializer_list>
#include <string>

#include "schedules.h"
#include "sweep_oracle.h"

namespace attfc::testing {

// The first result; counters are those of the last run.
inline SweepResult check_case(const SweepCase& c, const SweepData& data) {
  return under_schedules(
      c.shared_bytes, [&] { return run_sweep(c, data); },
      [&](const SweepResult& result) { check_against_oracle(c, data, result); },
      [](const SweepResult& a, const SweepResult& b) {
        return same_bits(a.lse, b.lse) && same_bits(a.grad, b.grad) && same_bits(a.moments, b.moments) &&
               same_bits(a.omitted, b.omitted) && same_bits(a.max_cosine, b.max_cosine) &&
               same_bits(a.hard_count, b.hard_count);
      });
}

using Check = SweepResult (*)(const SweepCase&, const SweepData&);

inline void add_sweep(const std::string& name, const SweepCase& c, Check check = check_case) {
  add_case(name, [c, check] { check(c, make_data(c)); });
}

// In both formats.
inline void add_sweep_dtypes(const std::string& name, SweepCase c, Check check = check_case) {
  c.dtype = Dtype::kBFloat16;
  add_sweep(name + ".bf16", c, check);
  c.dtype = Dtype::kFloat16;
  add_sweep(name + ".fp16", c, check);
}

// With every pair of rows and centres; the large ones are left out where small_only().
inline void add_sweep_shapes(SweepCase c, std::initializer_list<int64_t> rows, std::initializer_list<int64_t> centers,
                             int64_t most_when_small, Check check = check_case) {
  for (const int64_t each : rows) {
    for (const int64_t count : centers) {
      if (small_only() && each * count > most_when_small) continue;
      c.rows = each;
      c.centers = count;
      c.data_seed = static_cast<uint64_t>(each * 1000 + count);
      add_sweep("shape." + std::to_string(each) + "x" + std::to_string(count), c, check);
    }
  }
}

}  // namespace attfc::testing
