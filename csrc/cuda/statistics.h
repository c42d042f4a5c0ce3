// What a head reports of a step, on a GPU: one launch, float32 and int64. Knows no torch. head_step.h says what is
// computed.
//
// No synchronisation, no allocation: capturable in a CUDA graph. Two runs give the same bits.
#pragma once

#include "../head_step.h"

namespace attfc::cuda {

// The workspace: zero when the launch begins and when it ends. Launches that share it must follow one another.
constexpr size_t kStepStatisticsWorkspaceBytes = 24;

// nullptr, or what went wrong: numbers that are double are refused.
const char* launch_step_statistics(const StepStatisticsArguments& arguments, void* workspace, void* stream);

}  // namespace attfc::cuda
