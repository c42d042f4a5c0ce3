// The host side of csrc/cuda/gpu held to the PTX ISA and to CUDA's rules: fragment layouts against the manual's
// formulas, numbers against known bits, and every way of breaking a rule must end the run with the right words.
#include <cstring>
#include <limits>
#include <set>

#include "kernel_call.h"

using namespace attfc;
using gpu::host::counters;
using testing::check_dies;
using testing::run;

namespace {

uint16_t half_bits(float value) { return static_cast<uint16_t>(gpu::pack<gpu::Float16>(value, 0)); }
uint16_t bfloat_bits(float value) { return static_cast<uint16_t>(gpu::pack<gpu::BFloat16>(value, 0)); }

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": element i of a thread's fragment.
int a_row(int lane, int i) { return i < 2 || (4 <= i && i < 6) ? lane >> 2 : (lane >> 2) + 8; }
int a_column(int lane, int i) { return i < 4 ? (lane & 3) * 2 + (i & 1) : (lane & 3) * 2 + (i & 1) + 8; }
int b_row(int lane, int i) { return i < 2 ? (lane & 3) * 2 + (i & 1) : (lane & 3) * 2 + (i & 1) + 8; }
int b_column(int lane) { return lane >> 2; }
int c_row(int lane, int i) { return i < 2 ? lane >> 2 : (lane >> 2) + 8; }
int c_column(int lane, int i) { return (lane & 3) * 2 + (i & 1); }

template <class Element>
void check_mma() {
  float a[16][16], b[16][8], c[16][8];
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) a[m][k] = static_cast<float>((m * 7 + k * 3) % 16 - 8);
    for (int n = 0; n < 8; ++n) c[m][n] = static_cast<float>(100 * m + n);
  }
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 8; ++n) b[k][n] = static_cast<float>((k * 5 + n * 11) % 13) / 4;
  }
  run(32, 0, [&] {
    const int lane = static_cast<int>(gpu::thread_index());
    uint32_t fa[4], fb[2];
    float d[4];
    for (int r = 0; r < 4; ++r) {
      fa[r] = gpu::pack<Element>(a[a_row(lane, 2 * r)][a_column(lane, 2 * r)],
                                 a[a_row(lane, 2 * r + 1)][a_column(lane, 2 * r + 1)]);
      d[r] = c[c_row(lane, r)][c_column(lane, r)];
    }
    for (int r = 0; r < 2; ++r) {
      fb[r] = gpu::pack<Element>(b[b_row(lane, 2 * r)][b_column(lane)], b[b_row(lane, 2 * r + 1)][b_column(lane)]);
    }
    gpu::mma_16x8x16<Element>(d, fa, fb[0], fb[1]);
    for (int r = 0; r < 4; ++r) {
      float expected = c[c_row(lane, r)][c_column(lane, r)];
      for (int k = 0; k < 16; ++k) expected += a[c_row(lane, r)][k] * b[k][c_column(lane, r)];
      CHECK(d[r] == expected, "lane %d register %d: %g, expected %g", lane, r, d[r], expected);
    }
  });
  CHECK(counters.mma == 1, "%lld mma", counters.mma);
}

void check_ldmatrix(bool transposed) {
  run(32, 4 * 8 * 16, [&] {
    const int lane = static_cast<int>(gpu::thread_index());
    uint16_t* shared = gpu::SharedArena{}.take<uint16_t>(4 * 64);
    // Element (matrix, row, column) holds its own index; lane i fills and addresses row i % 8 of matrix i / 8.
    for (int column = 0; column < 8; ++column) shared[lane * 8 + column] = static_cast<uint16_t>(lane * 8 + column);
    gpu::sync_block();
    uint32_t r[4];
    transposed ? gpu::ldmatrix_x4_trans(shared + lane * 8, r) : gpu::ldmatrix_x4(shared + lane * 8, r);
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int e = 0; e < 2; ++e) {
        const int major = lane / 4,
                  minor = lane % 4 * 2 + e;  // PTX ISA, ldmatrix: thread T holds row T / 4, elements 2 (T % 4) ..
        const int expected = matrix * 64 + (transposed ? minor * 8 + major : major * 8 + minor);
        const int got = static_cast<int>(r[matrix] >> (16 * e) & 0xffff);
        CHECK(got == expected, "lane %d matrix %d element %d: %d, expected %d", lane, matrix, e, got, expected);
      }
    }
  });
  CHECK(counters.bank_conflicts == 0, "%lld", counters.bank_conflicts);
}

void add_layouts() {
  testing::add_case("mma.bf16", check_mma<gpu::BFloat16>);
  testing::add_case("mma.fp16", check_mma<gpu::Float16>);
  testing::add_case("mma.keeps_float32", [] {
    run(32, 0, [] {
      const uint32_t one = gpu::pack<gpu::BFloat16>(1, 0), a[4] = {one, one, one, one};
      float d[4] = {0x1p-20f, 0x1p-20f, 0x1p-20f, 0x1p-20f};
      gpu::mma_16x8x16<gpu::BFloat16>(d, a, one, 0);
      // Columns 0, 2, .. of a and rows 0, 2, .. of b hold ones: 4 products a sum, exact in float32 beside 2^-20.
      CHECK(d[0] == 4 + 0x1p-20f, "%.10g", d[0]);
    });
  });
  testing::add_case("ldmatrix", [] { check_ldmatrix(false); });
  testing::add_case("ldmatrix.trans", [] { check_ldmatrix(true); });
  testing::add_case("shuffle_xor", [] {
    run(64, 0, [] {
      const unsigned thread = gpu::thread_index();
      for (int lanes : {1, 2, 4, 8, 16, 31}) {
        CHECK(gpu::shuffle_xor(thread, lanes) == (thread ^ static_cast<unsigned>(lanes)), "thread %u", thread);
      }
      const long long wide = (1ll << 40) * thread;
      CHECK(gpu::shuffle_xor(wide, 1) == (1ll << 40) * (thread ^ 1), "64-bit values");
    });
  });
  testing::add_case("warp_any", [] {
    run(64, 0, [] {
      const unsigned thread = gpu::thread_index();
      CHECK(gpu::warp_any(thread == 5) == (thread < 32), "thread %u", thread);
      CHECK(!gpu::warp_any(false), "of none");
    });
  });
  testing::add_case("atomics", [] {
    static uint32_t count = 0;
    static int32_t largest = -5;
    static int64_t sum = int64_t{1} << 40, owner = -1;
    static uint32_t before[64], tickets[64];
    const auto ascending = [](const uint32_t* all) { return std::set<uint32_t>(all, all + 64); };
    run(64, 0, [] {
      const unsigned thread = gpu::thread_index();
      before[thread] = gpu::atomic_add(&count, 2u);
      gpu::atomic_add(&sum, int64_t{-3});
      gpu::atomic_max(&largest, static_cast<int32_t>(thread) - 9);
      const int64_t found = gpu::atomic_cas(&owner, int64_t{-1}, int64_t{thread});
      CHECK((found == -1) == (gpu::load_relaxed(&owner) == thread), "thread %u", thread);
    });
    CHECK(count == 128 && ascending(before).size() == 64 && *ascending(before).rbegin() == 126, "%u", count);
    CHECK(sum == (int64_t{1} << 40) - 192 && largest == 54, "%d", largest);
    run(64, 0, [] { tickets[gpu::thread_index()] = gpu::take_ticket(&count); });
    CHECK(count == 192 && ascending(tickets).size() == 64 && *ascending(tickets).begin() == 128, "%u", count);
    gpu::store_relaxed(&sum, int64_t{7});
    CHECK(gpu::load_relaxed(&sum) == 7, "stored");
  });
  testing::add_case("bit_width", [] {
    CHECK(gpu::bit_width(0) == 0 && gpu::bit_width(1) == 1 && gpu::bit_width(63) == 6 && gpu::bit_width(64) == 7,
          "small");
    CHECK(gpu::bit_width(uint64_t{1} << 63) == 64 && gpu::bit_width(~uint64_t{0}) == 64, "large");
  });
  testing::add_case("indices", [] {
    static int seen[3][2][32];
    struct Nothing {};
    const char* error = gpu::launch(
        +[](const Nothing) { ++seen[gpu::block_index_x()][gpu::block_index_y()][gpu::thread_index()]; },
        gpu::Grid{3, 2}, 32, 0, nullptr, Nothing{});
    CHECK(error == nullptr, "%s", error);
    for (int i = 0; i < 3 * 2 * 32; ++i)
      CHECK(seen[i / 64][i / 32 % 2][i % 32] == 1, "thread %d ran %d times", i, seen[i / 64][i / 32 % 2][i % 32]);
  });
}

void add_numbers() {
  testing::add_case("pack.fp16", [] {
    const struct {
      float value;
      uint16_t bits;
    } table[] = {{0, 0},
                 {-0.0f, 0x8000},
                 {1, 0x3c00},
                 {-2, 0xc000},
                 {65504, 0x7bff},
                 {65519, 0x7bff},
                 {65520, 0x7c00},
                 {INFINITY, 0x7c00},
                 {0x1p-14f, 0x0400},
                 {0x1p-24f, 1},
                 {0x1p-25f, 0},
                 {0x1.8p-24f, 2},
                 {0x1.8p-25f, 1},
                 {0x1.002p0f, 0x3c00},
                 {0x1.006p0f, 0x3c02},
                 {0x1.ffep0f, 0x4000},
                 {0x1.ff8p-15f, 0x3ff},
                 {0x1.ffcp-15f, 0x0400}};
    for (const auto& each : table)
      CHECK(half_bits(each.value) == each.bits, "%g: %04x", each.value, half_bits(each.value));
    CHECK(gpu::pack<gpu::Float16>(1, -2) == 0xc0003c00u, "low half first");
    CHECK((half_bits(NAN) & 0x7fff) > 0x7c00, "NaN");
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const float wide = gpu::to_float(gpu::Float16{static_cast<uint16_t>(bits)});
      CHECK(std::isnan(wide) ? (bits & 0x7fff) > 0x7c00 : half_bits(wide) == bits, "%04x", bits);
    }
  });
  testing::add_case("pack.bf16", [] {
    const struct {
      float value;
      uint16_t bits;
    } table[] = {{0, 0},
                 {1, 0x3f80},
                 {-1, 0xbf80},
                 {0x1.01p0f, 0x3f80},
                 {0x1.03p0f, 0x3f82},
                 {0x1.010002p0f, 0x3f81},
                 {INFINITY, 0x7f80},
                 {std::numeric_limits<float>::max(), 0x7f80},
                 {0x1p-126f, 0x0080}};
    for (const auto& each : table)
      CHECK(bfloat_bits(each.value) == each.bits, "%g: %04x", each.value, bfloat_bits(each.value));
    CHECK(gpu::pack<gpu::BFloat16>(1, -1) == 0xbf803f80u, "low half first");
    CHECK((bfloat_bits(NAN) & 0x7fff) > 0x7f80, "NaN");
    CHECK(gpu::to_float(gpu::BFloat16{0x4049}) == 3.140625f, "widening");
  });
  testing::add_case("exp2", [] {
    for (float x = -126; x < 128; x += 0.37f)
      CHECK(std::fabs(gpu::exp2_approx(x) / std::exp2(double(x)) - 1) < 0x1p-22, "%g", x);
    CHECK(gpu::exp2_approx(-127) == 0 && gpu::exp2_approx(-INFINITY) == 0 && gpu::exp2_approx(128) == INFINITY, "ends");
  });
}

void add_copies() {
  testing::add_case("cp_async", [] {
    alignas(16) static uint64_t source[4] = {1, 2, 3, 4};
    run(32, 32 * 64, [] {
      uint64_t* mine = gpu::SharedArena{}.take<uint64_t>(32 * 8) + gpu::thread_index() * 8;
      gpu::cp_async_16(mine, source, true);
      gpu::cp_async_commit();
      gpu::cp_async_16(mine + 2, source + 2, true);
      gpu::cp_async_8(mine + 4, source + 1, true);
      gpu::cp_async_8(mine + 5, nullptr, false);
      gpu::cp_async_4(mine + 6, reinterpret_cast<const uint32_t*>(source) + 4, true);
      gpu::cp_async_4(reinterpret_cast<uint32_t*>(mine + 7) + 1, nullptr, false);
      gpu::cp_async_commit();
      const uint64_t poison = gpu::host::kPoisonWord;
      CHECK(mine[6] == poison && mine[7] == poison, "late by seed 0, poisoned until then");
      CHECK(mine[0] == gpu::host::kPoisonWord && mine[5] == gpu::host::kPoisonWord,
            "late by seed 0, poisoned until then");
      gpu::cp_async_wait<1>();
      CHECK(mine[0] == 1 && mine[1] == 2 && mine[2] == gpu::host::kPoisonWord,
            "the first group has landed, not the second");
      gpu::cp_async_wait<0>();
      CHECK(mine[2] == 3 && mine[3] == 4 && mine[4] == 2 && mine[5] == 0, "all have landed, zeros without a source");
      CHECK(mine[6] == (poison >> 32 << 32 | 3) && mine[7] == poison << 32 >> 32, "4 bytes land, no more");
    });
  });
  testing::add_case("cp_async.lands_at_once_or_late", [] {
    alignas(16) static uint64_t source[2] = {1, 2};
    static bool early[64];
    run(
        64, 64 * 16,
        [] {
          uint64_t* mine = gpu::SharedArena{}.take<uint64_t>(128) + gpu::thread_index() * 2;
          gpu::cp_async_16(mine, source, true);
          early[gpu::thread_index()] = mine[0] == 1;
          gpu::cp_async_commit();
          gpu::cp_async_wait<0>();
        },
        3);
    int count = 0;
    for (bool each : early) count += each ? 1 : 0;
    CHECK(count > 5 && count < 59, "%d of 64 landed at once", count);
  });
  testing::add_case("shared_memory_starts_as_nan", [] {
    run(32, 32 * 4, [] { CHECK(std::isnan(gpu::SharedArena{}.take<float>(32)[gpu::thread_index()]), "not NaN"); });
  });
}

// Conflicts of one access pattern: lane -> element of T.
template <class T>
long long conflicts(const std::function<unsigned(unsigned)>& element) {
  counters = {};
  run(32, 1024 * 16, [&] {
    T* shared = reinterpret_cast<T*>(gpu::SharedArena{}.take<gpu::Float4>(1024));
    gpu::load_shared(shared + element(gpu::thread_index()));
  });
  return counters.bank_conflicts;
}

void add_banks() {
  testing::add_case("bank_conflicts", [] {
    CHECK(conflicts<float>([](unsigned lane) { return lane; }) == 0, "a row");
    CHECK(conflicts<float>([](unsigned lane) { return 2 * lane; }) == 1, "stride 2");
    CHECK(conflicts<float>([](unsigned lane) { return 32 * lane; }) == 31, "a column");
    CHECK(conflicts<float>([](unsigned lane) { return lane / 4; }) == 0, "shared words");
    CHECK(conflicts<gpu::Float2>([](unsigned lane) { return lane; }) == 0, "8 bytes: half a warp a pass");
    CHECK(conflicts<gpu::Float2>([](unsigned lane) { return 2 * lane; }) == 2, "8 bytes, stride 2");
    CHECK(conflicts<gpu::Float4>([](unsigned lane) { return lane; }) == 0, "16 bytes: a quarter a pass");
    CHECK(conflicts<gpu::Float4>([](unsigned lane) { return 8 * lane; }) == 4 * 7, "16 bytes, the same banks");
  });
  testing::add_case("bank_conflicts.ldmatrix", [] {
    run(32, 32 * 128, [] {
      uint16_t* shared = gpu::SharedArena{}.take<uint16_t>(32 * 64);
      uint32_t r[4];
      gpu::ldmatrix_x4(shared + gpu::thread_index() * 64, r);  // rows of 128 bytes: 8 rows in one bank
    });
    CHECK(counters.bank_conflicts == 4 * 7, "%lld", counters.bank_conflicts);
  });
  testing::add_case("bank_conflicts.part_of_a_warp", [] {
    run(32, 4 * 1024, [] {
      float* shared = gpu::SharedArena{}.take<float>(1024);
      if (gpu::thread_index() < 3) gpu::store_shared(shared + 32 * gpu::thread_index(), 1.0f);
    });
    CHECK(counters.bank_conflicts == 2, "%lld", counters.bank_conflicts);
  });
}

void add_broken_rules() {
  const auto dies = [](const char* name, const char* words, std::function<void()> body) {
    testing::add_case(std::string("dies.") + name, [=] { check_dies(words, body); });
  };
  dies("divergent_warp", "divergent warp", [] {
    run(32, 0, [] {
      if (gpu::thread_index() < 16) {
        gpu::warp_any(true);
      } else {
        gpu::shuffle_xor(1, 1);
      }
    });
  });
  dies("half_warp", "left the kernel", [] {
    run(32, 0, [] {
      if (gpu::thread_index() < 16) gpu::shuffle_xor(1, 1);
    });
  });
  dies("divergent_barrier", "divergent block", [] {
    run(64, 0, [] {
      if (gpu::thread_index() < 32) {
        gpu::sync_block();
      } else {
        gpu::sync_block();
      }
    });
  });
  dies("barrier_without_all", "left the kernel", [] {
    run(64, 0, [] {
      if (gpu::thread_index() < 32) gpu::sync_block();
    });
  });
  dies("barrier_in_half_a_warp", "divergent warp", [] {
    run(32, 0, [] {
      if (gpu::thread_index() < 16) {
        gpu::warp_any(true);
      } else {
        gpu::sync_block();
      }
    });
  });
  dies("too_little_shared_memory", "the launch gave", [] { run(32, 64, [] { gpu::SharedArena{}.take<float>(32); }); });
  dies("too_much_shared_memory", "the kernel took", [] { run(32, 256, [] { gpu::SharedArena{}.take<float>(32); }); });
  dies("misaligned_piece", "aligned to", [] {
    run(32, 24, [] {
      gpu::SharedArena arena;
      arena.take<float>(1);
      arena.take<double>(2);
    });
  });
  dies("shared_overrun", "outside the shared memory pieces", [] {
    run(32, 128, [] {
      float* shared = gpu::SharedArena{}.take<float>(32);
      gpu::store_shared(shared + gpu::thread_index() + 1, 1.0f);
    });
  });
#if !defined(__SANITIZE_ADDRESS__)
  dies("red_zone", "a write beside piece 0",
       [] { run(32, 128, [] { gpu::SharedArena{}.take<float>(32)[gpu::thread_index() + 1] = 1; }); });
#else
  dies("red_zone", "use-after-poison",
       [] { run(32, 128, [] { gpu::SharedArena{}.take<float>(32)[gpu::thread_index() + 1] = 1; }); });
#endif
  dies("misaligned_access", "not aligned to 16 bytes", [] {
    run(32, 1024,
        [] { gpu::load_shared(reinterpret_cast<const gpu::Float4*>(gpu::SharedArena{}.take<float>(256) + 2)); });
  });
  dies("misaligned_copy", "global address not aligned", [] {
    static uint64_t source[4];
    run(32, 512, [] {
      char* unaligned = reinterpret_cast<char*>(source) + 4;
      gpu::cp_async_8(gpu::SharedArena{}.take<uint64_t>(64) + gpu::thread_index(), unaligned, true);
    });
  });
  dies("copy_never_waited_for", "cp.async under way", [] {
    alignas(16) static uint64_t source[2];
    run(32, 512, [] {
      gpu::cp_async_16(gpu::SharedArena{}.take<uint64_t>(64) + gpu::thread_index() * 2, source, true);
      gpu::cp_async_commit();
    });
  });
#if defined(__SANITIZE_THREAD__)
  dies("race", "data race", [] {
    run(64, 256, [] {
      float* shared = gpu::SharedArena{}.take<float>(64);
      gpu::store_shared(shared + gpu::thread_index(), 1.0f);
      CHECK(gpu::load_shared(shared + (gpu::thread_index() ^ 32)) != 2, "the value is used");
    });
    std::exit(66);  // ThreadSanitizer reports and goes on
  });
  dies("race_between_blocks", "data race", [] {
    static volatile float result[32];
    struct Nothing {};
    gpu::launch(+[](const Nothing) { result[gpu::thread_index()] = 1; }, gpu::Grid{2, 1}, 32, 0, nullptr, Nothing{});
    std::exit(result[0] == 1 ? 66 : 0);
  });
#endif
  testing::add_case("launch_refuses", [] {
    struct Nothing {};
    void (*kernel)(Nothing) = +[](Nothing) {};
    gpu::host::options.shared_limit = 1000;
    CHECK(gpu::launch(kernel, gpu::Grid{1, 1}, 32, 1001, nullptr, Nothing{}) != nullptr, "too much shared memory");
    CHECK(gpu::launch(kernel, gpu::Grid{0, 1}, 32, 0, nullptr, Nothing{}) != nullptr, "an empty grid");
    CHECK(gpu::launch(kernel, gpu::Grid{1, 65536}, 32, 0, nullptr, Nothing{}) != nullptr, "a grid too high");
    CHECK(gpu::launch(kernel, gpu::Grid{1, 1}, 1056, 0, nullptr, Nothing{}) != nullptr, "too many threads");
  });
}

}  // namespace

int main(int argc, char** argv) {
  add_layouts();
  add_numbers();
  add_copies();
  add_banks();
  add_broken_rules();
  return testing::run_cases(argc, argv);
}
