// The steps of a head around the sweep on the CPU: interface; ../head_step.h says what each does. Knows no torch;
// csrc/ops calls it. Results do not depend on the number of threads.
#pragma once

#include "../head_step.h"
#include "arguments.h"

namespace attfc::cpu {

// Vectorised (head_rows_isa.h), a few rows a task.
size_t head_rows_workspace_bytes(const HeadRowsArguments& arguments);
void head_rows(const HeadRowsArguments& arguments, const ParallelFor& parallel_for, void* workspace);
size_t row_gradients_workspace_bytes(const RowGradientArguments& arguments);
void row_gradients(const RowGradientArguments& arguments, const ParallelFor& parallel_for, void* workspace);
// The centres of an enqueue into their slots [rows], none below 0.
void write_slots(const EnqueueArguments& arguments, const int64_t* slots, const ParallelFor& parallel_for);

// enqueue.cpp
void enqueue(const EnqueueArguments& arguments, const ParallelFor& parallel_for);

// adasin.cpp
void adasin_row_values(const AdaSinRowValuesArguments& arguments);
void adasin_loss(const AdaSinLossArguments& arguments);

// statistics.cpp
void step_statistics(const StepStatisticsArguments& arguments, const ParallelFor& parallel_for);

}  // namespace attfc::cpu
