// The host side of csrc/cuda/gpu/sm90.h held to the PTX ISA: where a copy puts each element and where wgmma reads it,
// the accumulator's layout, phases and bytes of barriers; and every way of breaking a rule must end the run with the
// right words.
#include "csrc/cuda/gpu/sm90.h"

#include "kernel_call.h"

using namespace attfc;
using gpu::host::counters;
using testing::check_dies;
using testing::run;

namespace {

constexpr size_t kTileBytes = size_t{128} * 128;

// PTX ISA, "Swizzling modes", 128 bytes: within 1024 bytes the 16-byte chunk c of row r lies at chunk c XOR r.
const int kSwizzledChunk[8][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5},
                                  {3, 2, 1, 0, 7, 6, 5, 4}, {4, 5, 6, 7, 0, 1, 2, 3}, {5, 4, 7, 6, 1, 0, 3, 2},
                                  {6, 7, 4, 5, 2, 3, 0, 1}, {7, 6, 5, 4, 3, 2, 1, 0}};
int element_of(int row, int column) { return row * 64 + kSwizzledChunk[row % 8][column / 8] * 8 + column % 8; }

struct Block {
  uint16_t *left, *right;
  gpu::Barrier* barriers;
  Block() {
    gpu::SharedArena arena;
    left = arena.take<uint16_t>(128 * 64);
    right = arena.take<uint16_t>(128 * 64);
    barriers = arena.take<gpu::Barrier>(2);
  }
};
constexpr size_t kBlockBytes = 2 * kTileBytes + 16;

gpu::TensorMap map_of(const std::vector<uint16_t>& matrix, int64_t rows, int64_t columns, int tile_rows = 128) {
  gpu::TensorMap map;
  CHECK(gpu::encode_tensor_map(map, {matrix.data(), true, rows, columns, columns, tile_rows}) == nullptr, "refused");
  return map;
}

// Small numbers, so that sums are exact in float32.
std::vector<uint16_t> numbers(int64_t count, int factor) {
  std::vector<uint16_t> all;
  for (int64_t i = 0; i < count; ++i) {
    all.push_back(static_cast<uint16_t>(gpu::pack<gpu::BFloat16>(static_cast<float>(i * factor % 17 - 8), 0)));
  }
  return all;
}
float number(const std::vector<uint16_t>& all, int64_t at) {
  return gpu::to_float(gpu::BFloat16{all[static_cast<size_t>(at)]});
}

void init(const Block& block, unsigned arrivals = 1) {
  if (gpu::thread_index() == 0) {
    gpu::barrier_init(block.barriers, arrivals);
    gpu::barrier_init(block.barriers + 1, arrivals);
    gpu::fence_barrier_init();
  }
  gpu::sync_block();
}

// Brings both tiles, as the producer of a warpgroup that then uses them.
void load(const Block& block, const gpu::TensorMap& left, const gpu::TensorMap& right) {
  init(block);
  if (gpu::thread_index() == 0) {
    gpu::barrier_arrive_expect_tx(block.barriers, 2 * kTileBytes);
    gpu::copy_tile(block.left, left, block.barriers, 0, 0);
    gpu::copy_tile(block.right, right, block.barriers, 0, 0);
  }
  gpu::barrier_wait(block.barriers, 0);
}

void add_layouts() {
  testing::add_case("copy_tile", [] {
    // 130 x 70: the tile at (100, 64) has 30 rows and 6 columns inside; the rest are zeros.
    const std::vector<uint16_t> matrix = numbers(130 * 72, 5);
    for (const uint64_t seed : {0, 1, 2, 3}) {
      gpu::TensorMap map;
      CHECK(gpu::encode_tensor_map(map, {matrix.data(), true, 130, 70, 72, 128}) == nullptr, "refused");
      run(
          32, kBlockBytes,
          [&] {
            const Block block;
            init(block);
            if (gpu::thread_index() == 0) {
              gpu::barrier_arrive_expect_tx(block.barriers, kTileBytes);
              gpu::copy_tile(block.left, map, block.barriers, 64, 100);
              if (seed == 0) CHECK(block.left[5] == gpu::host::kPoison, "poisoned until it lands");
            }
            gpu::barrier_wait(block.barriers, 0);
            for (int row = static_cast<int>(gpu::thread_index()); row < 128; row += 32) {
              for (int column = 0; column < 64; ++column) {
                const bool inside = row < 30 && column < 6;
                const uint16_t expected = inside ? matrix[static_cast<size_t>((100 + row) * 72 + 64 + column)] : 0;
                CHECK(block.left[element_of(row, column)] == expected, "row %d column %d", row, column);
              }
            }
          },
          seed);
    }
    CHECK(counters.tile_copies == 4, "%lld", counters.tile_copies);
  });
  testing::add_case("descriptor", [] {
    run(32, kBlockBytes, [] {
      const Block block;
      const uint32_t start = gpu::host::block->arena->offset_of(block.right);
      // PTX ISA, "Matrix descriptor": 14 bits of address / 16, 1 in the unused leading offset, 1024 / 16, swizzle 1.
      const uint64_t expected = uint64_t{start} / 16 | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
      CHECK(gpu::swizzled_operand(block.right).descriptor() == expected, "%llx",
            static_cast<unsigned long long>(expected));
      CHECK(gpu::swizzled_operand(block.right).at(64).descriptor() == expected + 4, "two steps of 16 columns on");
      for (int row = 0; row < 128; ++row) {
        for (int column = 0; column < 64; ++column) {
          const uint64_t descriptor = gpu::swizzled_operand(block.right).at(column / 16 * 32).descriptor();
          const uint32_t address = gpu::host::operand_address(descriptor, row, column % 16, 0);
          CHECK(address == start + 2 * static_cast<uint32_t>(element_of(row, column)), "row %d column %d", row, column);
        }
      }
    });
  });
  testing::add_case("wgmma", [] {
    const std::vector<uint16_t> left = numbers(128 * 64, 5), right = numbers(128 * 64, 11);
    const gpu::TensorMap left_map = map_of(left, 128, 64), right_map = map_of(right, 128, 64);
    for (const uint64_t seed : {0, 1, 2, 3}) {
      run(
          128, kBlockBytes,
          [&] {
            const Block block;
            load(block, left_map, right_map);
            const int thread = static_cast<int>(gpu::thread_index());
            // Rows 64 .. 127 of the left tile.
            const gpu::Operand a = gpu::swizzled_operand(block.left).at(64 * 128),
                               b = gpu::swizzled_operand(block.right);
            float d[64], other[64];
            for (int i = 0; i < 64; ++i) d[i] = other[i] = 1000;
            gpu::wgmma_fence();
            gpu::wgmma_64x128x16<gpu::BFloat16, false>(d, a, b);
            for (int k = 1; k < 4; ++k) gpu::wgmma_64x128x16<gpu::BFloat16, true>(d, a.at(32 * k), b.at(32 * k));
            gpu::wgmma_commit();
            gpu::wgmma_64x128x16<gpu::BFloat16, true>(other, a, b);
            gpu::wgmma_commit();
            CHECK(std::isnan(d[0]) && std::isnan(other[63]), "unknown until waited for");
            gpu::wgmma_wait<1>(d);
            CHECK(std::isnan(other[0]), "the second group is not waited for");
            gpu::wgmma_wait<0>(other);
            for (int i = 0; i < 64; ++i) {
              // PTX ISA, "Accumulator D", wgmma.m64nNk16.
              const int row = 16 * (thread / 32) + thread % 32 / 4 + (i % 4 < 2 ? 0 : 8);
              const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
              float all = 0, part = 1000;
              for (int k = 0; k < 64; ++k) {
                const float term = number(left, (64 + row) * 64 + k) * number(right, column * 64 + k);
                all += term;
                part += k < 16 ? term : 0;
              }
              CHECK(d[i] == all && other[i] == part, "thread %d register %d: %g %g", thread, i, d[i], other[i]);
            }
          },
          seed);
    }
  });
  // The right operand row by row: 32 rows of two tiles of 64 columns, brought by two copies; and 32 columns of logits.
  testing::add_case("wgmma_over_rows", [] {
    const std::vector<uint16_t> left = numbers(128 * 64, 5), right = numbers(32 * 128, 11);
    const gpu::TensorMap left_map = map_of(left, 128, 64), right_map = map_of(right, 32, 128, 32);
    for (const uint64_t seed : {0, 1, 2, 3}) {
      run(
          128, kBlockBytes,
          [&] {
            const Block block;
            init(block);
            if (gpu::thread_index() == 0) {
              gpu::barrier_arrive_expect_tx(block.barriers, kTileBytes + 2 * 4096);
              gpu::copy_tile(block.left, left_map, block.barriers, 0, 0);
              gpu::copy_tile(block.right, right_map, block.barriers, 0, 0);
              gpu::copy_tile(block.right + 2048, right_map, block.barriers, 64, 0);
            }
            gpu::barrier_wait(block.barriers, 0);
            const int thread = static_cast<int>(gpu::thread_index());
            const gpu::Operand a = gpu::swizzled_operand(block.left), b = gpu::swizzled_rows(block.right, 4096);
            float d[64], narrow[16];
            for (float& each : d) each = 1000;
            gpu::wgmma_fence();
            // Rows 16 .. 31 of the right operand, columns 48 .. 63 of the left one.
            gpu::wgmma_64x128x16_rows<gpu::BFloat16, true>(d, a.at(96), b.at(2048));
            gpu::wgmma_64x32x16<gpu::BFloat16, false>(narrow, a, gpu::swizzled_operand(block.right));
            gpu::wgmma_commit();
            CHECK(std::isnan(d[0]) && std::isnan(narrow[15]), "unknown until waited for");
            gpu::wgmma_wait<0>(d);
            for (int i = 0; i < 64; ++i) {
              const int row = 16 * (thread / 32) + thread % 32 / 4 + (i % 4 < 2 ? 0 : 8);
              const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
              float over_rows = 1000, over_columns = 0;
              for (int k = 0; k < 16; ++k) {
                over_rows += number(left, row * 64 + 48 + k) * number(right, (16 + k) * 128 + column);
                if (column < 32) over_columns += number(left, row * 64 + k) * number(right, column * 128 + k);
              }
              CHECK(d[i] == over_rows, "thread %d register %d: %g %g", thread, i, d[i], over_rows);
              if (i < 16) CHECK(narrow[i] == over_columns, "thread %d register %d", thread, i);
            }
          },
          seed);
    }
  });
  testing::add_case("descriptor_of_rows", [] {
    run(32, kBlockBytes, [] {
      const Block block;
      const uint32_t start = gpu::host::block->arena->offset_of(block.left);
      // PTX ISA, "Matrix descriptor", MN-major with 128-byte swizzle: the leading offset leads to the next 64 columns,
      // the stride offset to the next 8 rows.
      const uint64_t expected =
          uint64_t{start} / 16 | uint64_t{4096 / 16} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
      const uint64_t descriptor = gpu::swizzled_rows(block.left, 4096).descriptor();
      CHECK(descriptor == expected, "%llx", static_cast<unsigned long long>(descriptor));
      for (int row = 0; row < 16; ++row) {
        for (int column = 0; column < 128; ++column) {
          const uint32_t address = gpu::host::operand_address(descriptor, row, column, 0, true);
          const int element = column / 64 * 2048 + element_of(row, column % 64);
          CHECK(address == start + 2 * static_cast<uint32_t>(element), "row %d column %d", row, column);
        }
      }
    });
  });
  testing::add_case("phases", [] {
    run(64, kBlockBytes, [] {
      const Block block;
      init(block, 64);
      gpu::barrier_wait(block.barriers, 1);  // the phase before the first counts as complete
      for (unsigned phase = 0; phase < 5; ++phase) {
        gpu::barrier_arrive(block.barriers);
        gpu::barrier_wait(block.barriers, phase & 1);
      }
    });
  });
  testing::add_case("registers_are_traded", [] {
    run(384, kBlockBytes, [] {
      const Block block;
      if (gpu::thread_index() >= 128) {
        gpu::raise_registers<232>();
      } else {
        gpu::lower_registers<40>();
      }
    });
  });
  testing::add_case("uniform", [] {
    run(32, kBlockBytes, [] {
      const Block block;
      CHECK(gpu::uniform(static_cast<int>(gpu::thread_index()) + 5) == 5, "lane 0's");
    });
  });
  testing::add_case("maps_refused", [] {
    alignas(16) static uint16_t data[64];
    gpu::TensorMap map;
    CHECK(gpu::encode_tensor_map(map, {data, true, 1, 64, 64, 128}) == nullptr, "refused without a reason to");
    CHECK(gpu::encode_tensor_map(map, {data + 1, true, 1, 64, 64, 128}) != nullptr, "address");
    CHECK(gpu::encode_tensor_map(map, {data, true, 1, 64, 68, 128}) != nullptr, "stride");
    CHECK(gpu::encode_tensor_map(map, {data, true, 0, 64, 64, 128}) != nullptr, "no rows");
    CHECK(gpu::encode_tensor_map(map, {data, true, 1, 64, 64, 257}) != nullptr, "tile");
  });
}

using Broken = void (*)(const Block&, const gpu::TensorMap&);

// `body` must die saying `words`; under each seed, or (`late`: a copy must not have landed by chance) under seed 0
// alone.
void dies(const char* name, const char* words, Broken body, unsigned threads = 128, bool late = false) {
  testing::add_case(std::string("dies.") + name, [=] {
    const std::vector<uint16_t> matrix = numbers(128 * 64, 5);
    const gpu::TensorMap map = map_of(matrix, 128, 64);
    for (uint64_t seed = 0; seed < (late ? 1 : 3); ++seed) {
      check_dies(words, [&] { run(threads, kBlockBytes, [&] { body(Block(), map); }, seed); });
    }
  });
}

void add_broken_barriers() {
  dies("wrong_parity", "waits at barrier_wait", [](const Block& block, const gpu::TensorMap&) {
    init(block, 128);
    gpu::barrier_arrive(block.barriers);
    gpu::barrier_wait(block.barriers, 1);
    gpu::barrier_wait(block.barriers, 0);
    gpu::barrier_wait(block.barriers, 1);
  });
  dies("too_many_arrivals", "more arrivals than the barrier's 127", [](const Block& block, const gpu::TensorMap&) {
    init(block, 127);
    if (gpu::thread_index() == 0) gpu::barrier_arrive_expect_tx(block.barriers, 1);
    if (gpu::thread_index() != 0) gpu::barrier_arrive(block.barriers);
  });
  dies("too_few_arrivals", "waits at barrier_wait", [](const Block& block, const gpu::TensorMap&) {
    init(block, 129);
    gpu::barrier_arrive(block.barriers);
    gpu::barrier_wait(block.barriers, 0);
  });
  dies("a_byte_too_many_expected", "waits at barrier_wait", [](const Block& block, const gpu::TensorMap& map) {
    init(block);
    if (gpu::thread_index() == 0) {
      gpu::barrier_arrive_expect_tx(block.barriers, kTileBytes + 1);
      gpu::copy_tile(block.left, map, block.barriers, 0, 0);
    }
    gpu::barrier_wait(block.barriers, 0);
  });
  dies("a_byte_too_few_expected", "waits at barrier_wait", [](const Block& block, const gpu::TensorMap& map) {
    init(block);
    if (gpu::thread_index() == 0) {
      gpu::barrier_arrive_expect_tx(block.barriers, kTileBytes - 1);
      gpu::copy_tile(block.left, map, block.barriers, 0, 0);
    }
    gpu::barrier_wait(block.barriers, 0);
  });
  dies("not_initialised", "is not initialised",
       [](const Block& block, const gpu::TensorMap&) { gpu::barrier_arrive(block.barriers); });
  dies("initialisation_not_fenced", "no fence_barrier_init", [](const Block& block, const gpu::TensorMap& map) {
    if (gpu::thread_index() != 0) return;
    gpu::barrier_init(block.barriers, 1);
    gpu::barrier_arrive_expect_tx(block.barriers, kTileBytes);
    gpu::copy_tile(block.left, map, block.barriers, 0, 0);
  });
  dies("initialised_twice", "a barrier in use",
       [](const Block& block, const gpu::TensorMap&) { gpu::barrier_init(block.barriers, 1); });
  dies("part_of_a_warp_waits", "barrier_wait", [](const Block& block, const gpu::TensorMap&) {
    init(block);
    if (gpu::thread_index() % 2 == 0) gpu::barrier_wait(block.barriers, 0);
    gpu::shuffle_xor(1, 1);
  });
}

void add_broken_copies() {
  dies(
      "never_waited_for", "copy_tile under way",
      [](const Block& block, const gpu::TensorMap& map) {
        init(block);
        if (gpu::thread_index() == 0) gpu::copy_tile(block.left, map, block.barriers, 0, 0);
      },
      128, true);
  dies("misaligned", "not aligned to 1024 bytes", [](const Block& block, const gpu::TensorMap& map) {
    init(block);
    if (gpu::thread_index() == 0) gpu::copy_tile(block.left + 256, map, block.barriers, 0, 0);
  });
  dies("beyond_shared_memory", "outside the shared memory pieces", [](const Block& block, const gpu::TensorMap& map) {
    init(block);
    if (gpu::thread_index() == 0) gpu::copy_tile(block.right + 512, map, block.barriers, 0, 0);
  });
  dies(
      "two_copies_to_one_place", "writes what another has not written yet",
      [](const Block& block, const gpu::TensorMap& map) {
        init(block);
        if (gpu::thread_index() != 0) return;
        gpu::copy_tile(block.left, map, block.barriers, 0, 0);
        gpu::copy_tile(block.left, map, block.barriers, 0, 0);
      },
      128, true);
  dies("store_not_fenced", "without its fence_proxy_async", [](const Block& block, const gpu::TensorMap& map) {
    gpu::store_shared(reinterpret_cast<uint32_t*>(block.left) + gpu::thread_index(), 0u);
    init(block);
    if (gpu::thread_index() == 0) gpu::copy_tile(block.left, map, block.barriers, 0, 0);
  });
}

void multiply(const Block& block, float (&d)[64]) {
  gpu::wgmma_fence();
  gpu::wgmma_64x128x16<gpu::BFloat16, false>(d, gpu::swizzled_operand(block.left), gpu::swizzled_operand(block.right));
  gpu::wgmma_commit();
}

void add_broken_products() {
  dies(
      "operand_not_landed", "has not brought yet",
      [](const Block& block, const gpu::TensorMap& map) {
        init(block);
        if (gpu::thread_index() == 0) gpu::copy_tile(block.left, map, block.barriers, 0, 0);
        gpu::sync_block();
        float d[64];
        multiply(block, d);
        gpu::wgmma_wait<0>(d);
      },
      128, true);
  dies("operand_overwritten", "still reads", [](const Block& block, const gpu::TensorMap& map) {
    load(block, map, map);
    float d[64];
    multiply(block, d);
    if (gpu::thread_index() == 0) gpu::copy_tile(block.right, map, block.barriers, 0, 0);
    gpu::wgmma_wait<0>(d);
  });
  dies("operand_stored_without_fence", "without its fence_proxy_async",
       [](const Block& block, const gpu::TensorMap& map) {
         load(block, map, map);
         gpu::store_shared(reinterpret_cast<uint32_t*>(block.left) + gpu::thread_index(), 0u);
         gpu::sync_block();
         if (gpu::thread_index() != 77) gpu::fence_proxy_async();
         gpu::sync_block();
         float d[64];
         multiply(block, d);
         gpu::wgmma_wait<0>(d);
       });
  dies("rows_overwritten", "still reads", [](const Block& block, const gpu::TensorMap& map) {
    load(block, map, map);
    float d[64] = {};
    gpu::wgmma_fence();
    // Of its right operand the second tile is overwritten.
    const gpu::Operand a = gpu::swizzled_operand(block.left);
    const int apart = static_cast<int>(block.right - block.left) * 2;
    gpu::wgmma_64x128x16_rows<gpu::BFloat16, false>(d, a, gpu::swizzled_rows(block.left, apart));
    gpu::wgmma_commit();
    if (gpu::thread_index() == 0) gpu::copy_tile(block.right, map, block.barriers, 0, 0);
    gpu::wgmma_wait<0>(d);
  });
  dies("products_without_fence", "no wgmma_fence", [](const Block& block, const gpu::TensorMap& map) {
    load(block, map, map);
    float d[64];
    const gpu::Operand a = gpu::swizzled_operand(block.left);
    gpu::wgmma_64x128x16<gpu::BFloat16, false>(d, a, a);
  });
  dies("fence_before_the_last_wait", "no wgmma_fence", [](const Block& block, const gpu::TensorMap& map) {
    load(block, map, map);
    float d[64];
    multiply(block, d);
    gpu::wgmma_wait<0>(d);
    const gpu::Operand a = gpu::swizzled_operand(block.left);
    gpu::wgmma_64x128x16<gpu::BFloat16, true>(d, a, a);
  });
  dies("never_waited_for_products", "wgmma under way", [](const Block& block, const gpu::TensorMap& map) {
    load(block, map, map);
    float d[64];
    multiply(block, d);
  });
  dies("lanes_disagree", "different descriptors", [](const Block& block, const gpu::TensorMap& map) {
    load(block, map, map);
    float d[64];
    const gpu::Operand a = gpu::swizzled_operand(block.left);
    gpu::wgmma_fence();
    gpu::wgmma_64x128x16<gpu::BFloat16, false>(d, a.at(gpu::thread_index() == 9 ? 32 : 0), a);
  });
  dies("warps_disagree", "issued different wgmma", [](const Block& block, const gpu::TensorMap& map) {
    load(block, map, map);
    float d[64];
    const gpu::Operand a = gpu::swizzled_operand(block.left);
    gpu::wgmma_fence();
    gpu::wgmma_64x128x16<gpu::BFloat16, false>(d, a.at(gpu::thread_index() / 32 == 2 ? 32 : 0), a);
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>(d);
  });
  dies("another_swizzle", "swizzle mode 2", [](const Block& block, const gpu::TensorMap& map) {
    load(block, map, map);
    float d[64] = {};
    gpu::wgmma_fence();
    const uint64_t a = gpu::swizzled_operand(block.left).descriptor();
    gpu::host::issue_wgmma(d, 128, a ^ uint64_t{3} << 62, a, false, false, true, 1);
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>(d);
  });
}

void add_broken_registers() {
  dies(
      "registers_never_free", "waits at raise_registers",
      [](const Block&, const gpu::TensorMap&) { gpu::raise_registers<232>(); }, 384);
  dies("registers_of_half_a_group", "changed their registers differently", [](const Block&, const gpu::TensorMap&) {
    if (gpu::thread_index() < 64) gpu::lower_registers<40>();
  });
  dies("registers_not_in_eights", "100 registers",
       [](const Block&, const gpu::TensorMap&) { gpu::lower_registers<100>(); });
  dies(
      "lowered_upwards", "from 168 to 232 registers",
      [](const Block&, const gpu::TensorMap&) { gpu::lower_registers<232>(); }, 384);
}

}  // namespace

int main(int argc, char** argv) {
  add_layouts();
  add_broken_barriers();
  add_broken_copies();
  add_broken_products();
  add_broken_registers();
  return testing::run_cases(argc, argv);
}
