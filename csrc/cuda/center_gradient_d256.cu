// The centre gradient kernel at D = 256.
#include "center_gradient_instance.h"

namespace attfc::cuda {

ATTFC_INSTANTIATE_CENTER_GRADIENT(CenterGradientD256)
ATTFC_INSTANTIATE_CENTER_GRADIENT(CenterGradientD256Compact)

}  // namespace attfc::cuda
