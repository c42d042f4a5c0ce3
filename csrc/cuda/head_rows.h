// The rows of a head step on a GPU: before the sweep their units, class centres and cosines; in the backward pass their
// gradients. One launch each, float32. Knows no torch. head_step.h says what they compute.
//
// No synchronisation, no allocation: capturable in a CUDA graph. Two runs give the same bits. A NaN in a row that
// counts reaches its unit, its centre and its cosine, and no other row.
#pragma once

#include "../head_step.h"

namespace attfc::cuda {

// nullptr, or why the kernels cannot take it.
const char* why_not(const HeadRowsArguments& arguments);
const char* why_not(const RowGradientArguments& arguments);

// nullptr, or why_not()'s reason, or what went wrong.
const char* launch_head_rows(const HeadRowsArguments& arguments, void* stream);
const char* launch_row_gradients(const RowGradientArguments& arguments, void* stream);

}  // namespace attfc::cuda
