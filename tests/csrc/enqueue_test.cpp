// The enqueue kernels' own source (csrc/cuda/enqueue.cu), run on the host over many random steps and held to plain
// models: a ring (fifo); the slot rule of attfc_cuda/heads/container.py and an LRU list (refresh). All of it must agree
// to the bit, under several thread schedules.
#include "csrc/cuda/enqueue.h"

#include <algorithm>
#include <list>
#include <map>
#include <numeric>
#include <random>

#include "schedules.h"
#include "typed_numbers.h"

using namespace attfc;
using testing::Numbers;

namespace {

enum Stamps { kNew, kStraggler, kWide };

struct Case {
  bool refresh = true;
  int64_t slots = 20, rows = 7, num_classes = 50, clock = 0;
  int dim = 5, steps = 40;
  Dtype dtype = Dtype::kBFloat16;
  double ignored_share = 0.15;
  Stamps stamps = kNew;  // what the slots' stamps are at the start
};

struct Container {
  Numbers centers;
  std::vector<int64_t> labels, stamps;
  std::vector<int32_t> slot_of_class;
  int64_t clock = 0;

  bool operator==(const Container& other) const {
    return centers == other.centers && labels == other.labels && stamps == other.stamps &&
           slot_of_class == other.slot_of_class && clock == other.clock;
  }
};

struct Batch {
  std::vector<float> centers;
  std::vector<int64_t> labels;
};

Container make_container(const Case& c) {
  std::mt19937_64 random(3);
  Container container;
  const auto slots = static_cast<size_t>(c.slots);
  container.centers = Numbers(c.dtype, slots * static_cast<size_t>(c.dim));
  container.labels.assign(slots, -1);
  container.clock = c.clock;
  if (!c.refresh) return container;
  container.slot_of_class.assign(static_cast<size_t>(c.num_classes) + 1, -1);
  container.stamps.resize(slots);
  std::iota(container.stamps.begin(), container.stamps.end(), -c.slots);
  if (c.stamps == kStraggler) {  // one far from all others, which lie close together
    for (size_t slot = 1; slot < slots; ++slot) container.stamps[slot] += c.clock;
  }
  if (c.stamps == kWide) {  // over all magnitudes below the clock, on both sides of 0
    for (size_t slot = 0; slot < slots; ++slot) {
      const auto size = static_cast<int64_t>(random() >> (2 + random() % 60));
      container.stamps[slot] = (slot % 2 == 0 ? size : -size) / c.slots * c.slots + static_cast<int64_t>(slot);
    }
  }
  return container;
}

Batch make_batch(const Case& c, std::mt19937_64& random) {
  std::uniform_real_distribution<double> uniform;
  Batch batch;
  for (int64_t row = 0; row < c.rows; ++row) {
    // Low numbers come often.
    const double place = uniform(random);
    const auto label = static_cast<int64_t>(place * place * static_cast<double>(c.num_classes));
    batch.labels.push_back(uniform(random) < c.ignored_share ? -1 : label);
    for (int d = 0; d < c.dim; ++d) {
      batch.centers.push_back(batch.labels.back() < 0 ? NAN : static_cast<float>(uniform(random) - 0.5));
    }
  }
  return batch;
}

void write(const Case& c, Container& container, const Batch& batch, size_t slot, size_t row) {
  container.labels[slot] = batch.labels[row];
  const auto dim = static_cast<size_t>(c.dim);
  for (size_t d = 0; d < dim; ++d) container.centers.set(slot * dim + d, batch.centers[row * dim + d]);
}

// What container.py's enqueue does, row by row.
void enqueue_plainly(const Case& c, Container& container, const Batch& batch) {
  const auto rows = static_cast<size_t>(c.rows);
  if (!c.refresh) {
    for (size_t row = 0; row < rows; ++row) {
      if (batch.labels[row] >= 0) write(c, container, batch, static_cast<size_t>(container.clock++ % c.slots), row);
    }
    return;
  }
  std::map<int64_t, size_t> last, slot_of;
  for (size_t row = 0; row < rows; ++row) last[batch.labels[row]] = row;
  for (size_t slot = 0; slot < container.labels.size(); ++slot) slot_of[container.labels[slot]] = slot;
  std::vector<size_t> waiting;
  const auto put = [&](size_t slot, size_t row) {
    write(c, container, batch, slot, row);
    container.stamps[slot] = container.clock + static_cast<int64_t>(row);
    container.slot_of_class[static_cast<size_t>(batch.labels[row])] = static_cast<int32_t>(slot);
  };
  for (size_t row = 0; row < rows; ++row) {
    if (batch.labels[row] < 0 || last[batch.labels[row]] != row) continue;
    const auto found = slot_of.find(batch.labels[row]);
    if (found != slot_of.end()) {
      put(found->second, row);
    } else {
      waiting.push_back(row);
    }
  }
  std::vector<size_t> oldest(container.labels.size());
  std::iota(oldest.begin(), oldest.end(), size_t{0});
  std::sort(oldest.begin(), oldest.end(),
            [&](size_t a, size_t b) { return container.stamps[a] < container.stamps[b]; });
  for (size_t k = 0; k < waiting.size(); ++k) put(oldest[k], waiting[k]);
  container.clock += c.rows;
}

// The classes that stay, and the last centre of each: the newest at the back.
class Lru {
 public:
  void enqueue(const Case& c, const Batch& batch) {
    for (size_t row = 0; row < batch.labels.size(); ++row) {
      const int64_t label = batch.labels[row];
      if (label < 0) continue;
      entries_.remove_if([&](const Entry& each) { return each.label == label; });
      entries_.push_back({label, batch.centers[row * static_cast<size_t>(c.dim)]});
      if (entries_.size() > static_cast<size_t>(c.slots)) entries_.pop_front();
    }
  }
  void check(const Case& c, const Container& container) const {
    const auto filled =
        std::count_if(container.labels.begin(), container.labels.end(), [](int64_t l) { return l >= 0; });
    CHECK(filled == static_cast<int64_t>(entries_.size()), "%d slots are filled, not %d", int(filled),
          int(entries_.size()));
    for (const Entry& each : entries_) {
      const int32_t slot = container.slot_of_class[static_cast<size_t>(each.label)];
      CHECK(slot >= 0 && container.labels[static_cast<size_t>(slot)] == each.label, "class %d is lost",
            int(each.label));
      const double got = container.centers[static_cast<size_t>(slot) * static_cast<size_t>(c.dim)];
      CHECK(got == cuda::rounded_to(c.dtype, each.first_number), "class %d has the centre of another row",
            int(each.label));
    }
  }

 private:
  struct Entry {
    int64_t label;
    float first_number;
  };
  std::list<Entry> entries_;
};

void enqueue(const Case& c, Container& container, const Batch& batch) {
  EnqueueArguments a{};
  a.rows = c.rows, a.slots = c.slots, a.dim = c.dim, a.container_dtype = c.dtype;
  a.new_centers = batch.centers.data(), a.new_labels = batch.labels.data();
  a.centers = container.centers.data(), a.labels = container.labels.data(), a.clock = &container.clock;
  a.num_classes = c.num_classes;
  if (c.refresh) a.stamps = container.stamps.data(), a.slot_of_class = container.slot_of_class.data();
  // A heap of its own, so that AddressSanitizer sees its end; what it holds must not matter.
  const size_t bytes = cuda::enqueue_workspace_bytes(a);
  std::vector<uint64_t> workspace((bytes + 7) / 8, 0x7fff7fff7fff7fffu);
  const long long before = gpu::host::counters.launches;
  testing::must(cuda::launch_enqueue(a, workspace.data(), nullptr));
  const long long launches = gpu::host::counters.launches - before;
  CHECK(launches == (c.rows == 0 ? 0 : c.refresh ? 5 : 2), "%lld launches", launches);
}

Container run(const Case& c) {
  std::mt19937_64 random(11);
  Container container = make_container(c), model = container;
  Lru lru;
  for (int step = 0; step < c.steps; ++step) {
    const Batch batch = make_batch(c, random);
    enqueue(c, container, batch);
    enqueue_plainly(c, model, batch);
    lru.enqueue(c, batch);
    CHECK(container.clock == model.clock, "step %d: clock %lld, not %lld", step,
          static_cast<long long>(container.clock), static_cast<long long>(model.clock));
    CHECK(container.labels == model.labels, "step %d: other labels", step);
    CHECK(container.stamps == model.stamps, "step %d: other stamps", step);
    CHECK(container.slot_of_class == model.slot_of_class, "step %d: other slots of classes", step);
    CHECK(container.centers == model.centers, "step %d: other centres", step);
    if (c.refresh) lru.check(c, container);
  }
  return container;
}

void add(const char* name, void (*change)(Case&), bool small = true) {
  if (!small && testing::small_only()) return;
  Case c;
  change(c);
  // ThreadSanitizer pays for every CUDA thread.
  if (testing::small_only()) c.steps = std::min(c.steps, gpu::host::kReuseMemoryAcrossBlocks ? 8 : 3);
  testing::add_case(name, [c] {
    testing::under_schedules(
        227 << 10, [&] { return run(c); }, [](const Container&) {},
        [](const Container& a, const Container& b) { return a == b; });
  });
}

}  // namespace

int main(int argc, char** argv) {
  add("fifo", [](Case& c) { c.refresh = false; });
  add("fifo.rows_are_slots", [](Case& c) { c.refresh = false, c.slots = c.rows = 16, c.dtype = Dtype::kFloat32; });
  add("fifo.late", [](Case& c) { c.refresh = false, c.clock = (int64_t{1} << 40) + 3, c.dtype = Dtype::kFloat16; });
  add("fifo.many_rows", [](Case& c) { c.refresh = false, c.slots = 1900, c.rows = 1200, c.steps = 5; }, false);
  add("fifo.no_row_counts", [](Case& c) { c.refresh = false, c.ignored_share = 2, c.steps = 3; });
  add("fifo.no_rows", [](Case& c) { c.refresh = false, c.rows = 0, c.steps = 1; });
  add("refresh", [](Case& c) { c.steps = 120; });
  add("refresh.float32", [](Case& c) { c.dtype = Dtype::kFloat32, c.dim = 40; });
  add("refresh.fp16", [](Case& c) { c.dtype = Dtype::kFloat16, c.num_classes = 30; });
  add("refresh.classes_fit", [](Case& c) { c.num_classes = 12; });
  add("refresh.repeated_classes", [](Case& c) { c.num_classes = 4; });
  add("refresh.rows_are_slots", [](Case& c) { c.slots = c.rows = 16; });
  add("refresh.one_slot", [](Case& c) { c.slots = c.rows = 1, c.ignored_share = 0; });
  add("refresh.late", [](Case& c) { c.clock = (int64_t{1} << 40) + 3, c.steps = 60; });
  add("refresh.straggler", [](Case& c) {
    c.clock = int64_t{1} << 40, c.stamps = kStraggler, c.slots = 300, c.rows = 9, c.num_classes = 5000;
  });
  add("refresh.wide",
      [](Case& c) { c.clock = INT64_MAX / 2, c.stamps = kWide, c.slots = 300, c.rows = 9, c.num_classes = 5000; });
  add("refresh.no_row_counts", [](Case& c) { c.ignored_share = 2, c.steps = 3; });
  add("refresh.no_rows", [](Case& c) { c.rows = 0, c.steps = 1; });
  // More rows than threads, more slots than a block reads and than threads hand out at a time.
  add(
      "refresh.many", [](Case& c) { c.slots = 9000, c.rows = 1300, c.num_classes = 40000, c.dim = 2, c.steps = 12; },
      false);
  testing::add_case("refuses", [] {
    EnqueueArguments a{};
    a.rows = 3, a.slots = 2;
    CHECK(cuda::launch_enqueue(a, nullptr, nullptr) != nullptr, "more rows than slots");
    a.rows = 1, a.container_dtype = Dtype::kFloat64;
    CHECK(cuda::launch_enqueue(a, nullptr, nullptr) != nullptr, "float64 centres");
    CHECK(gpu::host::counters.launches == 0, "launched all the same");
  });
  return testing::run_cases(argc, argv);
}
