// The steps of an AttFC head around the sweep, as arguments: the same for the kernels of cpu/ and cuda/. Knows no
// torch; csrc/ops fills them in.
//
//     head rows         x -> u = x / |x|, the class centre g of each row, cos theta = u . g
//     enqueue           the step's centres enter the container
//     AdaSin row values t moves; threshold, target logit and Phi of each row: the sweep's row_values
//     (the sweep)
//     AdaSin loss       T with or without hard negatives; loss and its derivatives by lse and cos theta
//     row gradients     d objective / d x, through the normalisation
//     step statistics   what the head reports
//
// "real" is float, or double where the container is Dtype::kFloat64 (then embeddings, gallery and extra centres are so
// too). Strides are in elements; what has none is contiguous. A row counts where its label is at least 0; others are
// ignored whatever they hold.
#pragma once

#include <cstdint>

#include "sweep_inputs.h"

namespace attfc {

// A row shorter than this has no direction (attfc_cuda/functional.py).
constexpr double kShortestRow = 1e-6;

// For each row b of embeddings, with unit(v) = v / |v|, 0 where |v| < kShortestRow:
//     u = unit(x)
//     a = softmax_k(u . G_k / |G_k| / temperature);  g = (sum_k a_k G_k) / |sum_k a_k G_k|
//     g <- unit(g + class_code code(class))                                  where class_code > 0
//     g <- unit(g + center_memory (stored centre of the class - g))          where center_memory > 0 and it is held
// Extra rows start from g = unit(extra). Functional form: attfc_cuda/functional.py (generate_class_centers),
// attfc_cuda/heads/class_codes.py.
struct HeadRowsArguments {
  int64_t rows, extra_rows, gallery_size;
  int dim;
  int64_t num_classes;  // a label at or above does not count
  Dtype embedding_dtype, gallery_dtype, extra_dtype, container_dtype;
  const void* embeddings;  // [rows, dim]
  int64_t embedding_stride;
  const int64_t* labels;        // [rows]
  const void* gallery;          // [rows, gallery_size, dim]
  const void* extra_centers;    // [extra_rows, dim]
  const int64_t* extra_labels;  // [extra_rows]
  double temperature, class_code, center_memory;
  const int64_t* code_of_class;  // [num_classes], the number whose code a class has, or null: its own
  // Read where center_memory > 0 only.
  const void* stored_centers;  // [slots, dim] of container_dtype
  int64_t stored_stride;
  const int64_t* slot_labels;    // [slots]
  const int32_t* slot_of_class;  // [num_classes + 1]; the slot holds the class only where its label agrees

  void* units;          // [rows, dim] of container_dtype; 0 in a row that does not count
  void* inverse_norm;   // [rows] real, 1 / |x|; 0 for a row that is too short or does not count
  void* cosine;         // [rows] real; 0 in a row that does not count
  int64_t* row_labels;  // [rows], -1 where the row does not count
  void* new_centers;    // [extra_rows + rows, dim] real, extra rows first; 0 in a row that does not count
  int64_t* new_labels;  // [extra_rows + rows], -1 where the row does not count or is not finite in container_dtype
};

// The container (attfc_cuda/heads/container.py) and the rows that enter it. Rows with a label of -1 write nothing;
// those written must be finite. At most `slots` rows.
struct EnqueueArguments {
  int64_t rows, slots;
  int dim;
  Dtype container_dtype;
  const void* new_centers;    // [rows, dim] real
  const int64_t* new_labels;  // [rows], below num_classes
  void* centers;              // [slots, dim] of container_dtype
  int64_t* labels;            // [slots], -1: empty
  int64_t* clock;             // one number: rows written (fifo), rows offered (refresh)
  // Null: policy fifo, row k of those written goes to slot (clock + k) % slots.
  // Else policy refresh: the last row of each class is written, into the class's own slot, else (the k-th such row)
  // into the slot whose stamp is the k-th smallest after the rows with a slot of their own have got theirs, clock +
  // row.
  int64_t* stamps;         // [slots], all different
  int32_t* slot_of_class;  // [num_classes + 1]
  int64_t num_classes;
};

struct AdaSinSettings {
  double margin_rad, difficulty_weight, momentum, scale;
  bool half_angle;        // D(theta) = sin(theta / 2), else sin theta
  bool straight_through;  // dT / dcos = 1
};

// t <- momentum t + (1 - momentum) mean(cos theta) over the rows that count and are finite, where move_t and there are
// any; Phi = t + h D(theta). threshold = psi(theta + m), target logit = scale psi(theta + m), lin = Phi, quad = const =
// 0.
struct AdaSinRowValuesArguments {
  AdaSinSettings settings;
  bool move_t;  // a training step
  bool is_double;
  int64_t rows;
  const int64_t* labels;
  const void* cosine;  // [rows] real
  float* t;            // one number
  void* row_values;    // [kNumRowValues, rows] real
};

// T = psi(theta + Phi m) in a row with a hard negative, else psi(theta + m); loss = mean softplus(lse - scale T).
struct AdaSinLossArguments {
  AdaSinSettings settings;
  bool is_double;
  int64_t rows;
  const int64_t* labels;
  const void *cosine, *lse;  // [rows] real
  const void* row_values;    // [kNumRowValues, rows] real
  const int64_t* hard_count;
  void* loss;           // one real: the mean over the rows that count, 0 without any
  void* row_loss;       // [rows] real
  void* target_logit;   // [rows] real, scale T
  void* lse_weight;     // [rows] real, d loss / d lse
  void* cosine_weight;  // [rows] real, d loss / d cos theta
};

// grad_x = upstream (v - (v . u) u) / |x| with v = lse_weight unit_grad + cosine_weight g; 0 in a row that does not
// count.
struct RowGradientArguments {
  int64_t rows;
  int dim;
  Dtype embedding_dtype;
  const int64_t* labels;
  const void* embeddings;
  int64_t embedding_stride;
  const void* centers;       // [rows, dim] real
  const void* inverse_norm;  // [rows] real, as are the next two
  const void *lse_weight, *cosine_weight;
  const void* unit_grad;  // [rows, dim] real, the sweep's
  const void* upstream;   // one real, d objective / d loss
  void* grad;             // [rows, dim] of embedding_dtype
};

enum StepMean { kLoss, kPositiveCosine, kHardFraction, kContainerTop1, kOmittedMass, kT, kNumStepMeans };
enum StepCount { kFill, kStepRows, kNumStepCounts };

// What a head reports of a step (attfc_cuda/heads/statistics.py): means over the rows that count; hard negatives over
// valid negatives; filled slots; rows that count, extra ones included.
struct StepStatisticsArguments {
  bool is_double;
  int64_t rows, extra_rows, slots;
  const int64_t* labels;                                  // [rows]
  const int64_t* extra_labels;                            // [extra_rows]
  const int64_t* slot_labels;                             // [slots]
  const void *loss, *cosine, *max_cosine, *omitted_mass;  // one real; [rows] real
  const int64_t* hard_count;
  const float* t;   // one number, or null: 0
  void* means;      // [kNumStepMeans] real
  int64_t* counts;  // [kNumStepCounts]
};

}  // namespace attfc
