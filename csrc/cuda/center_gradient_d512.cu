// The centre gradient kernel at D = 512.
#include "center_gradient_instance.h"

namespace attfc::cuda {

ATTFC_INSTANTIATE_CENTER_GRADIENT(CenterGradientD512)
ATTFC_INSTANTIATE_CENTER_GRADIENT(CenterGradientD512Wide)
ATTFC_INSTANTIATE_CENTER_GRADIENT(CenterGradientD512Compact)

}  // namespace attfc::cuda
