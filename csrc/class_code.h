// Class codes: the fixed random direction of a class, from its number alone (attfc_cuda/heads/class_codes.py).
#pragma once

#include <cstdint>

#include "modulation.h"

namespace attfc {

// The sign, +1 or -1, of entry d of the code of class `number`: the last bit of splitmix64's finalizer. The entries of
// the unit vector are sign * dim^-0.5.
ATTFC_HOST_DEVICE int class_code_sign(int64_t number, int dim, int d) {
  uint64_t x = static_cast<uint64_t>(number) * static_cast<uint64_t>(dim) + static_cast<uint64_t>(d);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return 1 - 2 * static_cast<int>((x ^ (x >> 31)) & 1);
}

}  // namespace attfc
