// A case of the sweep, run on the host and held to plain float64 loops, under each of several thread schedules, whose
// results must be the same bits.
#pragma once

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

}  // namespace attfc::testing
