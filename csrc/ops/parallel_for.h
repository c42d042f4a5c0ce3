// csrc/cpu's ParallelFor on torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include "../cpu/arguments.h"

namespace attfc {

inline void parallel_for_torch(int64_t count, const std::function<void(int64_t)>& body) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace attfc
