// The container's enqueue on a GPU: two launches for fifo, five for refresh. Knows no torch. head_step.h and
// attfc_cuda/heads/container.py say what is written where; the two agree to the bit.
//
// No synchronisation, no allocation: capturable in a CUDA graph. Two runs give the same bits.
#pragma once

#include "../head_step.h"

namespace attfc::cuda {

// nullptr, or why the kernels cannot take it.
const char* why_not(const EnqueueArguments& arguments);

// Of the workspace, whose content does not matter; it must be aligned to 16 bytes.
size_t enqueue_workspace_bytes(const EnqueueArguments& arguments);

// nullptr, or why_not()'s reason, or what went wrong.
const char* launch_enqueue(const EnqueueArguments& arguments, void* workspace, void* stream);

}  // namespace attfc::cuda
