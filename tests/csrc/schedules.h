// One case of a host-run kernel under several thread schedules, whose results must be the same bits. ATTFC_SEEDS
// (environment) says how many schedules, ATTFC_SMALL leaves the larger shapes out (for the sanitizers, which are slow).
#pragma once

#include <cstring>

#include "csrc/cuda/gpu/gpu.h"
#include "testing.h"

namespace attfc::testing {

inline int seeds() {
  const char* wanted = std::getenv("ATTFC_SEEDS");
  return wanted != nullptr ? std::atoi(wanted) : 2;
}

inline bool small_only() { return std::getenv("ATTFC_SMALL") != nullptr; }

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Runs under every schedule, demands no bank conflicts, checks the first result against the oracle and the others
// against the first; returns it. Counters are those of the last run.
template <class Run, class Check, class Same>
auto under_schedules(int shared_bytes, Run run, Check check, Same same) {
  decltype(run()) first;
  for (int seed = 0; seed < seeds(); ++seed) {
    gpu::host::options.seed = static_cast<uint64_t>(seed);
    gpu::host::options.shared_limit = static_cast<size_t>(shared_bytes);
    gpu::host::counters = {};
    const auto result = run();
    CHECK(gpu::host::counters.bank_conflicts == 0, "%lld bank conflicts", gpu::host::counters.bank_conflicts);
    if (seed == 0) {
      check(result);
      first = result;
    } else {
      CHECK(same(first, result), "schedule %d gives other bits than schedule 0", seed);
    }
  }
  return first;
}

}  // namespace attfc::testing
