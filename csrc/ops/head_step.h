// The operators of a head step: schemas, checks, and how tensors become the arguments of ../head_step.h, once for both
// devices. Each function makes its outputs, fills in the arguments and hands them to `launch`.
// What each operator means: attfc_cuda/ops/head_step.py.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <limits>
#include <optional>
#include <tuple>

#include "../head_step.h"
#include "checks.h"
#include "operands.h"

namespace attfc {

constexpr const char* kHeadStepSchemas[] = {
    "head_rows(Tensor embeddings, Tensor labels, Tensor gallery, Tensor extra_centers, Tensor extra_labels, "
    "Tensor? code_of_class, Tensor? stored_centers, Tensor? slot_labels, Tensor? slot_of_class, "
    "ScalarType container_dtype, int num_classes, float temperature, float class_code, float center_memory) "
    "-> (Tensor units, Tensor inverse_norm, Tensor cosine, Tensor row_labels, Tensor new_centers, Tensor new_labels)",

    "enqueue_fifo(Tensor(a!) centers, Tensor(b!) labels, Tensor(c!) clock, Tensor new_centers, Tensor new_labels) "
    "-> ()",

    "enqueue_refresh(Tensor(a!) centers, Tensor(b!) labels, Tensor(c!) clock, Tensor(d!) stamps, "
    "Tensor(e!) slot_of_class, Tensor new_centers, Tensor new_labels) -> ()",

    "adasin_row_values(Tensor labels, Tensor cosine, Tensor(a!) t, float margin_rad, float difficulty_weight, "
    "float momentum, float scale, bool half_angle, bool move_t) -> Tensor",

    "adasin_loss(Tensor embeddings, Tensor unit_grad, Tensor inverse_norm, Tensor centers, Tensor labels, "
    "Tensor cosine, Tensor row_values, Tensor lse, Tensor hard_count, float margin_rad, float scale, "
    "bool straight_through) "
    "-> (Tensor loss, Tensor row_loss, Tensor target_logit, Tensor lse_weight, Tensor cosine_weight)",

    "row_gradients(Tensor upstream, Tensor embeddings, Tensor unit_grad, Tensor inverse_norm, Tensor centers, "
    "Tensor labels, Tensor lse_weight, Tensor cosine_weight) -> Tensor",

    "step_statistics(Tensor loss, Tensor labels, Tensor cosine, Tensor hard_count, Tensor max_cosine, "
    "Tensor omitted_mass, Tensor slot_labels, Tensor extra_labels, Tensor? t) -> (Tensor means, Tensor counts)",
};

namespace head_step {

inline at::ScalarType real_of(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

inline Dtype dtype_of(const char* op, const char* name, at::ScalarType dtype) {
  const std::optional<Dtype> known = kernel_dtype(dtype);
  TORCH_CHECK_TYPE(known.has_value(), op, ": ", name, " must be float32, float64, bfloat16 or float16, got ", dtype);
  return *known;
}

// A contiguous tensor of this shape, dtype and device, or an error.
inline at::Tensor dense(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                        at::IntArrayRef shape, at::Device device) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, op, ": ", name, " must have shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == device, op, ": ", name, " must be on ", device, ", got ", tensor.device());
  return tensor.contiguous();
}

// As dense, for a tensor that is written to: a copy would be lost.
inline at::Tensor in_place(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                           at::IntArrayRef shape, at::Device device) {
  TORCH_CHECK_VALUE(tensor.is_contiguous(), op, ": ", name, " must be contiguous, got strides ", tensor.strides());
  return dense(op, name, tensor, dtype, shape, device);
}

// [rows, dim] with a row stride, of any float dtype, or an error.
inline at::Tensor matrix(const char* op, const char* name, const at::Tensor& tensor, at::Device device) {
  check_matrix(op, name, tensor);
  TORCH_CHECK_VALUE(tensor.device() == device, op, ": ", name, " must be on ", device, ", got ", tensor.device());
  return with_contiguous_rows(tensor);
}

using HeadRows = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <class Launch>
HeadRows head_rows(const at::Tensor& embeddings, const at::Tensor& labels, const at::Tensor& gallery,
                   const at::Tensor& extra_centers, const at::Tensor& extra_labels,
                   const std::optional<at::Tensor>& code_of_class, const std::optional<at::Tensor>& stored_centers,
                   const std::optional<at::Tensor>& slot_labels, const std::optional<at::Tensor>& slot_of_class,
                   at::ScalarType container_dtype, int64_t num_classes, double temperature, double class_code,
                   double center_memory, const Launch& launch) {
  constexpr const char* kOp = "head_rows";
  const at::Device device = embeddings.device();
  const at::Tensor x = matrix(kOp, "embeddings", embeddings, device);
  const int64_t rows = x.size(0), dim = x.size(1), extra_rows = extra_labels.size(0);
  const int64_t total = extra_rows + rows;
  TORCH_CHECK_VALUE(gallery.dim() == 3 && gallery.size(1) > 0, kOp, ": gallery must have shape [", rows, ", r >= 1, ",
                    dim, "], got ", gallery.sizes());
  const at::Tensor y = dense(kOp, "labels", labels, at::kLong, {rows}, device),
                   images = dense(kOp, "gallery", gallery, gallery.scalar_type(), {rows, gallery.size(1), dim}, device),
                   extra = dense(kOp, "extra_centers", extra_centers, extra_centers.scalar_type(), {extra_rows, dim},
                                 device),
                   extra_y = dense(kOp, "extra_labels", extra_labels, at::kLong, {extra_rows}, device);
  const at::ScalarType real = real_of(container_dtype);
  for (const at::Tensor& input : {x, images, extra}) {
    TORCH_CHECK_TYPE(real_of(input.scalar_type()) == real, kOp, ": embeddings, gallery and extra_centers must be ",
                     "float64 beside a float64 container and not beside another, got ", input.scalar_type());
  }
  HeadRowsArguments arguments{};
  arguments.num_classes = num_classes < 0 ? std::numeric_limits<int64_t>::max() : num_classes;
  at::Tensor codes, stored, stored_labels, slots;
  if (class_code > 0 && code_of_class) {
    codes = dense(kOp, "code_of_class", *code_of_class, at::kLong, {num_classes}, device);
    arguments.code_of_class = codes.const_data_ptr<int64_t>();
  }
  if (center_memory > 0) {
    TORCH_CHECK_VALUE(stored_centers && slot_labels && slot_of_class, kOp,
                      ": stored_centers, slot_labels and slot_of_class must be given with center_memory, got none");
    stored = matrix(kOp, "stored_centers", *stored_centers, device);
    TORCH_CHECK_TYPE(stored.scalar_type() == container_dtype, kOp, ": stored_centers must be ", container_dtype,
                     ", got ", stored.scalar_type());
    TORCH_CHECK_VALUE(stored.size(1) == dim, kOp, ": stored_centers must have D = ", dim, " columns, got ",
                      stored.size(1));
    stored_labels = dense(kOp, "slot_labels", *slot_labels, at::kLong, {stored.size(0)}, device);
    slots = dense(kOp, "slot_of_class", *slot_of_class, at::kInt, {num_classes + 1}, device);
    arguments.stored_centers = stored.const_data_ptr();
    arguments.stored_stride = stored.stride(0);
    arguments.slot_labels = stored_labels.const_data_ptr<int64_t>();
    arguments.slot_of_class = slots.const_data_ptr<int32_t>();
  }
  const auto reals = x.options().dtype(real).memory_format(at::MemoryFormat::Contiguous);
  const auto whole = reals.dtype(at::kLong);
  at::Tensor units = at::empty({rows, dim}, reals.dtype(container_dtype)), inverse_norm = at::empty({rows}, reals),
             cosine = at::empty({rows}, reals), row_labels = at::empty({rows}, whole),
             new_centers = at::empty({total, dim}, reals), new_labels = at::empty({total}, whole);
  arguments.rows = rows;
  arguments.extra_rows = extra_rows;
  arguments.gallery_size = images.size(1);
  arguments.dim = static_cast<int>(dim);
  arguments.embedding_dtype = dtype_of(kOp, "embeddings", x.scalar_type());
  arguments.gallery_dtype = dtype_of(kOp, "gallery", images.scalar_type());
  arguments.extra_dtype = dtype_of(kOp, "extra_centers", extra.scalar_type());
  arguments.container_dtype = dtype_of(kOp, "container_dtype", container_dtype);
  arguments.embeddings = x.const_data_ptr();
  arguments.embedding_stride = x.stride(0);
  arguments.labels = y.const_data_ptr<int64_t>();
  arguments.gallery = images.const_data_ptr();
  arguments.extra_centers = extra.const_data_ptr();
  arguments.extra_labels = extra_y.const_data_ptr<int64_t>();
  arguments.temperature = temperature;
  arguments.class_code = class_code;
  arguments.center_memory = center_memory;
  arguments.units = units.mutable_data_ptr();
  arguments.inverse_norm = inverse_norm.mutable_data_ptr();
  arguments.cosine = cosine.mutable_data_ptr();
  arguments.row_labels = row_labels.mutable_data_ptr<int64_t>();
  arguments.new_centers = new_centers.mutable_data_ptr();
  arguments.new_labels = new_labels.mutable_data_ptr<int64_t>();
  launch(arguments);
  return {units, inverse_norm, cosine, row_labels, new_centers, new_labels};
}

// stamps and slot_of_class: those of a "refresh" container, or nothing.
template <class Launch>
void enqueue(const char* op, const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& clock,
             const std::optional<at::Tensor>& stamps, const std::optional<at::Tensor>& slot_of_class,
             const at::Tensor& new_centers, const at::Tensor& new_labels, const Launch& launch) {
  const at::Device device = centers.device();
  check_matrix(op, "centers", centers);
  const int64_t slots = centers.size(0), dim = centers.size(1), rows = new_labels.size(0);
  TORCH_CHECK_VALUE(rows <= slots, op, ": new_labels must have at most ", slots, " rows, as there are slots, got ",
                    rows);
  const at::Tensor stored = in_place(op, "centers", centers, centers.scalar_type(), {slots, dim}, device),
                   stored_labels = in_place(op, "labels", labels, at::kLong, {slots}, device),
                   rows_so_far = in_place(op, "clock", clock, at::kLong, {}, device),
                   entering =
                       dense(op, "new_centers", new_centers, real_of(centers.scalar_type()), {rows, dim}, device),
                   entering_labels = dense(op, "new_labels", new_labels, at::kLong, {rows}, device);
  EnqueueArguments arguments{};
  arguments.rows = rows;
  arguments.slots = slots;
  arguments.dim = static_cast<int>(dim);
  arguments.container_dtype = dtype_of(op, "centers", centers.scalar_type());
  arguments.new_centers = entering.const_data_ptr();
  arguments.new_labels = entering_labels.const_data_ptr<int64_t>();
  arguments.centers = stored.mutable_data_ptr();
  arguments.labels = stored_labels.mutable_data_ptr<int64_t>();
  arguments.clock = rows_so_far.mutable_data_ptr<int64_t>();
  if (stamps) {
    TORCH_CHECK_VALUE(slot_of_class && slot_of_class->dim() == 1 && slot_of_class->size(0) > 0, op,
                      ": slot_of_class must have shape [classes + 1]");
    arguments.num_classes = slot_of_class->size(0) - 1;
    arguments.stamps = in_place(op, "stamps", *stamps, at::kLong, {slots}, device).mutable_data_ptr<int64_t>();
    arguments.slot_of_class = in_place(op, "slot_of_class", *slot_of_class, at::kInt, slot_of_class->sizes(), device)
                                  .mutable_data_ptr<int32_t>();
  }
  if (rows > 0) launch(arguments);
}

template <class Launch>
at::Tensor adasin_row_values(const at::Tensor& labels, const at::Tensor& cosine, const at::Tensor& t, double margin_rad,
                             double difficulty_weight, double momentum, double scale, bool half_angle, bool move_t,
                             const Launch& launch) {
  constexpr const char* kOp = "adasin_row_values";
  const at::Device device = cosine.device();
  const at::ScalarType real = real_of(cosine.scalar_type());
  const int64_t rows = labels.size(0);
  const at::Tensor c = dense(kOp, "cosine", cosine, real, {rows}, device),
                   y = dense(kOp, "labels", labels, at::kLong, {rows}, device),
                   state = in_place(kOp, "t", t, at::kFloat, {}, device);
  at::Tensor row_values = at::empty({int64_t{kNumRowValues}, rows}, c.options());
  AdaSinRowValuesArguments arguments{};
  arguments.settings = {margin_rad, difficulty_weight, momentum, scale, half_angle, false};
  arguments.move_t = move_t;
  arguments.is_double = real == at::kDouble;
  arguments.rows = rows;
  arguments.labels = y.const_data_ptr<int64_t>();
  arguments.cosine = c.const_data_ptr();
  arguments.t = state.mutable_data_ptr<float>();
  arguments.row_values = row_values.mutable_data_ptr();
  if (rows > 0) launch(arguments);
  return row_values;
}

using AdaSinLoss = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <class Launch>
AdaSinLoss adasin_loss(const at::Tensor& labels, const at::Tensor& cosine, const at::Tensor& row_values,
                       const at::Tensor& lse, const at::Tensor& hard_count, double margin_rad, double scale,
                       bool straight_through, const Launch& launch) {
  constexpr const char* kOp = "adasin_loss";
  const at::Device device = cosine.device();
  const at::ScalarType real = real_of(cosine.scalar_type());
  const int64_t rows = labels.size(0);
  const at::Tensor c = dense(kOp, "cosine", cosine, real, {rows}, device),
                   y = dense(kOp, "labels", labels, at::kLong, {rows}, device),
                   table = dense(kOp, "row_values", row_values, real, {int64_t{kNumRowValues}, rows}, device),
                   sums = dense(kOp, "lse", lse, real, {rows}, device),
                   hard = dense(kOp, "hard_count", hard_count, at::kLong, {rows}, device);
  const auto row = [&] { return at::empty({rows}, c.options()); };
  at::Tensor loss = at::empty({}, c.options()), row_loss = row(), target_logit = row(), lse_weight = row(),
             cosine_weight = row();
  AdaSinLossArguments arguments{};
  arguments.settings = {margin_rad, 0, 0, scale, false, straight_through};
  arguments.is_double = real == at::kDouble;
  arguments.rows = rows;
  arguments.labels = y.const_data_ptr<int64_t>();
  arguments.cosine = c.const_data_ptr();
  arguments.lse = sums.const_data_ptr();
  arguments.row_values = table.const_data_ptr();
  arguments.hard_count = hard.const_data_ptr<int64_t>();
  arguments.loss = loss.mutable_data_ptr();
  arguments.row_loss = row_loss.mutable_data_ptr();
  arguments.target_logit = target_logit.mutable_data_ptr();
  arguments.lse_weight = lse_weight.mutable_data_ptr();
  arguments.cosine_weight = cosine_weight.mutable_data_ptr();
  launch(arguments);  // without rows too: the loss is 0 then
  return {loss, row_loss, target_logit, lse_weight, cosine_weight};
}

template <class Launch>
at::Tensor row_gradients(const at::Tensor& upstream, const at::Tensor& embeddings, const at::Tensor& unit_grad,
                         const at::Tensor& inverse_norm, const at::Tensor& centers, const at::Tensor& labels,
                         const at::Tensor& lse_weight, const at::Tensor& cosine_weight, const Launch& launch) {
  constexpr const char* kOp = "row_gradients";
  const at::Device device = embeddings.device();
  const at::Tensor x = matrix(kOp, "embeddings", embeddings, device);
  const int64_t rows = x.size(0), dim = x.size(1);
  const at::ScalarType real = real_of(x.scalar_type());
  const at::Tensor up = dense(kOp, "upstream", upstream, real, {}, device),
                   g = dense(kOp, "unit_grad", unit_grad, real, {rows, dim}, device),
                   inverse = dense(kOp, "inverse_norm", inverse_norm, real, {rows}, device),
                   own = dense(kOp, "centers", centers, real, {rows, dim}, device),
                   y = dense(kOp, "labels", labels, at::kLong, {rows}, device),
                   by_lse = dense(kOp, "lse_weight", lse_weight, real, {rows}, device),
                   by_cosine = dense(kOp, "cosine_weight", cosine_weight, real, {rows}, device);
  at::Tensor grad = at::empty({rows, dim}, x.options().memory_format(at::MemoryFormat::Contiguous));
  RowGradientArguments arguments{};
  arguments.rows = rows;
  arguments.dim = static_cast<int>(dim);
  arguments.embedding_dtype = dtype_of(kOp, "embeddings", x.scalar_type());
  arguments.labels = y.const_data_ptr<int64_t>();
  arguments.embeddings = x.const_data_ptr();
  arguments.embedding_stride = x.stride(0);
  arguments.centers = own.const_data_ptr();
  arguments.inverse_norm = inverse.const_data_ptr();
  arguments.lse_weight = by_lse.const_data_ptr();
  arguments.cosine_weight = by_cosine.const_data_ptr();
  arguments.unit_grad = g.const_data_ptr();
  arguments.upstream = up.const_data_ptr();
  arguments.grad = grad.mutable_data_ptr();
  if (rows > 0) launch(arguments);
  return grad;
}

template <class Launch>
std::tuple<at::Tensor, at::Tensor> step_statistics(const at::Tensor& loss, const at::Tensor& labels,
                                                   const at::Tensor& cosine, const at::Tensor& hard_count,
                                                   const at::Tensor& max_cosine, const at::Tensor& omitted_mass,
                                                   const at::Tensor& slot_labels, const at::Tensor& extra_labels,
                                                   const std::optional<at::Tensor>& t, const Launch& launch) {
  constexpr const char* kOp = "step_statistics";
  const at::Device device = cosine.device();
  const at::ScalarType real = real_of(cosine.scalar_type());
  const int64_t rows = labels.size(0), slots = slot_labels.size(0), extra_rows = extra_labels.size(0);
  const at::Tensor value = dense(kOp, "loss", loss, real, {}, device),
                   y = dense(kOp, "labels", labels, at::kLong, {rows}, device),
                   c = dense(kOp, "cosine", cosine, real, {rows}, device),
                   hard = dense(kOp, "hard_count", hard_count, at::kLong, {rows}, device),
                   largest = dense(kOp, "max_cosine", max_cosine, real, {rows}, device),
                   omitted = dense(kOp, "omitted_mass", omitted_mass, real, {rows}, device),
                   stored = dense(kOp, "slot_labels", slot_labels, at::kLong, {slots}, device),
                   extra = dense(kOp, "extra_labels", extra_labels, at::kLong, {extra_rows}, device);
  at::Tensor means = at::empty({int64_t{kNumStepMeans}}, c.options()),
             counts = at::empty({int64_t{kNumStepCounts}}, y.options()), state;
  StepStatisticsArguments arguments{};
  if (t) {
    state = dense(kOp, "t", *t, at::kFloat, {}, device);
    arguments.t = state.const_data_ptr<float>();
  }
  arguments.is_double = real == at::kDouble;
  arguments.rows = rows;
  arguments.extra_rows = extra_rows;
  arguments.slots = slots;
  arguments.labels = y.const_data_ptr<int64_t>();
  arguments.extra_labels = extra.const_data_ptr<int64_t>();
  arguments.slot_labels = stored.const_data_ptr<int64_t>();
  arguments.loss = value.const_data_ptr();
  arguments.cosine = c.const_data_ptr();
  arguments.max_cosine = largest.const_data_ptr();
  arguments.omitted_mass = omitted.const_data_ptr();
  arguments.hard_count = hard.const_data_ptr<int64_t>();
  arguments.means = means.mutable_data_ptr();
  arguments.counts = counts.mutable_data_ptr<int64_t>();
  launch(arguments);
  return {means, counts};
}

}  // namespace head_step
}  // namespace attfc
