// The device side of sm90.h: each function is one PTX instruction or two. Included by sm90.h under nvcc only.
#pragma once

#include <cuda.h>

#define ATTFC_GRID_CONSTANT __grid_constant__

namespace attfc::gpu {

// Of the code being compiled.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kSm90a = true;
#else
constexpr bool kSm90a = false;
#endif

ATTFC_DEVICE void barrier_init(Barrier* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
ATTFC_DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
ATTFC_DEVICE void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
ATTFC_DEVICE void barrier_arrive_expect_tx(Barrier* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
ATTFC_DEVICE void barrier_wait(Barrier* barrier, unsigned parity) {
  uint32_t complete;
  do {
    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(complete)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (complete == 0);
}

ATTFC_DEVICE void copy_tile(void* shared, const TensorMap& map, Barrier* barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}
ATTFC_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int kRegisters>
ATTFC_DEVICE void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
ATTFC_DEVICE void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

ATTFC_DEVICE Operand swizzled_operand(const void* tile) { return Operand::of_columns(shared_address(tile)); }
ATTFC_DEVICE Operand swizzled_rows(const void* tile, int tile_bytes) {
  return Operand::of_rows(shared_address(tile), tile_bytes);
}

// The value of lane 0; tells the compiler that it is the same in all lanes.
ATTFC_DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

ATTFC_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ATTFC_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
ATTFC_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// The registers are operands, so that no use of them moves above the wait.
template <int kPending, int count>
ATTFC_DEVICE void wgmma_wait(float (&d)[count]) {
  wgmma_wait<kPending>();
  ATTFC_UNROLL
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// transposed: "1" where the inner axis of the right operand goes over rows of its tiles.
#define ATTFC_WGMMA_64X128X16(type, transposed)                                                                     \
  asm volatile(                                                                                                     \
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"                                                            \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                                  \
      " {"                                                                                                          \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                            \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                            \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                              \
      "}, %64, %65, p, 1, 1, 0, " transposed ";\n\t}"                                                               \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),      \
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),     \
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),     \
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),     \
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),     \
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),     \
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                   \
      : "l"(a), "l"(b), "n"(add ? 1 : 0))

#define ATTFC_WGMMA_64X32X16(type)                                                                                  \
  asm volatile(                                                                                                     \
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %18, 0;\n\t"                                                            \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                                                   \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1, 0, 0;\n\t}"      \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])                    \
      : "l"(a), "l"(b), "n"(add ? 1 : 0))

// The element at row 16 w + 8 h + g, column 8 n + 2 t + e of a warpgroup's 64 x 128 (or 64 x 32) is d[4 n + 2 h + e] of
// lane 4 g + t of its warp w.
template <class Element, bool add>
ATTFC_DEVICE void wgmma_64x128x16(float (&d)[64], Operand left, Operand right) {
  const uint64_t a = left.descriptor(), b = right.descriptor();
  if constexpr (kIsBFloat16<Element>) {
    ATTFC_WGMMA_64X128X16("bf16", "0");
  } else {
    ATTFC_WGMMA_64X128X16("f16", "0");
  }
}
template <class Element, bool add>
ATTFC_DEVICE void wgmma_64x128x16_rows(float (&d)[64], Operand left, Operand right) {
  const uint64_t a = left.descriptor(), b = right.descriptor();
  if constexpr (kIsBFloat16<Element>) {
    ATTFC_WGMMA_64X128X16("bf16", "1");
  } else {
    ATTFC_WGMMA_64X128X16("f16", "1");
  }
}
template <class Element, bool add>
ATTFC_DEVICE void wgmma_64x32x16(float (&d)[16], Operand left, Operand right) {
  const uint64_t a = left.descriptor(), b = right.descriptor();
  if constexpr (kIsBFloat16<Element>) {
    ATTFC_WGMMA_64X32X16("bf16");
  } else {
    ATTFC_WGMMA_64X32X16("f16");
  }
}
#undef ATTFC_WGMMA_64X128X16
#undef ATTFC_WGMMA_64X32X16

// The driver's encoder, found through the runtime: no library of the driver is linked. Null: it has none.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult query = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &query);
#else
  cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &query);
#endif
  if (query != cudaDriverEntryPointSuccess) found = nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

inline const char* encode_tensor_map(TensorMap& map, const TiledMatrix& matrix) {
  static const auto encode = tensor_map_encoder();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled";
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(matrix.columns), static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(matrix.row_stride) * 2};
  const cuuint32_t tile[2] = {kTileColumns, static_cast<cuuint32_t>(matrix.tile_rows)}, steps[2] = {1, 1};
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap));
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(&map),
             matrix.bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
             const_cast<void*>(matrix.data), sizes, strides, tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refuses the matrix";
}

}  // namespace attfc::gpu
