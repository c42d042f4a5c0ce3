// The centre gradient's own source, run on the host and held to plain float64 loops, under several thread schedules
// (schedules.h).
#include <sys/mman.h>

#include "center_gradient_oracle.h"
#include "schedules.h"

using namespace attfc;
using testing::CenterGradientCase;
using testing::CenterGradientData;
using testing::SweepCase;

namespace {

std::vector<uint16_t> check_case(const CenterGradientCase& c, const CenterGradientData& data) {
  return testing::under_schedules(
      c.shared_bytes, [&] { return testing::run_center_gradient(c, data); },
      [&](const std::vector<uint16_t>& out) { testing::check_center_gradient(c, data, out); },
      testing::same_bits<uint16_t>);
}

void add(const std::string& name, const CenterGradientCase& c) {
  testing::add_case(name, [c] { check_case(c, testing::make_center_data(c)); });
}

// Both dtypes of a case.
void add_dtypes(const std::string& name, CenterGradientCase c) {
  c.dtype = Dtype::kBFloat16;
  add(name + ".bf16", c);
  c.dtype = Dtype::kFloat16;
  add(name + ".fp16", c);
}

CenterGradientCase with(void (*change)(CenterGradientCase&)) {
  CenterGradientCase c;
  c.rows = 37;
  change(c);
  return c;
}

void add_shapes() {
  // Tails of rows (tiles of 32, halves of 16) and of centres (blocks of 64): none, one, two or more, all but one.
  for (int64_t rows : {1, 3, 31, 32, 66, 130}) {
    for (int64_t centers : {1, 63, 64, 130}) {
      if (testing::small_only() && rows * centers > 3000) continue;
      CenterGradientCase c;
      c.rows = rows;
      c.centers = centers;
      c.data_seed = static_cast<uint64_t>(rows * 1000 + centers);
      add("shape." + std::to_string(rows) + "x" + std::to_string(centers), c);
    }
  }
  add("packed_rows", with([](auto& c) { c.pad = 0; }));
}

void add_dims() {
  struct Shape {
    const char* name;
    int dim, capability, shared_kib, rows;  // rows: four tiles and a tail, more than there are stages
  };
  for (const Shape& shape : {Shape{"d256", 256, 80, 163, 131}, Shape{"d256compact", 256, 86, 99, 67},
                             Shape{"d512", 512, 80, 163, 67}, Shape{"d512wide", 512, 90, 227, 131},
                             Shape{"d512compact", 512, 86, 99, 67}, Shape{"d128", 128, 120, 99, 131}}) {
    CenterGradientCase c;
    c.dim = shape.dim;
    c.compute_capability = shape.capability;
    c.shared_bytes = shape.shared_kib << 10;
    c.rows = shape.rows;
    c.centers = testing::small_only() ? 20 : 101;
    add_dtypes(shape.name, c);
  }
}

void add_values() {
  add_dtypes("unit_centers", with([](auto& c) { c.scaled = false; }));
  add_dtypes("no_target", with([](auto& c) { c.with_target = false; }));
  add_dtypes("no_row_values", with([](auto& c) { c.modulated = false, c.target_logit = SweepCase::kNoTarget; }));
  add_dtypes("no_target_logit", with([](auto& c) { c.target_logit = SweepCase::kNoTarget; }));
  add_dtypes("no_modulation", with([](auto& c) { c.modulated = false; }));
  add_dtypes("cosines_at_one", with([](auto& c) { c.spread = 2; }));
  add_dtypes("scale_1", with([](auto& c) { c.scale = 1; }));
  add_dtypes("scale_1000", with([](auto& c) { c.scale = 1000, c.weight_scale = 0x1p-4f; }));
  add_dtypes("one_class", with([](auto& c) { c.num_classes = 1; }));
  add_dtypes("two_classes", with([](auto& c) { c.num_classes = 2; }));
  add_dtypes("all_rows_ignored", with([](auto& c) { c.ignored_share = 2; }));
  add_dtypes("all_slots_empty", with([](auto& c) { c.empty_share = 2; }));
  add_dtypes("mostly_empty", with([](auto& c) { c.empty_share = 0.95, c.centers = 130; }));
  add_dtypes("no_rows", with([](auto& c) { c.rows = 0; }));
  add_dtypes("no_centers", with([](auto& c) { c.centers = 0; }));
  // Without its factor, float16 would round such weights to 0: the mean over a large batch late in training.
  add("weight_scale.fp16",
      with([](auto& c) { c.dtype = Dtype::kFloat16, c.scaled = false, c.upstream = 1e-6f, c.weight_scale = 0x1p20f; }));
  add("weight_scale.bf16", with([](auto& c) { c.upstream = 1e-6f, c.weight_scale = 0x1p20f; }));
  // Rows so far below their target logit that the sweep gave them up.
  testing::add_case("lse_given_up", [] {
    const CenterGradientCase c = with([](auto& each) { each.tolerance = 0x1p-12f; });
    CenterGradientData data = testing::make_center_data(c);
    for (const size_t row : {3, 4, 20}) data.lse[row] = -INFINITY;
    check_case(c, data);
  });
  // An ignored row adds nothing even to a centre that has overflowed.
  testing::add_case("ignored_rows_add_nothing", [] {
    const CenterGradientCase c = with([](auto& each) { each.scaled = false, each.ignored_share = 2; });
    CenterGradientData data = testing::make_center_data(c);
    data.centers[0] = 0x7f80;  // infinity
    for (const uint16_t each : testing::run_center_gradient(c, data)) CHECK(each == 0, "%x", each);
  });
  // An embedding that has overflowed spoils the centres it belongs to; an empty slot stays 0.
  testing::add_case("empty_slots_stay_zero", [] {
    const CenterGradientCase c = with([](auto& each) { each.ignored_share = 0; });
    CenterGradientData data = testing::make_center_data(c);
    data.embeddings[0] = 0x7f80;  // infinity
    const std::vector<uint16_t> out = testing::run_center_gradient(c, data);
    for (size_t at = 0; at < out.size(); ++at) {
      CHECK(data.center_labels[at / 128] >= 0 || out[at] == 0, "%d: %x", int(at), out[at]);
    }
  });
  // What must not be silent: a row that counts and has no finite lse, among rows that need no product.
  testing::add_case("nan_is_not_silent", [] {
    const CenterGradientCase c =
        with([](auto& each) { each.tolerance = 0.5f, each.ignored_share = 0, each.with_target = false; });
    CenterGradientData data = testing::make_center_data(c);
    for (float& each : data.grad_lse) each = 0;
    data.lse[7] = NAN;
    data.grad_lse[7] = 1;
    const std::vector<uint16_t> out = testing::run_center_gradient(c, data);
    for (int64_t j = 0; j < c.centers; ++j) {
      if (!testing::is_valid(data, 7, j)) continue;
      CHECK(std::isnan(testing::widen(c, out[static_cast<size_t>(j * c.dim)])), "center %d", int(j));
    }
  });
}

// The mma of one case: first products, and second products of `needed` steps of 16 rows in a block of centres.
long long expected_mma(const CenterGradientCase& c, long long needed) {
  const long long tiles = (c.rows + 31) / 32, blocks = (c.centers + 63) / 64, unit = 16 * 64 * 128 / 2048;
  return unit * (2 * tiles * blocks + needed);
}

// Rows are near the first 64 centres and opposite to all others; their classes are in no slot.
CenterGradientData clustered(const CenterGradientCase& c) {
  testing::SweepData data = testing::clustered(c, 64);
  for (int64_t row = 0; row < c.rows; ++row) data.labels[static_cast<size_t>(row)] = 1000 + row;
  return testing::with_upstream(c, std::move(data));
}

CenterGradientCase clustered_case() {
  CenterGradientCase c;
  c.rows = 70;
  c.centers = 64 * 6;
  c.scaled = c.modulated = false;
  c.empty_share = c.ignored_share = 0;
  c.tolerance = 0x1p-12f;
  return c;
}

void add_omission() {
  testing::add_case("empty_slots_have_no_mass", [] {
    const CenterGradientCase c = with([](auto& each) { each.empty_share = 2, each.scale = 1; });
    CenterGradientData data = testing::make_center_data(c);
    for (float& lse : data.lse) lse = std::isnan(lse) ? lse : 0.0f;
    gpu::host::counters = {};
    testing::run_center_gradient(c, data);
    CHECK(gpu::host::counters.mma == expected_mma(c, 0), "%lld mma", gpu::host::counters.mma);
  });
  for (const bool half : {false, true}) {
    testing::add_case(std::string("omits_blocks_without_mass") + (half ? ".fp16" : ".bf16"), [half] {
      CenterGradientCase c = clustered_case();
      c.dtype = half ? Dtype::kFloat16 : Dtype::kBFloat16;
      CenterGradientData data = clustered(c);
      check_case(c, data);
      const auto count = [&] {
        gpu::host::counters.mma = 0;
        testing::run_center_gradient(c, data);
        return gpu::host::counters.mma;
      };
      // 70 rows are 5 steps of 16, of which the first block needs all.
      CHECK(count() == expected_mma(c, 5), "%lld mma", gpu::host::counters.mma);
      // A row's own class in the last block: its step is needed there, whatever its mass.
      data.center_labels[64 * 5 + 3] = data.labels[20];
      CHECK(count() == expected_mma(c, 6), "%lld mma", gpu::host::counters.mma);
      check_case(c, data);
      c.with_target = false;
      CHECK(count() == expected_mma(c, 5), "%lld mma", gpu::host::counters.mma);
      // Without tolerance every block is needed, but for rows without upstream: theirs is exactly 0.
      c.tolerance = 0;
      CHECK(count() == expected_mma(c, 5 * 6), "%lld mma", gpu::host::counters.mma);
      for (size_t row = 0; row < 32; ++row) data.grad_lse[row] = 0;
      CHECK(count() == expected_mma(c, 3 * 6), "%lld mma", gpu::host::counters.mma);
      check_case(c, data);
    });
  }
  testing::add_case("omission_includes_the_target", [] {
    CenterGradientCase c = clustered_case();
    c.target_logit = SweepCase::kFarAbove;  // e^60 times the negatives' mass
    gpu::host::counters = {};
    const CenterGradientData data = clustered(c);
    testing::run_center_gradient(c, data);
    CHECK(gpu::host::counters.mma == expected_mma(c, 0), "%lld mma", gpu::host::counters.mma);
    c.target_logit = SweepCase::kNoTarget;
    check_case(c, data);
    CHECK(gpu::host::counters.mma == expected_mma(c, 5), "%lld mma", gpu::host::counters.mma);
  });
  // So large a tolerance that the accounting, not rounding, decides.
  testing::add_case("omission_is_bounded", [] {
    const CenterGradientCase c = with([](auto& each) {
      each.rows = 2, each.centers = 64 * 20 - 7, each.scale = 4, each.tolerance = 0.9f, each.num_classes = 3000;
      each.target_logit = SweepCase::kNoTarget, each.ignored_share = 0;
    });
    check_case(c, testing::make_center_data(c));
    const long long mma = gpu::host::counters.mma;
    CHECK(mma > expected_mma(c, 0) && mma < expected_mma(c, 20), "%lld mma: all or nothing", mma);
  });
}

// Rows in memory of their own, kStride elements apart: where `readable` is false a read ends the process.
template <int64_t kStride>
uint16_t* spread(const CenterGradientCase& c, const std::vector<uint16_t>& from, int64_t from_stride,
                 const std::vector<bool>& readable) {
  const size_t bytes = readable.size() * kStride * 2;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED, "no address space");
  uint16_t* to = static_cast<uint16_t*>(memory);
  for (size_t row = 0; row < readable.size(); ++row) {
    uint16_t* start = to + static_cast<int64_t>(row) * kStride;
    std::memcpy(start, &from[row * static_cast<size_t>(from_stride)], static_cast<size_t>(c.dim) * 2);
    if (!readable[row]) mprotect(start, static_cast<size_t>(c.dim) * 2, PROT_NONE);
  }
  return to;
}

template <int64_t kStride>
void check_spread(const CenterGradientCase& c, const CenterGradientData& data) {
  const std::vector<uint16_t> near = testing::run_center_gradient(c, data);
  std::vector<bool> live_rows, live_slots;
  for (int64_t label : data.labels) live_rows.push_back(label >= 0);
  for (int64_t label : data.center_labels) live_slots.push_back(label >= 0);
  std::vector<uint16_t> far(near.size(), 0x7fff);
  cuda::CenterGradientArguments arguments = testing::center_arguments(c, data, far);
  arguments.embeddings = spread<kStride>(c, data.embeddings, data.stride, live_rows);
  arguments.centers = spread<kStride>(c, data.centers, data.stride, live_slots);
  arguments.embedding_stride = arguments.center_stride = kStride;
  const cuda::CenterGradientPlan plan = cuda::plan_center_gradient(testing::limits(c), arguments);
  std::vector<float> workspace(plan.workspace_bytes / sizeof(float));
  CHECK(cuda::launch_center_gradient(plan, arguments, workspace.data(), nullptr) == nullptr, "launch");
  CHECK(testing::same_bits(near, far), "far rows give another result");
}

void add_memory() {
  testing::add_case("empty_and_ignored_are_never_read", [] {
    const CenterGradientCase c = with([](auto& each) { each.ignored_share = each.empty_share = 0.4; });
    check_spread<2048>(c, testing::make_center_data(c));
  });
  // Rows far apart in a sparse mapping: element offsets beyond 2^31, byte offsets beyond 2^32.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  testing::add_case("offsets_beyond_32_bits", [] {
    CenterGradientCase c;
    c.rows = 3;
    c.centers = 3;
    c.empty_share = c.ignored_share = 0;
    check_spread<(int64_t{3} << 29)>(c, testing::make_center_data(c));
  });
#endif
}

void add_refusals() {
  const auto reason = [](void (*change)(cuda::CenterGradientArguments&, cuda::DeviceLimits&)) {
    cuda::CenterGradientArguments arguments{};
    arguments.dtype = Dtype::kBFloat16;
    arguments.dim = 128;
    cuda::DeviceLimits device{80, 163 << 10, 108};
    change(arguments, device);
    const char* words = cuda::why_not(device, arguments);
    return std::string(words != nullptr ? words : "");
  };
  testing::add_case("why_not", [reason] {
    const auto says = [](const std::string& words, const char* part) { return words.find(part) != std::string::npos; };
    CHECK(reason([](auto&, auto&) {}).empty(), "refused without a reason to");
    CHECK(says(reason([](auto& a, auto&) { a.dtype = Dtype::kFloat32; }), "float32"), "dtype");
    CHECK(says(reason([](auto& a, auto&) { a.dim = 384; }), "D = 128"), "D");
    CHECK(says(reason([](auto&, auto& d) { d.compute_capability = 75; }), "8.0"), "architecture");
    CHECK(says(reason([](auto&, auto& d) { d.shared_bytes = 48 << 10; }), "shared memory"), "shared");
    CHECK(says(reason([](auto& a, auto&) { a.embedding_stride = 132; }), "embeddings"), "stride");
    CHECK(says(reason([](auto& a, auto&) { a.centers = reinterpret_cast<void*>(8); }), "centers"), "alignment");
    CHECK(says(reason([](auto& a, auto&) { a.center_grad = reinterpret_cast<void*>(8); }), "center_grad"), "output");
    CHECK(says(reason([](auto& a, auto&) { a.num_rows = int64_t{1} << 31; }), "2^31"), "rows");
    CHECK(says(reason([](auto& a, auto&) { a.num_centers = int64_t{1} << 36; }), "2^36"), "centers");
  });
  testing::add_case("launches", [] {
    const auto launches = [](int64_t rows, int64_t centers) {
      CenterGradientCase c;
      c.rows = rows;
      c.centers = centers;
      gpu::host::counters = {};
      testing::run_center_gradient(c, testing::make_center_data(c));
      return gpu::host::counters.launches;
    };
    CHECK(launches(2, 2) == 2 && launches(0, 2) == 1 && launches(2, 0) == 0, "a header's promise");
  });
  testing::add_case("plan", [] {
    cuda::CenterGradientArguments arguments{};
    arguments.dtype = Dtype::kBFloat16;
    arguments.dim = 512;
    arguments.num_rows = 390;
    arguments.num_centers = 1000001;
    const cuda::CenterGradientPlan plan = cuda::plan_center_gradient({90, 227 << 10, 132}, arguments);
    CHECK(plan.kernel == cuda::CenterGradientKernel::kD512Wide && plan.centers_per_block == 64, "another kernel");
    CHECK(plan.blocks == 15626 && plan.tiles == 13, "%lld blocks, %d tiles", static_cast<long long>(plan.blocks),
          plan.tiles);
    CHECK(plan.workspace_bytes == size_t{13} * 32 * 48, "%zu bytes", plan.workspace_bytes);
  });
}

}  // namespace

int main(int argc, char** argv) {
  add_shapes();
  add_dims();
  add_values();
  add_omission();
  add_memory();
  add_refusals();
  return testing::run_cases(argc, argv);
}
