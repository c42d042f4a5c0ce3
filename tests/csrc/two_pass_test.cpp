// The sweep in two passes: its own sources, run on the host and held to plain float64 loops, under each of several
// schedules, whose results must be the same bits. ATTFC_SEEDS, ATTFC_SMALL: see schedules.h.
#include "csrc/cuda/two_pass.h"

#include "sweep_case.h"

using namespace attfc;
using testing::small_only;
using testing::SweepCase;

namespace {

SweepCase hopper() {
  SweepCase c;
  c.compute_capability = 90;
  c.shared_bytes = 227 << 10;
  c.tolerance = 0x1p-12f;
  return c;
}

testing::SweepResult check_two_passes(const SweepCase& c, const testing::SweepData& data) {
  const auto result = testing::check_case(c, data);
  const long long launches = gpu::host::counters.launches;
  CHECK(launches == (c.need_grad ? 5 : 2), "%lld launches: not two passes", launches);
  return result;
}

SweepCase with(void (*change)(SweepCase&)) {
  SweepCase c = hopper();
  change(c);
  return c;
}

void add(const std::string& name, void (*change)(SweepCase&)) {
  testing::add_sweep(name, with(change), check_two_passes);
}

void add_dtypes(const std::string& name, void (*change)(SweepCase&)) {
  testing::add_sweep_dtypes(name, with(change), check_two_passes);
}

void add_cases() {
  testing::add_sweep_shapes(hopper(), {1, 66, 130}, {1, 130, 300}, 9000, check_two_passes);
  add_dtypes("d512", [](SweepCase& c) { c.dim = 512, c.centers = 200, c.rows = small_only() ? 3 : 66; });
  add_dtypes("d256", [](SweepCase& c) { c.dim = 256, c.centers = 200; });
  add_dtypes("splits", [](SweepCase& c) { c.centers = 1200, c.multiprocessors = 3; });
  add_dtypes("no_target", [](SweepCase& c) { c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("target_far_above", [](SweepCase& c) { c.target_logit = SweepCase::kFarAbove; });
  add_dtypes("target_far_below", [](SweepCase& c) { c.target_logit = SweepCase::kFarBelow; });
  add_dtypes("scaled", [](SweepCase& c) { c.scaled = true, c.centers = 200; });
  add_dtypes("scaled.no_target", [](SweepCase& c) { c.scaled = true, c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("no_modulation", [](SweepCase& c) { c.modulated = false; });
  add_dtypes("scale_1", [](SweepCase& c) { c.scale = 1, c.centers = 200; });
  add_dtypes("all_rows_ignored", [](SweepCase& c) { c.ignored_share = 2; });
  add_dtypes("all_slots_empty", [](SweepCase& c) { c.empty_share = 2; });
  add_dtypes("mostly_empty", [](SweepCase& c) { c.empty_share = 0.95, c.centers = 300; });
  add("no_gradient", [](SweepCase& c) { c.need_grad = false, c.tolerance = 0; });
  add("more_tiles_than_threads", [](SweepCase& c) { c.rows = 2, c.centers = 128 * 520, c.empty_share = 0.9; });
}

void add_omission() {
  for (const bool half : {false, true}) {
    testing::add_case(std::string("omits_tiles") + (half ? ".fp16" : ".bf16"), [half] {
      SweepCase c = hopper();
      c.dtype = half ? Dtype::kFloat16 : Dtype::kBFloat16;
      c.rows = 9;
      c.centers = 128 * 5;
      c.modulated = false;
      c.empty_share = 0;
      const testing::SweepResult result = check_two_passes(c, testing::clustered(c, 128));
      float omitted = 0;
      for (float each : result.omitted) omitted = std::max(omitted, each);
      CHECK(omitted > 0, "nothing was reported as omitted");
      // 64 x 128 x 128 / 2048 mma a product: one tile needs its gradient. Each of 5 tiles takes 8 steps of 8 warps.
      CHECK(gpu::host::counters.mma == 2 * 512, "%lld mma", gpu::host::counters.mma);
      CHECK(gpu::host::counters.wgmma == 5 * 8 * 8, "%lld wgmma", gpu::host::counters.wgmma);
    });
    testing::add_case(std::string("omission_is_accounted") + (half ? ".fp16" : ".bf16"), [half] {
      SweepCase c = hopper();
      c.dtype = half ? Dtype::kFloat16 : Dtype::kBFloat16;
      c.rows = 6;
      c.centers = 128 * 12;
      c.scale = 4;
      c.multiprocessors = 2;
      c.ignored_share = 0;
      c.tolerance = 0.3f;  // so large that the accounting, not rounding, decides
      testing::SweepData data = testing::make_data(c);
      // The target weighs e^2 times all negatives, so that it decides what may be omitted.
      const testing::SweepResult before = testing::run_sweep(c, data);
      for (size_t row = 0; row < data.target_logit.size(); ++row) data.target_logit[row] = before.lse[row] + 2;
      const testing::SweepResult result = check_two_passes(c, data);
      for (float omitted : result.omitted) CHECK(omitted > 0.05f, "little was omitted: %g", omitted);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  add_cases();
  add_omission();
  testing::add_case("omission_has_no_target", [] {
    SweepCase c = hopper();
    c.centers = 128 * 12;
    c.scale = 4;
    c.target_logit = SweepCase::kNoTarget;
    c.tolerance = 0.3f;  // of a tile 0.025, and each weighs about 1 / 12
    const testing::SweepResult result = check_two_passes(c, testing::make_data(c));
    for (float omitted : result.omitted) CHECK(omitted < 0.1f, "%g omitted", omitted);
  });
  testing::add_case("when_one_pass_is_chosen", [] {
    const auto reason = [](void (*change)(cuda::SweepArguments&, cuda::DeviceLimits&)) {
      cuda::SweepArguments arguments{};
      arguments.dtype = Dtype::kBFloat16;
      arguments.dim = 512;
      arguments.num_rows = 384;
      arguments.num_centers = 100000;
      arguments.need_grad = true;
      arguments.grad_tolerance = 0x1p-12f;
      cuda::DeviceLimits device{90, 227 << 10, 132};
      change(arguments, device);
      const char* words = cuda::why_one_pass(device, arguments);
      CHECK(cuda::plan_sweep(device, arguments).two_passes == (words == nullptr), "the plan does otherwise");
      return std::string(words != nullptr ? words : "");
    };
    CHECK(reason([](auto&, auto&) {}).empty(), "one pass without a reason to");
    CHECK(reason([](auto& a, auto&) { a.need_grad = false, a.grad_tolerance = 0; }).empty(), "no gradient");
    CHECK(reason([](auto& a, auto&) { a.grad_tolerance = 0; }).find("tolerance") != std::string::npos, "tolerance");
    CHECK(reason([](auto&, auto& d) { d.compute_capability = 100; }).find("9.0") != std::string::npos, "device");
    CHECK(reason([](auto&, auto& d) { d.has_sm90a_code = false; }).find("9.0a") != std::string::npos, "build");
    CHECK(reason([](auto&, auto& d) { d.shared_bytes = 163 << 10; }).find("shared") != std::string::npos, "shared");
    CHECK(reason([](auto& a, auto&) { a.num_centers = 0; }).find("no centers") != std::string::npos, "no centres");
    CHECK(reason([](auto& a, auto&) { a.num_centers = int64_t{1} << 31; }).find("32 bits") != std::string::npos,
          "coordinates");
  });
  return testing::run_cases(argc, argv);
}
