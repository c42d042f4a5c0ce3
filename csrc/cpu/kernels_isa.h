// All pieces of the CPU kernels in the order in which they build on each other. Included inside a kernels_<isa>.cpp,
// which sets the target, the vector width and the namespace attfc::cpu::<isa>.

#include "simd.h"
#include "operands.h"
#include "product.h"
#include "tile.h"
#include "row_panels.h"
#include "row_sums.h"
#include "sweep_isa.h"
#include "center_gradient_isa.h"
#include "head_rows_isa.h"
