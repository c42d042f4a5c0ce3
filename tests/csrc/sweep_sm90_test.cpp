// The sweep by wgmma: its own source, run on the host and held to plain float64 loops, under each of several schedules,
// whose results must be the same bits. ATTFC_SEEDS, ATTFC_SMALL: see schedules.h. Over lists of live tiles it is run by
// two_pass_test.
#include "csrc/cuda/sweep_sm90.h"

#include "sweep_case.h"

using namespace attfc;
using testing::small_only;
using testing::SweepCase;

namespace {

// One pass, for the tolerance is 0.
SweepCase hopper() {
  SweepCase c;
  c.dim = 256;
  c.compute_capability = 90;
  c.shared_bytes = 227 << 10;
  c.centers = 200;
  return c;
}

testing::SweepResult check_one_pass(const SweepCase& c, const testing::SweepData& data) {
  const auto result = testing::check_case(c, data);
  CHECK(gpu::host::counters.launches == 2, "%lld launches: not one pass", gpu::host::counters.launches);
  CHECK(gpu::host::counters.mma == 0 && gpu::host::counters.wgmma > 0, "another kernel");
  return result;
}

SweepCase with(void (*change)(SweepCase&)) {
  SweepCase c = hopper();
  change(c);
  return c;
}

void add(const std::string& name, void (*change)(SweepCase&)) {
  testing::add_sweep(name, with(change), check_one_pass);
}

void add_dtypes(const std::string& name, void (*change)(SweepCase&)) {
  testing::add_sweep_dtypes(name, with(change), check_one_pass);
}

void add_shapes() {
  // Tails of rows (blocks of 64) and of centres (halves of 32, tiles of 64, a ring of two).
  testing::add_sweep_shapes(hopper(), {1, 63, 66, 130}, {1, 32, 33, 64, 130, 300}, 9000, check_one_pass);
  add_dtypes("d512", [](SweepCase& c) { c.dim = 512, c.centers = 150, c.rows = small_only() ? 3 : 66; });
  add("packed_rows", [](SweepCase& c) { c.rows = 65, c.pad = 0; });
  add_dtypes("tiles.9", [](SweepCase& c) { c.centers = 64 * 9 - 5; });
  add_dtypes("splits.uneven", [](SweepCase& c) { c.centers = 64 * 20 - 5, c.multiprocessors = 3; });
  add("splits.moved", [](SweepCase& c) {
    c.centers = 64 * 20 - 5, c.multiprocessors = 3, c.scale = 100;
    c.dtype = Dtype::kFloat16, c.target_logit = SweepCase::kNoTarget;
  });
  add("splits.rows", [](SweepCase& c) { c.rows = 70, c.centers = 500, c.multiprocessors = 8; });
}

void add_values() {
  add_dtypes("no_row_values", [](SweepCase& c) { c.modulated = false, c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("no_target", [](SweepCase& c) { c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("target_far_above", [](SweepCase& c) { c.target_logit = SweepCase::kFarAbove; });
  add_dtypes("target_far_below", [](SweepCase& c) { c.target_logit = SweepCase::kFarBelow; });
  add_dtypes("scaled", [](SweepCase& c) { c.scaled = true; });
  add_dtypes("scaled.no_target", [](SweepCase& c) { c.scaled = true, c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("scaled.short_centers", [](SweepCase& c) { c.scaled = true, c.length_log2 = -9; });
  add_dtypes("cosines_at_one", [](SweepCase& c) { c.spread = 2, c.centers = 100; });
  add_dtypes("scale_1", [](SweepCase& c) { c.scale = 1; });
  add_dtypes("scale_1000", [](SweepCase& c) { c.scale = 1000; });
  add_dtypes("scale_1000.no_target", [](SweepCase& c) { c.scale = 1000, c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("two_classes", [](SweepCase& c) { c.num_classes = 2; });
  add_dtypes("all_rows_ignored", [](SweepCase& c) { c.ignored_share = 2; });
  add_dtypes("all_slots_empty", [](SweepCase& c) { c.empty_share = 2; });
  add_dtypes("mostly_empty", [](SweepCase& c) { c.empty_share = 0.95; });
  add_dtypes("no_empty_slots", [](SweepCase& c) { c.empty_share = 0; });
  add_dtypes("one_negative", [](SweepCase& c) { c.centers = 1, c.empty_share = 0, c.num_classes = 1000; });
  add_dtypes("splits_without_negatives",
             [](SweepCase& c) { c.empty_share = 0.99, c.centers = 600, c.multiprocessors = 4; });
}

// The kernel itself, with a tolerance that the launcher would answer with two passes.
void add_omission() {
  const auto sweep_once = [](const SweepCase& c, const testing::SweepData& data, int splits,
                             std::vector<float>& partial, cuda::PartialSums& sums) {
    const auto rows = static_cast<size_t>(c.rows * splits);
    partial.assign(rows * (static_cast<size_t>(c.dim) + 9), NAN);
    float* at = partial.data() + rows * static_cast<size_t>(c.dim);
    float** columns[] = {&sums.reference,    &sums.sum,     &sums.moment_quad, &sums.moment_lin,
                         &sums.moment_const, &sums.omitted, &sums.max_cosine};
    for (float** each : columns) *each = at, at += rows;
    static std::vector<int64_t> hard;
    hard.assign(rows, -7);
    sums.hard_count = hard.data();
    sums.gradient = partial.data();
    cuda::SweepParameters p{};
    static_cast<SweepInputs&>(p) = testing::inputs_of(c, data);
    p.scale = c.scale;
    p.grad_tolerance = c.tolerance;
    p.splits = splits;
    p.tiles_per_split = (c.centers + 63) / 64 / splits;
    p.partial = sums;
    const char* error = cuda::launch_sweep_sm90(p, (c.rows + 63) / 64, nullptr);
    CHECK(error == nullptr, "%s", error);
  };
  testing::add_case("omits_tiles", [=] {
    SweepCase c = hopper();
    c.rows = 9;
    c.centers = 64 * 5;
    c.modulated = false;
    c.empty_share = c.ignored_share = 0;
    c.tolerance = 0x1p-12f;
    const testing::SweepData data = testing::clustered(c, 64);
    std::vector<float> partial;
    cuda::PartialSums sums{};
    gpu::host::counters = {};
    sweep_once(c, data, 1, partial, sums);
    // Of warps: 5 tiles of 16 steps by 8; one of them goes on to O, 4 steps by 8.
    CHECK(gpu::host::counters.wgmma == 5 * 16 * 8 + 4 * 8, "%lld wgmma", gpu::host::counters.wgmma);
    for (int64_t row = 0; row < c.rows; ++row) CHECK(sums.omitted[row] > 0, "row %d: nothing reported", int(row));
  });
  // What is left out of O is at most the tolerance's share, and reported: here so large that it decides.
  for (const int splits : {1, 3}) {
    testing::add_case("omission_is_accounted." + std::to_string(splits), [=] {
      SweepCase c = hopper();
      c.rows = 6;
      c.centers = 64 * 12 * splits;
      c.scale = 4;
      c.modulated = false;
      c.ignored_share = 0;
      c.tolerance = 0.05f;
      testing::SweepData data = testing::make_data(c);
      // The target weighs e^2 times all negatives, so that it decides what may be omitted.
      for (int64_t row = 0; row < c.rows; ++row) {
        double negatives = 0;
        for (int64_t j = 0; j < c.centers; ++j) {
          if (testing::is_valid(data, row, j)) negatives += std::exp(testing::logit_of(c, data, row, j));
        }
        data.target_logit[static_cast<size_t>(row)] = static_cast<float>(std::log(negatives)) + 2;
      }
      std::vector<float> partial;
      cuda::PartialSums sums{};
      sweep_once(c, data, splits, partial, sums);
      float largest = 0;
      for (int64_t row = 0; row < c.rows; ++row) {
        double total = 0, omitted = 0;
        for (int split = 0; split < splits; ++split) {
          const int64_t at = split * c.rows + row;
          const double weight = std::exp(static_cast<double>(sums.reference[at]));
          total += sums.sum[at] * weight, omitted += sums.omitted[at] * weight;
        }
        total += std::exp(static_cast<double>(data.target_logit[static_cast<size_t>(row)]));
        CHECK(omitted <= c.tolerance * total * 1.0001, "row %d: %g of %g", int(row), omitted, total);
        largest = std::max(largest, static_cast<float>(omitted / total));
        for (int d = 0; d < c.dim; ++d) {
          double got = 0, expected = 0, all = 0, most = 0;
          for (int split = 0; split < splits; ++split) {
            const int64_t at = split * c.rows + row;
            got += sums.gradient[at * c.dim + d] * std::exp(static_cast<double>(sums.reference[at]));
          }
          for (int64_t j = 0; j < c.centers; ++j) {
            if (!testing::is_valid(data, row, j)) continue;
            const double entry = testing::widen(c, data.centers[static_cast<size_t>(j * data.stride + d)]);
            const double p = std::exp(testing::logit_of(c, data, row, j));
            expected += p * entry, all += p * std::fabs(entry), most = std::max(most, std::fabs(entry));
          }
          CHECK(std::fabs(got - expected) <= all * 0x1p-7 + omitted * most * 1.001, "row %d column %d: %g, expected %g",
                int(row), d, got, expected);
        }
      }
      CHECK(largest > 0.01f, "little was omitted: %g", largest);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  add_shapes();
  add_values();
  add_omission();
  testing::add_case("where_it_is_chosen", [] {
    const auto kernel = [](void (*change)(cuda::SweepArguments&, cuda::DeviceLimits&)) {
      cuda::SweepArguments arguments{};
      arguments.dtype = Dtype::kBFloat16;
      arguments.dim = 512;
      arguments.num_rows = 384;
      arguments.num_centers = 100000;
      arguments.need_grad = true;
      cuda::DeviceLimits device{90, 227 << 10, 132};
      change(arguments, device);
      return cuda::plan_sweep(device, arguments).kernel;
    };
    using cuda::SweepKernel;
    CHECK(kernel([](auto&, auto&) {}) == SweepKernel::kSm90, "D 512");
    CHECK(kernel([](auto& a, auto&) { a.dim = 256; }) == SweepKernel::kSm90, "D 256");
    CHECK(kernel([](auto& a, auto&) { a.grad_tolerance = 0x1p-12f; }) == SweepKernel::kSm90, "second of two passes");
    CHECK(kernel([](auto& a, auto&) { a.dim = 128; }) == SweepKernel::kD128, "D 128 has no kernel by wgmma");
    CHECK(kernel([](auto& a, auto&) { a.num_centers = 0; }) == SweepKernel::kD512Wide, "no centres");
    CHECK(kernel([](auto& a, auto&) { a.num_centers = int64_t{1} << 31; }) == SweepKernel::kD512Wide, "coordinates");
    CHECK(kernel([](auto&, auto& d) { d.compute_capability = 100; }) == SweepKernel::kD512Wide, "device");
    CHECK(kernel([](auto&, auto& d) { d.has_sm90a_code = false; }) == SweepKernel::kD512Wide, "build");
    CHECK(kernel([](auto&, auto& d) { d.shared_bytes = 163 << 10; }) == SweepKernel::kD512, "shared memory");
  });
  return testing::run_cases(argc, argv);
}
