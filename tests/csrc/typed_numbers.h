// Numbers of a dtype as a kernel reads and writes them, and as a test does.
#pragma once

#include <cmath>

#include "csrc/cuda/element.h"
#include "testing.h"

namespace attfc::testing {

class Numbers {
 public:
  Numbers() = default;
  // All of them NaN.
  Numbers(Dtype dtype, size_t count) : dtype_(dtype) {
    if (dtype == Dtype::kFloat32) {
      wide_.assign(count, NAN);
    } else {
      narrow_.assign(count, 0x7fff);
    }
  }

  void set(size_t at, double value) {
    cuda::store_element(dtype_, data(), static_cast<int64_t>(at), static_cast<float>(value));
  }
  double operator[](size_t at) const { return cuda::load_element(dtype_, data(), static_cast<int64_t>(at)); }
  size_t size() const { return wide_.size() + narrow_.size(); }
  void* data() { return dtype_ == Dtype::kFloat32 ? static_cast<void*>(wide_.data()) : narrow_.data(); }
  const void* data() const { return const_cast<Numbers*>(this)->data(); }
  bool operator==(const Numbers& other) const {
    return wide_.size() == other.wide_.size() && narrow_ == other.narrow_ &&
           (wide_.empty() || std::memcmp(wide_.data(), other.wide_.data(), wide_.size() * sizeof(float)) == 0);
  }

 private:
  Dtype dtype_ = Dtype::kFloat32;
  std::vector<float> wide_;
  std::vector<uint16_t> narrow_;
};

// Relative error of rounding to a dtype.
inline double rounding_of(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 0x1p-24 : dtype == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-11;
}
// Half of the smallest number above 0.
inline double underflow_of(Dtype dtype) { return dtype == Dtype::kFloat16 ? 0x1p-25 : 0x1p-134; }

inline void must(const char* error) { CHECK(error == nullptr, "%s", error); }

inline void near(const char* what, int64_t row, double got, double expected, double bound) {
  CHECK(std::fabs(got - expected) <= bound, "%s of row %d: %.9g, expected %.9g +- %.2g", what, int(row), got, expected,
        bound);
}

}  // namespace attfc::testing
