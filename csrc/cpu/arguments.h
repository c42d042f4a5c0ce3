// What both kernels of the CPU read, and how they are run. Knows no torch; csrc/ops fills it in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "../sweep_inputs.h"

namespace attfc::cpu {

// Runs body(0) ... body(count - 1), in any order and on any threads.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

constexpr size_t kMaxWorkspaceBytes = size_t{32} << 20;

}  // namespace attfc::cpu
