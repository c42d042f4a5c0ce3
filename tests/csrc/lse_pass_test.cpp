// The lse pass's own source, run on the host and held to plain float64 loops; under each of several schedules of
// threads, copies and products, whose results must be the same bits. ATTFC_SEEDS, ATTFC_SMALL: see schedules.h.
#include "csrc/cuda/lse_pass.h"

#include "csrc/cuda/lse_pass_layout.h"
#include "csrc/cuda/merge.h"
#include "schedules.h"
#include "sweep_oracle.h"

using namespace attfc;
using testing::same_bits, testing::small_only;
using testing::SweepCase;

namespace {

struct LseResult {
  testing::SweepResult sweep;
  std::vector<uint16_t> mass;  // [tiles, padded rows]
  int64_t padded_rows = 0;
};

LseResult run_lse_pass(const SweepCase& c, const testing::SweepData& data, int splits) {
  const auto rows = static_cast<size_t>(c.rows);
  LseResult result;
  for (std::vector<float>* each : {&result.sweep.lse, &result.sweep.max_cosine, &result.sweep.omitted}) {
    each->assign(rows, NAN);
  }
  result.sweep.moments.assign(rows * 3, NAN);
  result.sweep.hard_count.assign(rows, -7);
  const int64_t row_blocks = (c.rows + cuda::kLsePassRows - 1) / cuda::kLsePassRows;
  const int64_t tiles = (c.centers + cuda::kLsePassTile - 1) / cuda::kLsePassTile;
  result.padded_rows = row_blocks * cuda::kLsePassRows;
  result.mass.assign(static_cast<size_t>(tiles * result.padded_rows), 0x7fff);
  const size_t count = rows * static_cast<size_t>(splits);
  std::vector<float> partial(7 * count, NAN);
  std::vector<int64_t> hard(count, -7);

  cuda::LsePassParameters parameters{};
  cuda::SweepParameters& sweep = parameters.sweep;
  static_cast<SweepInputs&>(sweep) = testing::inputs_of(c, data);
  sweep.scale = c.scale;
  sweep.splits = splits;
  sweep.tiles_per_split = (tiles + splits - 1) / splits;
  float* at = partial.data();
  for (float** each :
       {&sweep.partial.reference, &sweep.partial.sum, &sweep.partial.moment_quad, &sweep.partial.moment_lin,
        &sweep.partial.moment_const, &sweep.partial.omitted, &sweep.partial.max_cosine}) {
    *each = at;
    at += count;
  }
  sweep.partial.hard_count = hard.data();
  parameters.mass = result.mass.data();
  parameters.mass_rows = result.padded_rows;
  const char* error = cuda::launch_lse_pass(c.dtype, c.dim, parameters, row_blocks, nullptr);
  CHECK(error == nullptr, "%s", error);
  const cuda::MergeParameters merge{sweep.partial,
                                    c.rows,
                                    c.dim,
                                    splits,
                                    sweep.has_target_logit() ? static_cast<const float*>(sweep.row_values) : nullptr,
                                    nullptr,
                                    c.scale,
                                    result.sweep.lse.data(),
                                    result.sweep.hard_count.data(),
                                    result.sweep.max_cosine.data(),
                                    result.sweep.omitted.data(),
                                    nullptr,
                                    result.sweep.moments.data()};
  error = cuda::launch_merge(merge, nullptr);
  CHECK(error == nullptr, "%s", error);
  return result;
}

// Each tile's mass is rounded up by 1/32 to 2/32 in its logarithm; float32's share comes on top, either way.
void check_mass(const SweepCase& c, const testing::SweepData& data, const LseResult& result) {
  for (int64_t row = 0; row < result.padded_rows; ++row) {
    for (int64_t tile = 0; tile * cuda::kLsePassTile < c.centers; ++tile) {
      const uint16_t code = result.mass[static_cast<size_t>(tile * result.padded_rows + row)];
      double largest = -INFINITY;
      std::vector<double> logits;
      const int64_t end = std::min(c.centers, (tile + 1) * cuda::kLsePassTile);
      for (int64_t j = tile * cuda::kLsePassTile; row < c.rows && j < end; ++j) {
        if (!testing::is_valid(data, row, j)) continue;
        logits.push_back(testing::logit_of(c, data, row, j));
        largest = std::max(largest, logits.back());
      }
      double sum = 0;
      for (double logit : logits) sum += std::exp(logit - largest);
      const double expected = logits.empty() ? -INFINITY : (largest + std::log(sum)) / std::log(2.0);
      const double got = cuda::TileMass::log2_mass(code);
      const double error = 0.01 + c.scale * 0x1p-18;
      const bool negligible =
          code == 0 && row < c.rows && data.target_logit[static_cast<size_t>(row)] / std::log(2.0) > expected + 110;
      CHECK(logits.empty() ? code == 0 : negligible || (got >= expected && got <= expected + 2.0 / 32 + error),
            "row %d tile %d: 2^%g, expected 2^%g", int(row), int(tile), got, expected);
    }
  }
}

LseResult check_case(const SweepCase& c, const testing::SweepData& data, int splits) {
  return testing::under_schedules(
      227 << 10, [&] { return run_lse_pass(c, data, splits); },
      [&](const LseResult& result) {
        testing::check_against_oracle(c, data, result.sweep);
        check_mass(c, data, result);
      },
      [](const LseResult& a, const LseResult& b) {
        return same_bits(a.sweep.lse, b.sweep.lse) && same_bits(a.sweep.moments, b.sweep.moments) &&
               same_bits(a.sweep.max_cosine, b.sweep.max_cosine) && same_bits(a.sweep.hard_count, b.sweep.hard_count) &&
               same_bits(a.mass, b.mass);
      });
}

void add(const std::string& name, void (*change)(SweepCase&), int splits = 1) {
  SweepCase c;
  c.need_grad = false;
  change(c);
  testing::add_case(name, [c, splits] { check_case(c, testing::make_data(c), splits); });
}

void add_dtypes(const std::string& name, void (*change)(SweepCase&)) {
  for (const bool half : {false, true}) {
    SweepCase c;
    c.need_grad = false;
    change(c);
    c.dtype = half ? Dtype::kFloat16 : Dtype::kBFloat16;
    testing::add_case(name + (half ? ".fp16" : ".bf16"), [c] { check_case(c, testing::make_data(c), 1); });
  }
}

void add_all() {
  // Tails of rows (blocks of 128) and of centres (tiles of 128): none, one, all but one.
  for (int64_t rows : {1, 127, 128, 130}) {
    for (int64_t centers : {1, 127, 128, 300}) {
      if (small_only() && rows * centers > 17000) continue;
      SweepCase c;
      c.need_grad = false;
      c.rows = rows;
      c.centers = centers;
      c.data_seed = static_cast<uint64_t>(rows * 1000 + centers);
      testing::add_case("shape." + std::to_string(rows) + "x" + std::to_string(centers),
                        [c] { check_case(c, testing::make_data(c), 1); });
    }
  }
  // More tiles than stages of the ring hold, an even and an odd number.
  add("tiles.8", [](SweepCase& c) { c.centers = 1024; });
  add("tiles.9", [](SweepCase& c) { c.centers = 1100; });
  add("d256", [](SweepCase& c) { c.dim = 256, c.centers = 400; });
  add_dtypes("d512", [](SweepCase& c) { c.dim = 512, c.centers = 300, c.rows = small_only() ? 5 : 70; });
  add("d512.scaled", [](SweepCase& c) { c.dim = 512, c.centers = 290, c.scaled = true; });
  add("splits", [](SweepCase& c) { c.centers = 1000; }, 3);
  add("splits.empty_split", [](SweepCase& c) { c.centers = 500; }, 5);
  add("packed_rows", [](SweepCase& c) { c.rows = 65, c.pad = 0; });
  add_dtypes("no_target", [](SweepCase& c) { c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("target_far_above", [](SweepCase& c) { c.target_logit = SweepCase::kFarAbove; });
  add_dtypes("target_far_below", [](SweepCase& c) { c.target_logit = SweepCase::kFarBelow; });
  add_dtypes("scaled", [](SweepCase& c) { c.scaled = true; });
  add_dtypes("scaled.no_target", [](SweepCase& c) { c.scaled = true, c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("no_modulation", [](SweepCase& c) { c.modulated = false; });
  add_dtypes("cosines_at_one", [](SweepCase& c) { c.spread = 2, c.centers = 100; });
  add_dtypes("scale_1", [](SweepCase& c) { c.scale = 1; });
  add_dtypes("scale_600_no_target",
             [](SweepCase& c) { c.scale = 600, c.centers = 300, c.target_logit = SweepCase::kNoTarget; });
  add_dtypes("all_rows_ignored", [](SweepCase& c) { c.ignored_share = 2; });
  add_dtypes("all_slots_empty", [](SweepCase& c) { c.empty_share = 2; });
  add_dtypes("mostly_empty", [](SweepCase& c) { c.empty_share = 0.95, c.centers = 130; });
  add("one_class", [](SweepCase& c) { c.num_classes = 1; });
}

}  // namespace

int main(int argc, char** argv) {
  add_all();
  testing::add_case("tile_mass", [] {
    CHECK(cuda::TileMass::log2_mass(cuda::TileMass::encode(-INFINITY)) == -INFINITY, "nothing stays nothing");
    CHECK(cuda::TileMass::log2_mass(cuda::TileMass::encode(1e30f)) == INFINITY, "too much is never left out");
    CHECK(cuda::TileMass::encode(-1e30f) == 1, "the least that is something");
    for (float x = -1023; x < 1022; x += 0.37f) {
      const float decoded = cuda::TileMass::log2_mass(cuda::TileMass::encode(x));
      CHECK(decoded > x && decoded <= x + 2.0f / 32 + 1e-4f, "%g becomes %g", x, decoded);
    }
  });
  return testing::run_cases(argc, argv);
}
