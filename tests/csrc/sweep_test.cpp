// The CUDA sweep's own source, run on the host and held to plain float64 loops; under each of several thread schedules,
// whose results must be the same bits. ATTFC_SEEDS (environment) says how many schedules, ATTFC_SMALL leaves the larger
// shapes out (for the sanitizers, which are slow).
#include <cstring>
#include <tuple>

#include "sweep_case.h"

using namespace attfc;
using testing::check_case, testing::same_bits, testing::small_only;
using testing::SweepCase;

namespace {

SweepCase with(void (*change)(SweepCase&)) {
  SweepCase c;
  change(c);
  return c;
}

void add_shapes() {
  // Tails of rows (blocks of 64) and of centres (tiles of 32): none, one, two or more, all but one.
  testing::add_sweep_shapes(SweepCase(), {1, 3, 63, 64, 66}, {1, 31, 64, 99}, 3000);
  testing::add_sweep("splits.uneven",
                     with([](SweepCase& c) { c.rows = 5, c.centers = 32 * 40 - 5, c.multiprocessors = 3; }));
  // Each split finds a reference of its own.
  testing::add_sweep("splits.moved", with([](SweepCase& c) {
                       c.rows = 5, c.centers = 32 * 40 - 5, c.multiprocessors = 3, c.scale = 100;
                       c.dtype = Dtype::kFloat16, c.target_logit = SweepCase::kNoTarget;
                     }));
  // More splits than the merge's warp has lanes.
  testing::add_sweep("splits.many",
                     with([](SweepCase& c) { c.rows = 3, c.centers = 32 * 70, c.multiprocessors = 35; }));
  testing::add_sweep("splits.rows", with([](SweepCase& c) { c.rows = 70, c.centers = 500, c.multiprocessors = 8; }));
  testing::add_sweep("packed_rows", with([](SweepCase& c) { c.rows = 65, c.pad = 0; }));
}

void add_dims() {
  struct Shape {
    const char* name;
    int dim, capability, shared_kib;
    bool large;
  };
  for (const Shape& shape : {Shape{"d256", 256, 80, 163, false}, Shape{"d256compact", 256, 86, 99, false},
                             Shape{"d512", 512, 80, 163, true}, Shape{"d512wide", 512, 100, 227, true},
                             Shape{"d512compact", 512, 86, 99, false}, Shape{"d128", 128, 120, 99, false}}) {
    SweepCase c;
    c.dim = shape.dim;
    c.compute_capability = shape.capability;
    c.shared_bytes = shape.shared_kib << 10;
    c.rows = small_only() ? 7 : 67;
    c.centers = small_only() ? 50 : 150;
    testing::add_sweep_dtypes(shape.name, c);
    if (shape.dim != 128) {
      SweepCase raw = c;
      raw.scaled = true;
      raw.rows = 7;
      raw.centers = 50;
      testing::add_sweep(std::string(shape.name) + ".scaled", raw);
    }
    c.need_grad = false;
    testing::add_sweep(std::string(shape.name) + ".nograd", c);
  }
}

void add_values() {
  testing::add_sweep_dtypes("no_row_values",
                            with([](SweepCase& c) { c.modulated = false, c.target_logit = SweepCase::kNoTarget; }));
  testing::add_sweep_dtypes("no_target_logit", with([](SweepCase& c) { c.target_logit = SweepCase::kNoTarget; }));
  testing::add_sweep_dtypes("target_logit_far_above",
                            with([](SweepCase& c) { c.target_logit = SweepCase::kFarAbove; }));
  testing::add_sweep_dtypes("target_logit_far_below",
                            with([](SweepCase& c) { c.target_logit = SweepCase::kFarBelow; }));
  testing::add_sweep_dtypes("scaled", with([](SweepCase& c) { c.scaled = true; }));
  testing::add_sweep_dtypes("scaled.no_target_logit",
                            with([](SweepCase& c) { c.scaled = true, c.target_logit = SweepCase::kNoTarget; }));
  testing::add_sweep_dtypes("scaled.short_centers", with([](SweepCase& c) { c.scaled = true, c.length_log2 = -9; }));
  testing::add_sweep_dtypes("scaled.cosines_at_one",
                            with([](SweepCase& c) { c.scaled = true, c.spread = 2, c.centers = 100; }));
  testing::add_sweep("scaled.nograd", with([](SweepCase& c) { c.scaled = true, c.need_grad = false; }));
  testing::add_sweep("scaled.splits",
                     with([](SweepCase& c) { c.scaled = true, c.centers = 32 * 40 - 5, c.multiprocessors = 3; }));
  testing::add_sweep_dtypes("no_modulation", with([](SweepCase& c) { c.modulated = false; }));
  testing::add_sweep_dtypes("cosines_at_one", with([](SweepCase& c) { c.spread = 2, c.centers = 100; }));
  testing::add_sweep_dtypes("scale_1", with([](SweepCase& c) { c.scale = 1; }));
  testing::add_sweep_dtypes("scale_1000", with([](SweepCase& c) { c.scale = 1000, c.centers = 200; }));
  testing::add_sweep_dtypes("scale_1000_no_target_logit", with([](SweepCase& c) {
                              c.scale = 1000, c.centers = 200, c.target_logit = SweepCase::kNoTarget;
                            }));
  testing::add_sweep_dtypes("no_gradient", with([](SweepCase& c) { c.need_grad = false; }));
  testing::add_sweep_dtypes("one_class", with([](SweepCase& c) { c.num_classes = 1; }));
  testing::add_sweep_dtypes("two_classes", with([](SweepCase& c) { c.num_classes = 2; }));
  testing::add_sweep_dtypes("all_rows_ignored", with([](SweepCase& c) { c.ignored_share = 2; }));
  testing::add_sweep_dtypes("all_slots_empty", with([](SweepCase& c) { c.empty_share = 2; }));
  testing::add_sweep_dtypes("mostly_empty", with([](SweepCase& c) { c.empty_share = 0.95, c.centers = 130; }));
  testing::add_sweep_dtypes("no_centers", with([](SweepCase& c) { c.centers = 0; }));
  testing::add_sweep_dtypes("one_negative",
                            with([](SweepCase& c) { c.centers = 1, c.empty_share = 0, c.num_classes = 1000; }));
  testing::add_sweep_dtypes("splits_without_negatives",
                            with([](SweepCase& c) { c.empty_share = 0.99, c.centers = 600, c.multiprocessors = 4; }));
}

// Each copy of a tile has a whole interval to land in, whatever the number of stages: the mma of both products.
void add_copies() {
  for (const auto& [name, capability, shared_kib] :
       {std::tuple{"4_stages", 80, 163}, std::tuple{"3_stages", 100, 227}, std::tuple{"3_stages_compact", 86, 99}}) {
    testing::add_case(std::string("copies_land_over_an_interval.") + name, [capability, shared_kib] {
      SweepCase c;
      c.dim = 512;
      c.compute_capability = capability;
      c.shared_bytes = shared_kib << 10;
      c.rows = 32;
      c.empty_share = 0;
      c.scale = 1;  // no tile is without mass
      const auto count = [&](int64_t tiles) {
        c.centers = 32 * tiles;
        gpu::host::options.seed = 0;
        gpu::host::options.shared_limit = static_cast<size_t>(c.shared_bytes);
        gpu::host::counters = {};
        testing::run_sweep(c, testing::make_data(c));
        return gpu::host::counters;
      };
      const gpu::host::Counters less = count(4), more = count(7);
      const cuda::SweepArguments arguments = [&] {
        cuda::SweepArguments a{};
        a.dtype = c.dtype, a.dim = c.dim, a.num_rows = c.rows, a.num_centers = c.centers;
        return a;
      }();
      const cuda::SweepPlan plan = cuda::plan_sweep({capability, c.shared_bytes, 1}, arguments);
      const long long tiles = 3 * 32 / plan.centers_per_tile, warps = plan.rows_per_block / 8;
      const long long interval = (more.mma - less.mma) / tiles / warps;  // mma of a warp
      const long long copies = more.late_copies - less.late_copies;
      CHECK(copies > 0 && interval == 2ll * plan.rows_per_block * plan.centers_per_tile * 512 / 2048 / warps,
            "%lld copies, %lld mma an interval", copies, interval);
      CHECK(more.mma_behind_copies - less.mma_behind_copies == copies * interval, "%lld mma behind %lld copies",
            more.mma_behind_copies - less.mma_behind_copies, copies);
    });
  }
}

void add_omission() {
  for (const bool half : {false, true}) {
    testing::add_case(std::string("omits_empty_tiles") + (half ? ".fp16" : ".bf16"), [half] {
      SweepCase c;
      c.dtype = half ? Dtype::kFloat16 : Dtype::kBFloat16;
      c.rows = 9;
      c.centers = 32 * 8;
      c.modulated = false;
      c.empty_share = 0;
      c.tolerance = 0x1p-12f;
      const testing::SweepData data = testing::clustered(c, 64);
      const testing::SweepResult result = check_case(c, data);
      const long long with_omission = gpu::host::counters.mma;
      float omitted = 0;
      for (float each : result.omitted) omitted = std::max(omitted, each);
      CHECK(omitted > 0, "nothing was reported as omitted");
      c.tolerance = 0;
      check_case(c, data);
      const long long all = gpu::host::counters.mma;
      // Each of 8 tiles takes 64 x 32 x 128 / 2048 mma a product: two tiles need the second product.
      CHECK(all == 8 * 2 * 128 && with_omission == (8 + 2) * 128, "%lld and %lld mma", all, with_omission);
    });
    testing::add_case(std::string("omission_is_accounted_over_splits") + (half ? ".fp16" : ".bf16"), [half] {
      SweepCase c;
      c.dtype = half ? Dtype::kFloat16 : Dtype::kBFloat16;
      c.rows = 6;
      c.centers = 32 * 60;
      c.scale = 4;
      c.multiprocessors = 2;  // holds two blocks each: four splits
      c.ignored_share = 0;
      c.tolerance = 0.05f;  // so large that the accounting, not rounding, decides
      testing::SweepData data = testing::make_data(c);
      // The target weighs e times all negatives, so that it decides what may be omitted.
      const testing::SweepResult before = testing::run_sweep(c, data);
      for (size_t row = 0; row < data.target_logit.size(); ++row) data.target_logit[row] = before.lse[row] + 1;
      const testing::SweepResult result = check_case(c, data);
      for (float omitted : result.omitted) CHECK(omitted > c.tolerance / 4, "little was omitted: %g", omitted);
    });
  }
  testing::add_case("omission_includes_the_target", [] {
    SweepCase c;
    c.modulated = false;
    c.target_logit = SweepCase::kFarAbove;  // e^60 times the negatives' mass
    c.tolerance = 0x1p-12f;
    c.ignored_share = 0;
    gpu::host::counters = {};
    check_case(c, testing::make_data(c));
    CHECK(gpu::host::counters.mma == 3 * 128, "%lld mma: no tile needs the second product", gpu::host::counters.mma);
  });
}

// Rows far apart in a sparse mapping: element offsets beyond 2^31, byte offsets beyond 2^32.
void add_offsets() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  testing::add_case("offsets_beyond_32_bits", [] {
    SweepCase c;
    c.rows = 3;
    c.centers = 3;
    c.empty_share = c.ignored_share = 0;
    testing::SweepData data = testing::make_data(c);
    const testing::SweepResult near = testing::run_sweep(c, data);
    constexpr int64_t kStride = int64_t{3} << 29;
    constexpr size_t kBytes = (size_t{2} * kStride + 1024) * 2;
    const auto spread = [&](const std::vector<uint16_t>& from) {
      void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      CHECK(memory != MAP_FAILED, "no address space");
      uint16_t* to = static_cast<uint16_t*>(memory);
      for (int64_t row = 0; row < 3; ++row)
        std::memcpy(to + row * kStride, &from[static_cast<size_t>(row * data.stride)], 256);
      return to;
    };
    testing::SweepResult far = near;
    for (float& each : far.grad) each = NAN;
    cuda::SweepArguments arguments{};
    static_cast<SweepInputs&>(arguments) = testing::inputs_of(c, data);
    arguments.embeddings = spread(data.embeddings);
    arguments.centers = spread(data.centers);
    arguments.embedding_stride = arguments.center_stride = kStride;
    arguments.scale = c.scale;
    arguments.need_grad = true;
    testing::aim_at(arguments, far);
    const cuda::SweepPlan plan = cuda::plan_sweep({80, 163 << 10, 1}, arguments);
    std::vector<float> workspace(plan.workspace_bytes / sizeof(float));
    CHECK(cuda::launch_sweep(plan, arguments, workspace.data(), nullptr) == nullptr, "launch");
    CHECK(same_bits(near.lse, far.lse) && same_bits(near.grad, far.grad), "far rows give another result");
  });
#endif
}

void add_refusals() {
  const auto reason = [](void (*change)(cuda::SweepArguments&, cuda::DeviceLimits&)) {
    cuda::SweepArguments arguments{};
    arguments.dtype = Dtype::kBFloat16;
    arguments.dim = 128;
    cuda::DeviceLimits device{80, 163 << 10, 108};
    change(arguments, device);
    const char* words = cuda::why_not(device, arguments);
    return std::string(words != nullptr ? words : "");
  };
  testing::add_case("why_not", [reason] {
    CHECK(reason([](auto&, auto&) {}).empty(), "refused without a reason to");
    CHECK(reason([](auto& a, auto&) { a.dtype = Dtype::kFloat32; }).find("float32") != std::string::npos, "dtype");
    CHECK(reason([](auto& a, auto&) { a.dim = 384; }).find("D = 128") != std::string::npos, "D");
    CHECK(reason([](auto&, auto& d) { d.compute_capability = 75; }).find("8.0") != std::string::npos, "architecture");
    CHECK(reason([](auto&, auto& d) { d.shared_bytes = 48 << 10; }).find("shared memory") != std::string::npos,
          "shared");
    CHECK(reason([](auto& a, auto&) { a.embedding_stride = 132; }).find("embeddings") != std::string::npos, "stride");
    CHECK(reason([](auto& a, auto&) { a.centers = reinterpret_cast<void*>(8); }).find("centers") != std::string::npos,
          "alignment");
    CHECK(reason([](auto& a, auto&) {
            a.need_grad = true, a.unit_grad = reinterpret_cast<float*>(4);
          }).find("unit_grad") != std::string::npos,
          "output alignment");
    CHECK(reason([](auto& a, auto&) { a.num_rows = int64_t{1} << 31; }).find("2^31") != std::string::npos, "rows");
  });
  testing::add_case("no_rows", [] {
    gpu::host::counters = {};
    SweepCase c;
    c.rows = 0;
    testing::run_sweep(c, testing::make_data(c));
    CHECK(gpu::host::counters.launches == 0, "%lld launches", gpu::host::counters.launches);
  });
  testing::add_case("plan_fills_the_device", [] {
    cuda::SweepArguments arguments{};
    arguments.dtype = Dtype::kBFloat16;
    arguments.dim = 512;
    arguments.num_rows = 384;
    arguments.num_centers = 1000000;
    arguments.need_grad = true;
    const cuda::SweepPlan plan = cuda::plan_sweep({90, 227 << 10, 132}, arguments);
    CHECK(plan.kernel == cuda::SweepKernel::kSm90 && plan.row_blocks == 6 && plan.splits == 22, "%d splits",
          plan.splits);
    CHECK(plan.tiles_per_split * plan.splits >= 1000000 / 64, "tiles are missing");
    CHECK(plan.workspace_bytes == size_t{384} * 22 * (512 + 9) * 4, "%zu bytes", plan.workspace_bytes);
  });
  testing::add_case("plan_takes_the_fewest_splits_near_the_best", [] {
    const auto splits = [](int64_t rows, int64_t centers, int capability, int shared_kib, int multiprocessors) {
      cuda::SweepArguments arguments{};
      arguments.dtype = Dtype::kBFloat16;
      arguments.dim = 512;
      arguments.num_rows = rows;
      arguments.num_centers = centers;
      return cuda::plan_sweep({capability, shared_kib << 10, multiprocessors}, arguments).splits;
    };
    // 128 blocks of rows on 132 multiprocessors: one split takes 31256 tiles' time, the best (33 splits) 30496.
    CHECK(splits(8192, 1000000, 90, 227, 132) == 1, "%d", splits(8192, 1000000, 90, 227, 132));
    // 256 on 108: three rounds with one split, 12 of a fifth each with five.
    CHECK(splits(16384, 1000000, 80, 163, 108) == 5, "%d", splits(16384, 1000000, 80, 163, 108));
    // 68 on 132: one split would leave half of the device idle.
    CHECK(splits(4352, 1000000, 90, 227, 132) == 17, "%d", splits(4352, 1000000, 90, 227, 132));
    CHECK(splits(64, 32, 90, 227, 132) == 1 && splits(64, 0, 90, 227, 132) == 1, "one tile, or none");
  });
}

}  // namespace

int main(int argc, char** argv) {
  add_shapes();
  add_dims();
  add_values();
  add_copies();
  add_omission();
  add_offsets();
  add_refusals();
  return testing::run_cases(argc, argv);
}
