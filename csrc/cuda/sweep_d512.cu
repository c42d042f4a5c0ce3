// The sweep kernel at D = 512.
#include "sweep_instance.h"

namespace attfc::cuda {

ATTFC_INSTANTIATE_SWEEP(SweepD512)
ATTFC_INSTANTIATE_SWEEP(SweepD512Wide)
ATTFC_INSTANTIATE_SWEEP(SweepD512Compact)

}  // namespace attfc::cuda
