// The list of live tiles (live_tiles.h): one block of threads for each block of 64 rows, so that the list is dense and
// in order without atomics. It reads the masses twice, 2 bytes a row and tile, mostly from L2: about 20 us at S 1M,
// under 2 at 65 536. Threads: 512, one for each tile of a chunk; then one for each row. Shared memory: LiveTilesShared.
#include "live_tiles.h"

#include "launcher.h"
#include "lse_pass_layout.h"

namespace attfc::cuda {

namespace {

constexpr int kThreads = 512;
constexpr float kLog2E = 1.4426950408889634f;

struct LiveTilesShared {
  float least[kLiveTilesRows];  // log2 of a mass above which the row needs the tile
  uint32_t live[kThreads];      // of a chunk's tiles
};

// +inf: the row needs nothing.
ATTFC_DEVICE float least_needed(const LiveTilesParameters& p, int64_t row) {
  if (row >= p.num_rows || p.labels[row] < 0) return INFINITY;
  const float lse = p.lse[row];
  if (lse == -INFINITY) return INFINITY;
  const float target_mass = expf(p.target_logit<float>(row) - lse);
  const float share = p.grad_tolerance / static_cast<float>(p.tiles) * (1 + target_mass);  // fault: live_share
  return lse * kLog2E + log2f(share);
}

ATTFC_DEVICE uint16_t mass_of(const LiveTilesParameters& p, int tile, int row) {
  return p.mass[tile * p.mass_rows + static_cast<int64_t>(gpu::block_index_x()) * kLiveTilesRows + row];
}

ATTFC_DEVICE bool is_live(const LiveTilesParameters& p, const LiveTilesShared& shared, int tile) {
  if (tile >= p.tiles) return false;
  for (int row = 0; row < kLiveTilesRows; ++row) {
    const uint16_t code = mass_of(p, tile, row);
    if (code != 0 && !(TileMass::log2_mass(code) <= gpu::load_shared(shared.least + row))) return true;
  }
  return false;
}

ATTFC_KERNEL(kThreads, 1) live_tiles_kernel(const LiveTilesParameters p) {
  LiveTilesShared& shared = *gpu::SharedArena{}.take<LiveTilesShared>(1);
  const int thread = static_cast<int>(gpu::thread_index());
  const int64_t block = gpu::block_index_x(), own_row = block * kLiveTilesRows + thread;
  if (thread < kLiveTilesRows) gpu::store_shared(shared.least + thread, least_needed(p, own_row));
  int count = 0;
  float omitted = 0;
  for (int first = 0; first < p.tiles; first += kThreads) {
    gpu::sync_block();  // fault: live_flags_barrier
    const bool live = is_live(p, shared, first + thread);
    gpu::store_shared(shared.live + thread, live ? 1u : 0u);
    gpu::sync_block();
    int before = count;
    for (int other = 0; other < kThreads; ++other) {
      const int flag = static_cast<int>(gpu::load_shared(shared.live + other));
      before += other < thread ? flag : 0;
      count += flag;
    }
    if (live) p.lists[block * p.tiles + before] = first + thread;
    const bool counts_row =
        thread < kLiveTilesRows && own_row < p.num_rows && p.labels[own_row] >= 0 && p.lse[own_row] != -INFINITY;
    for (int tile = 0; counts_row && tile < kThreads && first + tile < p.tiles; ++tile) {
      if (gpu::load_shared(shared.live + tile) != 0) continue;
      omitted += gpu::exp2_approx(TileMass::log2_mass(mass_of(p, first + tile, thread)) - p.lse[own_row] * kLog2E);
    }
  }
  if (thread == 0) p.counts[block] = count;
  if (thread < kLiveTilesRows && own_row < p.num_rows) {
    // fault: live_target_share
    p.omitted_mass[own_row] = omitted == 0 ? 0 : omitted / (1 + expf(p.target_logit<float>(own_row) - p.lse[own_row]));
  }
}

}  // namespace

const char* launch_live_tiles(const LiveTilesParameters& parameters, void* stream) {
  const gpu::Grid grid{static_cast<unsigned>(divide_up(parameters.num_rows, kLiveTilesRows)), 1};
  return gpu::launch(live_tiles_kernel, grid, kThreads, sizeof(LiveTilesShared), stream, parameters);
}

}  // namespace attfc::cuda
