// The sweep kernel at D = 128.
#include "sweep_instance.h"

namespace attfc::cuda {

ATTFC_INSTANTIATE_SWEEP(SweepD128)

}  // namespace attfc::cuda
