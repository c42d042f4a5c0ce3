// Pairs of bfloat16 multiplied in the processor's matrix unit (AMX): 16 x 16 sums a register, 32 numbers a step.
// Included inside kernels_amx.cpp, by operands.h.
//
// The unit takes the operands of both products as product.h has them: scalars[a][k] are the rows of its left side,
// vectors[k][v] (pairs side by side) its right side. Its registers belong to the thread and must be configured first.

struct MatrixOperand : PairOperand {
  static constexpr bool kInMatrixUnit = true;
  static constexpr int kWholeNumbers = 32;          // of an instruction's inner dimension
  static constexpr int kRows = 16;                  // of a register
  static constexpr int kColumns = 32;               // of multiply(): two registers
  static constexpr int kSteps = kWholeNumbers / 2;  // pairs, of one instruction

  // While it lives this thread's matrix unit is ready; nothing else of the thread may be using it.
  class Unit {
   public:
    Unit() {
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes_per_row[16] = {};
        uint8_t rows[16] = {};
      } registers;
      for (int i = 0; i < 8; ++i) registers.bytes_per_row[i] = 64, registers.rows[i] = kRows;
      _tile_loadconfig(&registers);
    }
    ~Unit() { _tile_release(); }
    Unit(const Unit&) = delete;
    Unit& operator=(const Unit&) = delete;
  };

  // out[i][v] (+)= sum_{k < steps} scalars[i][k] . vectors[k][v]    i < kRegisters kRows, v < kColumns
  //
  // Strides in bytes, those of `out` in numbers; `steps` is a multiple of kSteps. kRegisters: 1 or 2.
  template <int kRegisters>
  static void multiply(const void* scalars, int64_t scalar_stride, const void* vectors, int64_t vector_stride,
                       float* out, int64_t out_stride, int64_t steps, bool add) {
    const char *above = static_cast<const char*>(scalars), *below = above + kRows * scalar_stride;
    const char *left = static_cast<const char*>(vectors), *right = left + 64;
    float* out_below = out + kRows * out_stride;
    const int64_t out_bytes = out_stride * static_cast<int64_t>(sizeof(float));
    // The compiler does not know what the unit reads: what was stored before must be in memory.
    __asm__ volatile("" ::: "memory");
    if (add) {
      _tile_loadd(0, out, out_bytes);
      _tile_loadd(1, out + 16, out_bytes);
      if constexpr (kRegisters == 2) {
        _tile_loadd(2, out_below, out_bytes);
        _tile_loadd(3, out_below + 16, out_bytes);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      if constexpr (kRegisters == 2) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
    for (int64_t step = 0; step < steps; step += kSteps) {
      _tile_loadd(4, above + step * 4, scalar_stride);
      _tile_loadd(6, left + step * vector_stride, vector_stride);
      _tile_loadd(7, right + step * vector_stride, vector_stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRegisters == 2) {
        _tile_loadd(5, below + step * 4, scalar_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + 16, out_bytes);
    if constexpr (kRegisters == 2) {
      _tile_stored(2, out_below, out_bytes);
      _tile_stored(3, out_below + 16, out_bytes);
    }
    __asm__ volatile("" ::: "memory");
  }

  // to[i][k] = from[k][i] for 16 x 16 pairs; strides in pairs.
  static void transpose(const uint32_t* from, int64_t from_stride, uint32_t* to, int64_t to_stride) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
      for (int half = 0; half < 2; ++half) {
        a[i + 2 * half] = _mm512_unpacklo_epi64(b[i + half], b[i + 2 + half]);
        a[i + 2 * half + 1] = _mm512_unpackhi_epi64(b[i + half], b[i + 2 + half]);
      }
    // a[4 q + r]: of the four lanes 4 l + r of the from-rows 4 q ... 4 q + 3, l = 0 ... 3. Now lanes l across q.
    for (int r = 0; r < 4; ++r) {
      const __m512i low = _mm512_shuffle_i32x4(a[r], a[4 + r], 0x88), high = _mm512_shuffle_i32x4(a[r], a[4 + r], 0xDD);
      const __m512i low2 = _mm512_shuffle_i32x4(a[8 + r], a[12 + r], 0x88);
      const __m512i high2 = _mm512_shuffle_i32x4(a[8 + r], a[12 + r], 0xDD);
      _mm512_storeu_si512(to + r * to_stride, _mm512_shuffle_i32x4(low, low2, 0x88));
      _mm512_storeu_si512(to + (4 + r) * to_stride, _mm512_shuffle_i32x4(high, high2, 0x88));
      _mm512_storeu_si512(to + (8 + r) * to_stride, _mm512_shuffle_i32x4(low, low2, 0xDD));
      _mm512_storeu_si512(to + (12 + r) * to_stride, _mm512_shuffle_i32x4(high, high2, 0xDD));
    }
  }
};
