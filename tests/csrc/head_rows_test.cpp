// The row kernels' own source (csrc/cuda/head_rows.cu), run on the host and held to float64 loops: units, class centres
// and cosines, and the gradients of the rows. Under several thread schedules, whose results must be the same bits.
#include "csrc/cuda/head_rows.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "csrc/class_code.h"
#include "schedules.h"
#include "typed_numbers.h"

using namespace attfc;
using testing::Numbers;

namespace {

constexpr double kEps = 0x1p-24;
constexpr double kUpstream = -0.75;

struct Case {
  int64_t rows = 9, extra_rows = 4, gallery_size = 2, num_classes = 7, slots = 5;
  int dim = 70;  // no multiple of a warp
  Dtype embedding = Dtype::kFloat32, gallery = Dtype::kFloat32, extra = Dtype::kFloat32, container = Dtype::kBFloat16;
  double temperature = 0.5, class_code = 0, center_memory = 0;
  bool renumbered = false, with_nan = false;

  int64_t total() const { return extra_rows + rows; }
  // A sum over a row: each thread's own terms, then warps and the block by halves, and a few more roundings.
  double sum_error() const { return (dim / 128 + 16) * kEps; }
};

// Row 1 is too short to have a direction, row 2 has a gallery of zeros; with with_nan row 3 holds a NaN, so does the
// gallery of row 4 and extra row 1. What does not count holds NaN throughout.
constexpr int64_t kShortRow = 1, kEmptyGallery = 2, kNanRow = 3, kNanGallery = 4, kNanExtra = 1;

struct Inputs {
  Numbers embeddings, gallery, extra, stored;
  std::vector<int64_t> labels, extra_labels, code_of_class, slot_labels;
  std::vector<int32_t> slot_of_class;
  std::vector<float> unit_grad, lse_weight, cosine_weight;
  int64_t stride;
};

struct Results {
  Numbers units, grad;
  std::vector<float> inverse_norm, cosine, new_centers;
  std::vector<int64_t> row_labels, new_labels;
};

bool counts(const Case& c, int64_t label) { return label >= 0 && label < c.num_classes; }

Inputs make_inputs(const Case& c) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  const auto dim = static_cast<size_t>(c.dim);
  Inputs in;
  in.stride = c.dim + 3;
  in.embeddings = Numbers(c.embedding, static_cast<size_t>(c.rows * in.stride));
  in.gallery = Numbers(c.gallery, static_cast<size_t>(c.rows * c.gallery_size) * dim);
  in.extra = Numbers(c.extra, static_cast<size_t>(c.extra_rows) * dim);
  in.stored = Numbers(c.container, static_cast<size_t>(c.slots * in.stride));
  for (int64_t row = 0; row < c.rows; ++row) {
    in.labels.push_back(row == 6 ? -1 : row == 7 ? c.num_classes : row % c.num_classes);
    in.lse_weight.push_back(static_cast<float>(0.1 * normal(random)));
    in.cosine_weight.push_back(static_cast<float>(normal(random)));
    for (size_t d = 0; d < dim; ++d) in.unit_grad.push_back(static_cast<float>(8 * normal(random)));
    if (!counts(c, in.labels.back())) continue;
    for (size_t d = 0; d < dim; ++d) {
      const double x = 3 * normal(random);
      in.embeddings.set(static_cast<size_t>(row * in.stride) + d, row == kShortRow ? 1e-9 * x : x);
      for (int64_t k = 0; k < c.gallery_size; ++k) {
        const double near_x = (x / 3 + normal(random)) * static_cast<double>(1 + k);
        in.gallery.set(static_cast<size_t>(row * c.gallery_size + k) * dim + d, row == kEmptyGallery ? 0 : near_x);
      }
    }
  }
  if (c.with_nan) in.embeddings.set(static_cast<size_t>(kNanRow * in.stride) + dim - 1, NAN);
  if (c.with_nan) in.gallery.set(static_cast<size_t>(kNanGallery * c.gallery_size) * dim, NAN);
  for (int64_t row = 0; row < c.extra_rows; ++row) {
    in.extra_labels.push_back(row == 2 ? -5 : row % c.num_classes);
    for (size_t d = 0; row != 2 && d < dim; ++d) in.extra.set(static_cast<size_t>(row) * dim + d, normal(random));
  }
  if (c.with_nan) in.extra.set(static_cast<size_t>(kNanExtra) * dim, NAN);
  for (int64_t label = 0; label < c.num_classes; ++label) in.code_of_class.push_back(1000003 * label + 17);
  // Slot j holds class 2 j; class 1 points to a slot that shows another class, the others nowhere.
  in.slot_of_class.assign(static_cast<size_t>(c.num_classes) + 1, -1);
  for (int64_t slot = 0; slot < c.slots; ++slot) {
    const bool filled = 2 * slot < c.num_classes;
    in.slot_labels.push_back(filled ? 2 * slot : -1);
    if (filled) in.slot_of_class[static_cast<size_t>(2 * slot)] = static_cast<int32_t>(slot);
    for (size_t d = 0; filled && d < dim; ++d) {
      in.stored.set(static_cast<size_t>(slot * in.stride) + d, normal(random) / std::sqrt(c.dim));
    }
  }
  if (c.num_classes > 1) in.slot_of_class[1] = 0;
  return in;
}

Results run(const Case& c, const Inputs& in) {
  const auto rows = static_cast<size_t>(c.rows), total = static_cast<size_t>(c.total());
  const auto dim = static_cast<size_t>(c.dim);
  Results r;
  r.units = Numbers(c.container, rows * dim);
  r.grad = Numbers(c.embedding, rows * dim);
  r.inverse_norm.assign(rows, NAN);
  r.cosine.assign(rows, NAN);
  r.new_centers.assign(total * dim, NAN);
  r.row_labels.assign(rows, 99);
  r.new_labels.assign(total, 99);
  HeadRowsArguments a{};
  a.rows = c.rows, a.extra_rows = c.extra_rows, a.gallery_size = c.gallery_size, a.dim = c.dim;
  a.num_classes = c.num_classes;
  a.embedding_dtype = c.embedding, a.gallery_dtype = c.gallery, a.extra_dtype = c.extra;
  a.container_dtype = c.container;
  a.embeddings = in.embeddings.data(), a.embedding_stride = in.stride, a.labels = in.labels.data();
  a.gallery = in.gallery.data(), a.extra_centers = in.extra.data(), a.extra_labels = in.extra_labels.data();
  a.temperature = c.temperature, a.class_code = c.class_code, a.center_memory = c.center_memory;
  a.code_of_class = c.renumbered ? in.code_of_class.data() : nullptr;
  if (c.center_memory > 0) {
    a.stored_centers = in.stored.data(), a.stored_stride = in.stride;
    a.slot_labels = in.slot_labels.data(), a.slot_of_class = in.slot_of_class.data();
  }
  a.units = r.units.data(), a.inverse_norm = r.inverse_norm.data(), a.cosine = r.cosine.data();
  a.row_labels = r.row_labels.data(), a.new_centers = r.new_centers.data(), a.new_labels = r.new_labels.data();
  testing::must(cuda::launch_head_rows(a, nullptr));
  const float upstream = kUpstream;
  const float* centers = r.new_centers.data() + c.extra_rows * c.dim;
  testing::must(cuda::launch_row_gradients(
      {c.rows, c.dim, c.embedding, r.row_labels.data(), in.embeddings.data(), in.stride, centers, r.inverse_norm.data(),
       in.lse_weight.data(), in.cosine_weight.data(), in.unit_grad.data(), &upstream, r.grad.data()},
      nullptr));
  CHECK(gpu::host::counters.launches == (c.total() > 0) + (c.rows > 0), "%lld launches", gpu::host::counters.launches);
  return r;
}

using Vector = std::vector<double>;

double norm_of(const Vector& v) {
  double square = 0;
  for (const double each : v) square += each * each;
  return std::sqrt(square);
}

Vector row_of(const Numbers& numbers, int64_t first, int dim) {
  Vector v;
  for (int d = 0; d < dim; ++d) v.push_back(numbers[static_cast<size_t>(first + d)]);
  return v;
}

double inverse_of(const Vector& v) { return norm_of(v) < 1e-6 ? 0 : 1 / norm_of(v); }

// v <- unit(v), and the error of what it was, as the division magnifies it.
void normalise(const Case& c, Vector& v, double& error) {
  const double inverse = inverse_of(v);
  for (double& each : v) each *= inverse;
  error = error * 2 * inverse + c.sum_error();
}

// g of a row of embeddings, and a bound on the length of its error in float32.
Vector attended(const Case& c, const Inputs& in, int64_t row, const Vector& unit, double& error) {
  Vector logits, g(unit.size());
  double largest = -INFINITY, total = 0, lengths = 0;
  for (int64_t k = 0; k < c.gallery_size; ++k) {
    const Vector image = row_of(in.gallery, (row * c.gallery_size + k) * c.dim, c.dim);
    double cosine = 0;
    for (size_t d = 0; d < unit.size(); ++d) cosine += unit[d] * image[d] / std::max(norm_of(image), 1e-12);
    logits.push_back(cosine / c.temperature);
    largest = std::max(largest, logits.back());
  }
  for (const double logit : logits) total += std::exp(logit - largest);
  for (int64_t k = 0; k < c.gallery_size; ++k) {
    const Vector image = row_of(in.gallery, (row * c.gallery_size + k) * c.dim, c.dim);
    const double share = std::exp(logits[static_cast<size_t>(k)] - largest) / total;
    for (size_t d = 0; d < unit.size(); ++d) g[d] += share * image[d];
    lengths += share * norm_of(image);
  }
  const double inverse = 1 / std::max(norm_of(g), 1e-12);
  for (double& each : g) each *= inverse;
  // A logit's error, of a cosine and of a quotient, changes its weight by the same share; exp() adds its own.
  const double of_weight = 3 * c.sum_error() / c.temperature + 4 * kEps * (1 + 2 / c.temperature);
  error = (2 * of_weight + static_cast<double>(c.gallery_size + 4) * kEps) * lengths * inverse + c.sum_error();
  return g;
}

void check_center(const Results& r, int64_t out, const Vector& g, double error, int64_t label) {
  bool finite = true;
  for (size_t d = 0; d < g.size(); ++d) {
    const double got = r.new_centers[static_cast<size_t>(out) * g.size() + d];
    finite = finite && std::isfinite(got);
    if (std::isnan(g[d])) {
      CHECK(std::isnan(got), "the NaN of row %d is lost", int(out));
    } else {
      testing::near("centre", out, got, g[d], error);
    }
  }
  const int64_t expected = finite ? label : -1;
  CHECK(r.new_labels[static_cast<size_t>(out)] == expected, "label %d of new row %d",
        int(r.new_labels[static_cast<size_t>(out)]), int(out));
}

void check_row(const Case& c, const Inputs& in, const Results& r, int64_t out) {
  const int64_t row = out - c.extra_rows;
  const auto b = static_cast<size_t>(row);
  const int64_t label = row < 0 ? in.extra_labels[static_cast<size_t>(out)] : in.labels[b];
  const auto dim = static_cast<size_t>(c.dim);
  if (!counts(c, label)) {
    for (size_t d = 0; d < dim; ++d) {
      CHECK(r.new_centers[static_cast<size_t>(out) * dim + d] == 0, "new row %d does not count", int(out));
      CHECK(row < 0 || (r.units[b * dim + d] == 0 && r.grad[b * dim + d] == 0), "row %d does not count", int(row));
    }
    CHECK(r.new_labels[static_cast<size_t>(out)] == -1, "new row %d does not count", int(out));
    CHECK(row < 0 || (r.inverse_norm[b] == 0 && r.cosine[b] == 0 && r.row_labels[b] == -1), "row %d", int(row));
    return;
  }
  const Vector x = row < 0 ? row_of(in.extra, out * c.dim, c.dim) : row_of(in.embeddings, row * in.stride, c.dim);
  Vector unit = x, g;
  double unit_error = 0, error = 0;
  normalise(c, unit, unit_error);
  if (row < 0) {
    g = unit;
    error = unit_error;
  } else {
    g = attended(c, in, row, unit, error);
  }
  if (c.class_code > 0) {
    const int64_t number = c.renumbered ? in.code_of_class[static_cast<size_t>(label)] : label;
    for (size_t d = 0; d < dim; ++d) {
      g[d] += c.class_code / std::sqrt(c.dim) * class_code_sign(number, c.dim, static_cast<int>(d));
    }
    error += 4 * kEps * (1 + c.class_code);
    normalise(c, g, error);
  }
  if (c.center_memory > 0 && label % 2 == 0) {
    const Vector stored = row_of(in.stored, label / 2 * in.stride, c.dim);
    for (size_t d = 0; d < dim; ++d) g[d] += c.center_memory * (stored[d] - g[d]);
    error += 4 * kEps * (1 + norm_of(stored));
    normalise(c, g, error);
  }
  check_center(r, out, g, error, label);
  if (row < 0) return;

  CHECK(r.row_labels[b] == label, "label of row %d", int(row));
  double cosine = 0;
  for (size_t d = 0; d < dim; ++d) {
    cosine += unit[d] * g[d];
    if (std::isnan(unit[d])) {
      CHECK(std::isnan(r.units[b * dim + d]), "the NaN of row %d is lost", int(row));
    } else {
      testing::near("unit", row, r.units[b * dim + d], unit[d],
                    std::fabs(unit[d]) * (testing::rounding_of(c.container) + 2 * c.sum_error()) +
                        testing::underflow_of(c.container));
    }
  }
  if (std::isnan(cosine)) {
    CHECK(std::isnan(r.cosine[b]), "the NaN of row %d is lost", int(row));
    return;
  }
  testing::near("inverse norm", row, r.inverse_norm[b], inverse_of(x), inverse_of(x) * c.sum_error());
  testing::near("cosine", row, r.cosine[b], cosine, error + 3 * c.sum_error());
}

// d loss / d x = (I - u u^T) / |x| (lse_weight unit_grad + cosine_weight g), times upstream; from the kernel's own g.
void check_gradient(const Case& c, const Inputs& in, const Results& r, int64_t row) {
  const auto b = static_cast<size_t>(row), dim = static_cast<size_t>(c.dim);
  const Vector x = row_of(in.embeddings, row * in.stride, c.dim);
  const double inverse = inverse_of(x);
  Vector by_unit(dim);
  double along = 0, size = 0;
  for (size_t d = 0; d < dim; ++d) {
    const double by_lse = double{in.lse_weight[b]} * in.unit_grad[b * dim + d];
    const double by_cosine =
        double{in.cosine_weight[b]} * r.new_centers[static_cast<size_t>(c.extra_rows + row) * dim + d];
    by_unit[d] = kUpstream * (by_lse + by_cosine);
    along += by_unit[d] * x[d] * inverse;
    size = std::max(size, std::fabs(kUpstream) * (std::fabs(by_lse) + std::fabs(by_cosine)));
  }
  // Each term of the sum along the row is at most size |u_d|, and sum |u_d| at most sqrt(dim).
  const double along_error = 4 * c.sum_error() * size * std::sqrt(c.dim);
  for (size_t d = 0; d < dim; ++d) {
    const double expected = (by_unit[d] - along * x[d] * inverse) * inverse;
    const double unit = std::fabs(x[d] * inverse);
    const double bound =
        (8 * kEps * size + along_error * unit + 2 * c.sum_error() * std::fabs(along) * unit) * inverse +
        std::fabs(expected) * (testing::rounding_of(c.embedding) + 2 * c.sum_error()) +
        testing::underflow_of(c.embedding);
    const double got = r.grad[b * dim + d];
    if (std::isnan(expected)) {
      CHECK(std::isnan(got), "the NaN of row %d is lost", int(row));
    } else {
      testing::near("gradient", row, got, expected, bound);
    }
  }
}

void check(const Case& c, const Inputs& in, const Results& r) {
  for (int64_t out = 0; out < c.total(); ++out) check_row(c, in, r, out);
  for (int64_t row = 0; row < c.rows; ++row) {
    if (counts(c, in.labels[static_cast<size_t>(row)])) check_gradient(c, in, r, row);
  }
}

bool same(const Results& a, const Results& b) {
  return a.units == b.units && a.grad == b.grad && testing::same_bits(a.inverse_norm, b.inverse_norm) &&
         testing::same_bits(a.cosine, b.cosine) && testing::same_bits(a.new_centers, b.new_centers) &&
         a.row_labels == b.row_labels && a.new_labels == b.new_labels;
}

void add(const char* name, void (*change)(Case&), bool small = true) {
  if (!small && testing::small_only()) return;
  Case c;
  change(c);
  testing::add_case(name, [c] {
    const Inputs in = make_inputs(c);
    testing::under_schedules(227 << 10, [&] { return run(c, in); }, [&](const Results& r) { check(c, in, r); }, same);
  });
}

}  // namespace

int main(int argc, char** argv) {
  add("float32", [](Case&) {});
  add("bf16", [](Case& c) { c.embedding = c.gallery = c.extra = Dtype::kBFloat16; });
  add("fp16", [](Case& c) { c.embedding = c.gallery = c.extra = c.container = Dtype::kFloat16; });
  add("mixed",
      [](Case& c) { c.embedding = Dtype::kFloat16, c.gallery = Dtype::kBFloat16, c.container = Dtype::kFloat32; });
  add("d512", [](Case& c) { c.dim = 512, c.rows = 4, c.extra_rows = 1; }, false);
  add("d1", [](Case& c) { c.dim = 1; });
  add("one_image", [](Case& c) { c.gallery_size = 1; });
  add("seven_images", [](Case& c) { c.gallery_size = 7, c.rows = 4; });
  add("cold_attention", [](Case& c) { c.temperature = 0.02, c.gallery_size = 4; });
  add("class_code", [](Case& c) { c.class_code = 0.4; });
  add("renumbered_codes", [](Case& c) { c.class_code = 1.5, c.renumbered = true; });
  add("center_memory", [](Case& c) { c.center_memory = 0.6; });
  add("code_and_memory.fp16", [](Case& c) {
    c.class_code = 0.3, c.center_memory = 0.9;
    c.embedding = c.gallery = c.extra = c.container = Dtype::kFloat16;
  });
  add("nan", [](Case& c) { c.with_nan = true, c.class_code = 0.4, c.center_memory = 0.5; });
  add("no_extra_rows", [](Case& c) { c.extra_rows = 0; });
  add("extra_rows_only", [](Case& c) { c.rows = 0; });
  add("no_rows", [](Case& c) { c.rows = c.extra_rows = 0; });
  testing::add_case("refuses_double", [] {
    HeadRowsArguments rows{};
    rows.container_dtype = Dtype::kFloat64;
    CHECK(cuda::launch_head_rows(rows, nullptr) != nullptr, "float64 centres");
    RowGradientArguments gradients{};
    gradients.embedding_dtype = Dtype::kFloat64;
    CHECK(cuda::launch_row_gradients(gradients, nullptr) != nullptr, "float64 embeddings");
    CHECK(gpu::host::counters.launches == 0, "launched all the same");
  });
  return testing::run_cases(argc, argv);
}
