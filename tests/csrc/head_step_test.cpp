// AdaSin's and the statistics' kernels' own source (csrc/cuda/adasin.cu, statistics.cu), run on the host and held to
// float64: values to plain loops, derivatives to central differences of those loops, counts exactly. Under several
// thread schedules, whose results must be the same bits.
#include <cmath>
#include <random>

#include "csrc/cuda/adasin.h"
#include "csrc/cuda/statistics.h"
#include "schedules.h"
#include "typed_numbers.h"

using namespace attfc;
using testing::near;

namespace {

struct Case {
  int64_t rows = 11, extra_rows = 5, slots = 700, num_classes = 40;
  AdaSinSettings settings{0.5, 1.5, 0.99, 64, true, false};
  bool move_t = true, with_nan = false, with_t = true;
  double ignored_share = 0.2;
};

struct Inputs {
  std::vector<float> cosine, lse, max_cosine, omitted;
  std::vector<int64_t> labels, extra_labels, slot_labels, hard_count;
};

struct Results {
  std::vector<float> row_values, row_loss, target_logit, lse_weight, cosine_weight, means;
  std::vector<int64_t> counts;
  float t = 0.25f, loss = NAN;

  double value(RowValue which, size_t row) const {
    return row_values[static_cast<size_t>(which) * row_loss.size() + row];
  }
};

constexpr size_t kNanRow = 5;

Inputs make_inputs(const Case& c) {
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<double> uniform;
  const auto label = [&](double none) {
    return uniform(random) < none ? -3 : static_cast<int64_t>(random() % static_cast<uint64_t>(c.num_classes));
  };
  Inputs in;
  for (int64_t row = 0; row < c.rows; ++row) {
    in.labels.push_back(label(c.ignored_share));
    if (c.with_nan && row == static_cast<int64_t>(kNanRow)) in.labels.back() = 1;
    const bool ignored = in.labels.back() < 0;
    // Row 3 points along its centre, row 4 against it, row 6 a rounding beyond; the others lie in between.
    const double cosine = row == 3 ? 1 : row == 4 ? -1 : row == 6 ? 1 + 0x1p-23 : 2 * uniform(random) - 1;
    in.cosine.push_back(ignored || (c.with_nan && row == static_cast<int64_t>(kNanRow)) ? NAN
                                                                                        : static_cast<float>(cosine));
    in.lse.push_back(ignored ? NAN : row == 2 ? -INFINITY : 40 * normal(random));
    in.hard_count.push_back(ignored ? -99 : row % 3 == 0 ? 0 : (int64_t{1} << 33) + row);
    in.max_cosine.push_back(ignored ? NAN : row == 2 ? -INFINITY : static_cast<float>(uniform(random) - 0.3));
    in.omitted.push_back(ignored ? NAN : static_cast<float>(0.001 * uniform(random)));
  }
  for (int64_t row = 0; row < c.extra_rows; ++row) in.extra_labels.push_back(row == 2 ? -1 : row);
  for (int64_t slot = 0; slot < c.slots; ++slot) in.slot_labels.push_back(label(0.25));
  return in;
}

Results run(const Case& c, const Inputs& in) {
  Results r;
  const auto count = static_cast<size_t>(c.rows);
  for (auto* each : {&r.row_loss, &r.target_logit, &r.lse_weight, &r.cosine_weight}) each->assign(count, NAN);
  r.row_values.assign(kNumRowValues * count, NAN);
  testing::must(cuda::launch_adasin_row_values(
      {c.settings, c.move_t, false, c.rows, in.labels.data(), in.cosine.data(), &r.t, r.row_values.data()}, nullptr));
  testing::must(cuda::launch_adasin_loss({c.settings, false, c.rows, in.labels.data(), in.cosine.data(), in.lse.data(),
                                          r.row_values.data(), in.hard_count.data(), &r.loss, r.row_loss.data(),
                                          r.target_logit.data(), r.lse_weight.data(), r.cosine_weight.data()},
                                         nullptr));
  std::vector<uint64_t> workspace(cuda::kStepStatisticsWorkspaceBytes / 8);
  for (int again = 0; again < 2; ++again) {  // on what the first leaves of its workspace
    r.means.assign(kNumStepMeans, NAN);
    r.counts.assign(kNumStepCounts, -1);
    testing::must(cuda::launch_step_statistics(
        {false, c.rows, c.extra_rows, c.slots, in.labels.data(), in.extra_labels.data(), in.slot_labels.data(), &r.loss,
         in.cosine.data(), in.max_cosine.data(), in.omitted.data(), in.hard_count.data(), c.with_t ? &r.t : nullptr,
         r.means.data(), r.counts.data()},
        workspace.data(), nullptr));
  }
  CHECK(gpu::host::counters.launches == (c.rows > 0) + 3, "%lld launches", gpu::host::counters.launches);
  return r;
}

// float64 restatement of attfc_cuda/margins (angle, psi, AdaSin).
double true_psi(double a) { return a <= M_PI ? std::cos(a) : a <= 2 * M_PI ? -2 - std::cos(a) : std::cos(a) - 4; }

double true_target(const Case& c, double cosine, double phi) {
  return true_psi(std::acos(cosine) + c.settings.margin_rad * phi);
}

struct Expected {
  double live_rows = 0, cosine = 0, finite_cosines = 0, finite_rows = 0, t = 0.25, loss = 0;
};

void check_row(const Case& c, const Inputs& in, const Results& r, size_t b, const Expected& e) {
  const auto row = static_cast<int64_t>(b);
  const double scale = c.settings.scale;
  if (in.labels[b] < 0) {
    CHECK(r.row_loss[b] == 0 && r.lse_weight[b] == 0 && r.cosine_weight[b] == 0, "row %d is ignored", int(row));
    for (const RowValue which : {kTargetLogit, kThreshold, kQuad, kLin, kConstant}) {
      CHECK(std::isfinite(r.value(which, b)), "row %d is ignored", int(row));
    }
    return;
  }
  if (std::isnan(in.cosine[b])) {
    CHECK(std::isnan(r.value(kThreshold, b)) && std::isnan(r.row_loss[b]) && std::isnan(r.lse_weight[b]) &&
              std::isnan(r.cosine_weight[b]),
          "the NaN of row %d is lost", int(row));
    return;
  }
  const double own = std::max(-1.0, std::min(1.0, double{in.cosine[b]}));
  // At +-1 the angle follows its chord.
  const double theta = std::acos(own), angle_error = std::fabs(own) > 1 - 0x1p-22 ? 2e-4 : 0x1p-20;
  const double difficulty = std::sin(c.settings.half_angle ? theta / 2 : theta);
  const double phi = e.t + c.settings.difficulty_weight * difficulty;
  near("phi", row, r.value(kLin, b), phi, 2 * angle_error + 0x1p-21);
  near("threshold", row, r.value(kThreshold, b), true_target(c, own, 1), angle_error);
  CHECK(r.value(kQuad, b) == 0 && r.value(kConstant, b) == 0, "row %d: modulated beyond Phi", int(row));
  near("target logit", row, r.value(kTargetLogit, b), scale * true_target(c, own, 1), scale * angle_error);
  const double penalty = in.hard_count[b] > 0 ? phi : 1;
  near("target", row, r.target_logit[b], scale * true_target(c, own, penalty), scale * 3 * angle_error);
  const double excess = in.lse[b] - double{r.target_logit[b]};
  const double row_loss = excess > 40 ? excess : std::log1p(std::exp(excess));
  near("loss", row, r.row_loss[b], row_loss, std::fabs(row_loss) * 0x1p-21 + 0x1p-24);
  const double weight = 1 / (1 + std::exp(-excess)) / e.live_rows;
  // exp() of a rounded exponent, and float32's smallest normal number.
  const double weight_error = (weight > 0 ? weight * (0x1p-20 + std::fabs(excess) * 0x1p-23) : 0) + 0x1p-126;
  near("d loss / d lse", row, r.lse_weight[b], weight, weight_error);
  CHECK(std::isfinite(r.cosine_weight[b]), "row %d: slope not finite", int(row));
  if (c.settings.straight_through) {
    near("straight through", row, r.cosine_weight[b], -weight * scale, 2 * weight_error * scale);
  } else if (std::fabs(own) < 0.999) {
    const double step = 1e-5;
    const double slope = (true_target(c, own + step, penalty) - true_target(c, own - step, penalty)) / (2 * step);
    near("d loss / d cosine", row, r.cosine_weight[b], -weight * scale * slope,
         (weight_error + weight * 2e-4) * scale * std::fabs(slope) + weight * scale * 1e-6);
  }
}

void check_statistics(const Case& c, const Inputs& in, const Results& r, const Expected& e) {
  int64_t fill = 0, pairs = 0, hard = 0, first = 0, step_rows = 0;
  double omitted = 0;
  for (const int64_t slot_label : in.slot_labels) {
    fill += slot_label >= 0;
    for (const int64_t label : in.labels) pairs += slot_label >= 0 && label >= 0 && label != slot_label;
  }
  for (size_t b = 0; b < in.labels.size(); ++b) {
    if (in.labels[b] < 0) continue;
    hard += in.hard_count[b];
    first += in.cosine[b] > in.max_cosine[b];
    omitted += in.omitted[b];
    ++step_rows;
  }
  for (const int64_t label : in.extra_labels) step_rows += label >= 0;
  CHECK(r.counts[kFill] == fill && r.counts[kStepRows] == step_rows, "%lld slots, %lld rows, expected %lld, %lld",
        static_cast<long long>(r.counts[kFill]), static_cast<long long>(r.counts[kStepRows]),
        static_cast<long long>(fill), static_cast<long long>(step_rows));
  const double rows = std::max(e.live_rows, 1.0), mean_error = static_cast<double>(c.rows / 256 + 16) * 0x1p-24;
  const double fraction = static_cast<double>(hard) / static_cast<double>(std::max<int64_t>(pairs, 1));
  near("hard fraction", -1, r.means[kHardFraction], fraction, fraction * 0x1p-22);
  near("top 1", -1, r.means[kContainerTop1], static_cast<double>(first) / rows, 0x1p-24);
  near("omitted mass", -1, r.means[kOmittedMass], omitted / rows, omitted / rows * mean_error);
  near("t", -1, r.means[kT], c.with_t ? double{r.t} : 0, 0);
  if (c.with_nan) {
    CHECK(std::isnan(r.means[kLoss]) && std::isnan(r.means[kPositiveCosine]), "the NaN is lost");
  } else {
    near("reported loss", -1, r.means[kLoss], double{r.loss}, 0);
    near("positive cosine", -1, r.means[kPositiveCosine], e.cosine / rows, mean_error);
  }
}

void check(const Case& c, const Inputs& in, const Results& r) {
  Expected e;
  for (size_t b = 0; b < in.labels.size(); ++b) {
    if (in.labels[b] < 0) continue;
    e.live_rows += 1;
    e.cosine += double{in.cosine[b]};
    if (!std::isfinite(in.cosine[b])) continue;
    e.finite_rows += 1;
    e.finite_cosines += double{in.cosine[b]};
  }
  if (c.move_t && e.finite_rows > 0) {
    e.t = c.settings.momentum * e.t + (1 - c.settings.momentum) * e.finite_cosines / e.finite_rows;
  }
  near("t", -1, r.t, e.t, 0x1p-22);
  for (size_t b = 0; b < in.labels.size(); ++b) {
    check_row(c, in, r, b, e);
    // From the kernel's own row losses: the rows' errors are checked above.
    if (in.labels[b] >= 0) e.loss += double{r.row_loss[b]} / e.live_rows;
  }
  if (c.with_nan) {
    CHECK(std::isnan(r.loss), "the NaN is lost");
  } else {
    near("mean loss", -1, r.loss, e.loss, std::fabs(e.loss) * (static_cast<double>(c.rows / 512 + 16)) * 0x1p-24);
  }
  check_statistics(c, in, r, e);
}

bool same(const Results& a, const Results& b) {
  return testing::same_bits(a.row_values, b.row_values) && testing::same_bits(a.lse_weight, b.lse_weight) &&
         testing::same_bits(a.cosine_weight, b.cosine_weight) && testing::same_bits(a.means, b.means) &&
         a.counts == b.counts && std::memcmp(&a.t, &b.t, sizeof a.t) == 0 &&
         std::memcmp(&a.loss, &b.loss, sizeof a.loss) == 0;
}

void add(const char* name, void (*change)(Case&)) {
  Case c;
  change(c);
  testing::add_case(name, [c] {
    const Inputs in = make_inputs(c);
    testing::under_schedules(227 << 10, [&] { return run(c, in); }, [&](const Results& r) { check(c, in, r); }, same);
  });
}

}  // namespace

int main(int argc, char** argv) {
  add("train", [](Case&) {});
  add("more_rows_than_threads", [](Case& c) { c.rows = 700; });
  add("one_row", [](Case& c) { c.rows = 1, c.ignored_share = 0; });
  add("eval", [](Case& c) { c.move_t = false; });
  add("no_t", [](Case& c) { c.with_t = false; });
  add("full_angle", [](Case& c) { c.settings.half_angle = false; });
  add("straight_through", [](Case& c) { c.settings.straight_through = true; });
  add("wide_margin", [](Case& c) { c.settings.margin_rad = 1.4; });  // past pi, and past 2 pi
  add("scale_1000", [](Case& c) { c.settings.scale = 1000; });
  add("nan", [](Case& c) { c.with_nan = true; });
  add("all_ignored", [](Case& c) { c.ignored_share = 2; });
  add("no_rows", [](Case& c) { c.rows = 0; });
  add("no_extra_rows", [](Case& c) { c.extra_rows = 0; });
  add("many_slots", [](Case& c) { c.slots = 9000; });  // several blocks
  add("repeated_labels", [](Case& c) { c.num_classes = 3; });
  // Rows of three tables.
  add("many_rows", [](Case& c) { c.rows = 4100, c.slots = 6000, c.num_classes = 3000; });
  testing::add_case("refuses_double", [] {
    AdaSinRowValuesArguments row_values{};
    AdaSinLossArguments loss{};
    StepStatisticsArguments statistics{};
    row_values.is_double = loss.is_double = statistics.is_double = true;
    CHECK(cuda::launch_adasin_row_values(row_values, nullptr) != nullptr, "double row values");
    CHECK(cuda::launch_adasin_loss(loss, nullptr) != nullptr, "double loss");
    CHECK(cuda::launch_step_statistics(statistics, nullptr, nullptr) != nullptr, "double statistics");
    CHECK(gpu::host::counters.launches == 0, "launched all the same");
  });
  return testing::run_cases(argc, argv);
}
