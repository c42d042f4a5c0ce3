// The AdaSin margin around the sweep on a GPU: one launch before it, one after it, float32. Knows no torch. head_step.h
// says what they compute; t stays on the device.
//
// No synchronisation, no allocation: capturable in a CUDA graph. Two runs give the same bits. Rows with a label below 0
// are ignored whatever they hold: no share in t or the loss, weights 0.
#pragma once

#include "../head_step.h"

namespace attfc::cuda {

// nullptr, or what went wrong: numbers that are double are refused.
const char* launch_adasin_row_values(const AdaSinRowValuesArguments& arguments, void* stream);
const char* launch_adasin_loss(const AdaSinLossArguments& arguments, void* stream);

}  // namespace attfc::cuda
