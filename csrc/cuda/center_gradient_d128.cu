// The centre gradient kernel at D = 128.
#include "center_gradient_instance.h"

namespace attfc::cuda {

ATTFC_INSTANTIATE_CENTER_GRADIENT(CenterGradientD128)

}  // namespace attfc::cuda
