// The sweep kernel at D = 256.
#include "sweep_instance.h"

namespace attfc::cuda {

ATTFC_INSTANTIATE_SWEEP(SweepD256)
ATTFC_INSTANTIATE_SWEEP(SweepD256Compact)

}  // namespace attfc::cuda
