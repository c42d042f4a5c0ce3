// The AdaSin row kernels' own source, run on the host and held to float64: values to plain loops, gradients to central
// differences of those loops. Under several thread schedules, whose results must be the same bits.
#include <cmath>
#include <cstring>
#include <random>

#include "csrc/cuda/adasin.h"
#include "csrc/cuda/gpu/gpu.h"
#include "testing.h"

using namespace attfc;

namespace {

struct Case {
  int64_t rows = 11;
  int dim = 70;  // no multiple of a warp
  Dtype input = Dtype::kFloat32, unit = Dtype::kBFloat16;
  cuda::AdaSinSettings settings{0.5f, 1.5f, 0.99f, 64, true, false};
  bool move_t = true;
  double ignored_share = 0.2;
};

struct Rows {
  std::vector<uint16_t> narrow;  // embeddings where the input has 16 bits
  std::vector<float> embeddings, centers, unit_grad, lse;
  std::vector<int64_t> labels, hard_count;
  int64_t stride;
};

struct Results {
  std::vector<uint16_t> units16;
  std::vector<float> units32, inverse_norm, cosine, row_values, row_loss, target_logit, lse_weight, cosine_weight;
  std::vector<uint16_t> grad16;
  std::vector<float> grad32;
  float t = 0.25f, loss = NAN;

  float value(RowValue which, size_t row) const { return row_values[static_cast<size_t>(which) * cosine.size() + row]; }
};

uint16_t narrow(Dtype dtype, float value) {
  return static_cast<uint16_t>(dtype == Dtype::kBFloat16 ? gpu::pack<gpu::BFloat16>(value, 0)
                                                         : gpu::pack<gpu::Float16>(value, 0));
}
float widen(Dtype dtype, uint16_t bits) {
  return dtype == Dtype::kBFloat16 ? gpu::to_float(gpu::BFloat16{bits}) : gpu::to_float(gpu::Float16{bits});
}

Rows make_rows(const Case& c) {
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  Rows rows;
  rows.stride = c.dim + 3;
  const auto size = static_cast<size_t>(c.rows * rows.stride);
  rows.embeddings.assign(size, NAN);
  rows.narrow.assign(size, 0x7fff);
  rows.centers.assign(size, NAN);
  rows.unit_grad.resize(static_cast<size_t>(c.rows * c.dim));
  for (float& each : rows.unit_grad) each = 10 * normal(random);
  for (int64_t row = 0; row < c.rows; ++row) {
    const bool ignored = uniform(random) < c.ignored_share;
    rows.labels.push_back(ignored ? -3 : row % 4);
    rows.hard_count.push_back(row % 3 == 0 ? 0 : row);
    rows.lse.push_back(row == 2 ? -INFINITY : 40 * normal(random));
    const float length = row == 1 ? 0.0f : 3 + uniform(random);
    // Row 3 points along its centre, row 4 against it; the others lie in between.
    const float along = row == 3 ? 1e4f : row == 4 ? -1e4f : 3 * normal(random);
    std::vector<double> x(static_cast<size_t>(c.dim)), center(x.size());
    double x_norm = 0, center_norm = 0;
    for (size_t d = 0; d < x.size(); ++d) {
      center[d] = normal(random);
      center_norm += center[d] * center[d];
    }
    for (size_t d = 0; d < x.size(); ++d) {
      x[d] = normal(random) + along * center[d] / std::sqrt(center_norm);
      x_norm += x[d] * x[d];
    }
    for (size_t d = 0; d < x.size(); ++d) {
      const size_t at = static_cast<size_t>(row * rows.stride) + d;
      const float value = ignored ? NAN : length * static_cast<float>(x[d] / std::sqrt(x_norm));
      rows.narrow[at] = narrow(c.input, value);
      rows.embeddings[at] = c.input == Dtype::kFloat32 ? value : widen(c.input, rows.narrow[at]);
      rows.centers[at] = ignored ? NAN : static_cast<float>(center[d] / std::sqrt(center_norm));
    }
  }
  return rows;
}

void must(const char* error) { CHECK(error == nullptr, "%s", error); }

Results run(const Case& c, const Rows& rows) {
  Results r;
  const auto count = static_cast<size_t>(c.rows), size = count * static_cast<size_t>(c.dim);
  for (auto* each : {&r.inverse_norm, &r.cosine, &r.row_loss, &r.target_logit, &r.lse_weight, &r.cosine_weight}) {
    each->assign(count, NAN);
  }
  r.row_values.assign(kNumRowValues * count, NAN);
  r.units16.assign(size, 0x7fff);
  r.units32.assign(size, NAN);
  r.grad16.assign(size, 0x7fff);
  r.grad32.assign(size, NAN);
  const bool wide = c.input == Dtype::kFloat32;
  const void* input = wide ? static_cast<const void*>(rows.embeddings.data()) : rows.narrow.data();
  void* units = c.unit == Dtype::kFloat32 ? static_cast<void*>(r.units32.data()) : r.units16.data();
  void* grad = wide ? static_cast<void*>(r.grad32.data()) : r.grad16.data();
  const float upstream = -0.7f;
  must(cuda::launch_unit_rows({c.rows, c.dim, c.input, c.unit, input, rows.stride, rows.centers.data(), rows.stride,
                               units, r.inverse_norm.data(), r.cosine.data()},
                              nullptr));
  must(cuda::launch_adasin_modulation(
      {c.settings, c.move_t, c.rows, rows.labels.data(), r.cosine.data(), &r.t, r.row_values.data()}, nullptr));
  must(cuda::launch_adasin_loss({c.settings, c.rows, rows.labels.data(), r.cosine.data(),
                                 r.row_values.data() + kLin * count, rows.lse.data(), rows.hard_count.data(), &r.loss,
                                 r.row_loss.data(), r.target_logit.data(), r.lse_weight.data(), r.cosine_weight.data()},
                                nullptr));
  must(cuda::launch_row_gradients(
      {c.rows, c.dim, c.input, rows.labels.data(), input, rows.stride, rows.centers.data(), rows.stride,
       r.inverse_norm.data(), r.lse_weight.data(), r.cosine_weight.data(), rows.unit_grad.data(), &upstream, grad},
      nullptr));
  return r;
}

// float64 restatement of attfc_cuda/margins (angle, psi, AdaSin).
double true_psi(double a) { return a <= M_PI ? std::cos(a) : a <= 2 * M_PI ? -2 - std::cos(a) : std::cos(a) - 4; }

double true_target(const Case& c, double cosine, double phi) {
  return true_psi(std::acos(cosine) + static_cast<double>(c.settings.margin_rad) * phi);
}

void near(const char* what, int64_t row, double got, double expected, double bound) {
  CHECK(std::fabs(got - expected) <= bound, "%s of row %d: %.9g, expected %.9g +- %.2g", what, int(row), got, expected,
        bound);
}

void check(const Case& c, const Rows& rows, const Results& r) {
  const double u = c.unit == Dtype::kFloat32 ? 0x1p-23 : c.unit == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-11;
  const double scale = c.settings.scale;
  std::vector<double> cosine(static_cast<size_t>(c.rows));
  double mean = 0, live_rows = 0, loss = 0;
  for (int64_t row = 0; row < c.rows; ++row) {
    const auto b = static_cast<size_t>(row);
    if (rows.labels[b] < 0) continue;
    double square = 0;
    const float* x = &rows.embeddings[b * static_cast<size_t>(rows.stride)];
    const float* center = &rows.centers[b * static_cast<size_t>(rows.stride)];
    for (int d = 0; d < c.dim; ++d) square += static_cast<double>(x[d]) * x[d];
    const double inverse = square < 1e-12 ? 0 : 1 / std::sqrt(square);
    for (int d = 0; d < c.dim; ++d) {
      cosine[b] += x[d] * inverse * center[d];
      const size_t at = b * static_cast<size_t>(c.dim) + static_cast<size_t>(d);
      const double unit = c.unit == Dtype::kFloat32 ? r.units32[at] : widen(c.unit, r.units16[at]);
      near("unit", row, unit, x[d] * inverse, std::fabs(x[d] * inverse) * (u + 0x1p-20) + 0x1p-24);
    }
    near("cosine", row, r.cosine[b], cosine[b], 0x1p-21);
    mean += cosine[b];
    live_rows += 1;
  }
  const double start = 0.25, t = c.move_t && live_rows > 0 ? start + (1 - static_cast<double>(c.settings.momentum)) *
                                                                         (mean / live_rows - start)
                                                           : start;
  near("t", -1, r.t, t, 0x1p-22);
  for (int64_t row = 0; row < c.rows; ++row) {
    const auto b = static_cast<size_t>(row);
    if (rows.labels[b] < 0) {
      CHECK(r.row_loss[b] == 0 && r.lse_weight[b] == 0 && r.cosine_weight[b] == 0, "row %d is ignored", int(row));
      for (int d = 0; d < c.dim; ++d) {
        const size_t at = b * static_cast<size_t>(c.dim) + static_cast<size_t>(d);
        CHECK(c.input == Dtype::kFloat32 ? r.grad32[at] == 0 : r.grad16[at] == 0, "row %d is ignored", int(row));
      }
      continue;
    }
    // From the kernel's own cosine: at +-1 the angle magnifies its last bit, which is not these kernels' error.
    const double own = std::max(-1.0, std::min(1.0, static_cast<double>(r.cosine[b])));
    const double theta = std::acos(own), angle_error = std::fabs(own) > 1 - 0x1p-22 ? 2e-4 : 0x1p-20;
    const double difficulty = std::sin(c.settings.half_angle ? theta / 2 : theta);
    const double phi = t + static_cast<double>(c.settings.difficulty_weight) * difficulty;
    near("phi", row, r.value(kLin, b), phi, 2 * angle_error + 0x1p-21);
    near("threshold", row, r.value(kThreshold, b), true_target(c, own, 1), angle_error);
    CHECK(r.value(kQuad, b) == 0 && r.value(kConstant, b) == 0, "row %d: %g, %g", int(row), r.value(kQuad, b),
          r.value(kConstant, b));
    near("target logit", row, r.value(kTargetLogit, b), scale * true_target(c, own, 1), scale * angle_error);
    const double penalty = rows.hard_count[b] > 0 ? phi : 1;
    const double target = true_target(c, own, penalty);
    near("target", row, r.target_logit[b], scale * target, scale * 3 * angle_error);
    const double excess = rows.lse[b] - static_cast<double>(r.target_logit[b]);
    const double row_loss = excess > 40 ? excess : std::log1p(std::exp(excess));
    near("loss", row, r.row_loss[b], row_loss, std::fabs(row_loss) * 0x1p-21 + 0x1p-24);
    loss += row_loss / live_rows;
    const double weight = 1 / (1 + std::exp(-excess)) / live_rows;
    // exp() of a rounded exponent, and float32's smallest normal number.
    const double weight_error = (weight > 0 ? weight * (0x1p-20 + std::fabs(excess) * 0x1p-23) : 0) + 0x1p-126;
    near("d loss / d lse", row, r.lse_weight[b], weight, weight_error);
    if (std::fabs(own) < 0.999 && !c.settings.straight_through) {
      const double step = 1e-5;
      const double slope = (true_target(c, own + step, penalty) - true_target(c, own - step, penalty)) / (2 * step);
      near("d loss / d cosine", row, r.cosine_weight[b], -weight * scale * slope,
           (weight_error + weight * 2e-4) * scale * std::fabs(slope) + weight * scale * 1e-6);
    }
    if (c.settings.straight_through)
      near("straight through", row, r.cosine_weight[b], -weight * scale, 2 * weight_error * scale);
    CHECK(std::isfinite(r.cosine_weight[b]), "row %d: slope not finite", int(row));

    // d loss / d x = (I - u u^T) / |x| (lse_weight unit_grad + cosine_weight center), times upstream.
    const float* x = &rows.embeddings[b * static_cast<size_t>(rows.stride)];
    const float* center = &rows.centers[b * static_cast<size_t>(rows.stride)];
    std::vector<double> by_unit(static_cast<size_t>(c.dim));
    double along = 0, largest = 0;
    const double inverse = r.inverse_norm[b];
    for (size_t d = 0; d < by_unit.size(); ++d) {
      by_unit[d] = -0.7f * (r.lse_weight[b] * static_cast<double>(rows.unit_grad[b * by_unit.size() + d]) +
                            r.cosine_weight[b] * static_cast<double>(center[d]));
      along += by_unit[d] * x[d] * inverse;
      largest = std::max(largest, std::fabs(by_unit[d]));
    }
    const double gu = c.input == Dtype::kFloat32 ? 0 : c.input == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-11;
    for (size_t d = 0; d < by_unit.size(); ++d) {
      const double expected = (by_unit[d] - along * x[d] * inverse) * inverse;
      const size_t at = b * by_unit.size() + d;
      const double got = c.input == Dtype::kFloat32 ? r.grad32[at] : widen(c.input, r.grad16[at]);
      near("gradient", row, got, expected,
           (largest + std::fabs(along)) * inverse * 0x1p-19 + std::fabs(expected) * gu + 0x1p-24);
    }
  }
  near("mean loss", -1, r.loss, loss, std::fabs(loss) * 0x1p-20 + 0x1p-24);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

void add(const char* name, void (*change)(Case&)) {
  Case c;
  change(c);
  testing::add_case(name, [c] {
    const Rows rows = make_rows(c);
    Results first;
    for (uint64_t seed = 0; seed < 3; ++seed) {
      gpu::host::options.seed = seed;
      gpu::host::counters = {};
      const Results results = run(c, rows);
      CHECK(gpu::host::counters.bank_conflicts == 0, "%lld bank conflicts", gpu::host::counters.bank_conflicts);
      if (seed == 0) {
        check(c, rows, results);
        first = results;
      }
      CHECK(same_bits(first.grad32, results.grad32) && same_bits(first.grad16, results.grad16) &&
                same_bits(first.lse_weight, results.lse_weight) && first.t == results.t && first.loss == results.loss,
            "schedule %d gives other bits than schedule 0", int(seed));
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  add("float32", [](Case&) {});
  add("bf16", [](Case& c) { c.input = Dtype::kBFloat16; });
  add("fp16", [](Case& c) { c.input = c.unit = Dtype::kFloat16; });
  add("float32_units", [](Case& c) { c.unit = Dtype::kFloat32; });
  add("more_rows_than_threads", [](Case& c) { c.rows = 300, c.dim = 32; });
  add("one_row", [](Case& c) { c.rows = 1, c.ignored_share = 0; });
  add("eval", [](Case& c) { c.move_t = false; });
  add("full_angle", [](Case& c) { c.settings.half_angle = false; });
  add("straight_through", [](Case& c) { c.settings.straight_through = true; });
  add("wide_margin", [](Case& c) { c.settings.margin_rad = 1.4f; });  // past pi, and past 2 pi
  add("scale_1000", [](Case& c) { c.settings.scale = 1000; });
  add("all_ignored", [](Case& c) { c.ignored_share = 2; });
  add("no_rows", [](Case& c) { c.rows = 0; });
  return testing::run_cases(argc, argv);
}
