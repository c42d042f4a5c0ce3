// The device side of gpu.h: each function is one PTX instruction or CUDA builtin. Included by gpu.h under nvcc only.
#pragma once

#include <cuda_runtime.h>

#define ATTFC_DEVICE __device__ __forceinline__
#define ATTFC_UNROLL _Pragma("unroll")
#define ATTFC_UNROLL_BY_4 _Pragma("unroll 4")
// A kernel for blocks of `threads`, at least `min_blocks` of them resident on a multiprocessor.
#define ATTFC_KERNEL(threads, min_blocks) __global__ void __launch_bounds__(threads, min_blocks)

namespace attfc::gpu {

ATTFC_DEVICE unsigned thread_index() { return threadIdx.x; }
ATTFC_DEVICE unsigned block_index_x() { return blockIdx.x; }
ATTFC_DEVICE unsigned block_index_y() { return blockIdx.y; }

ATTFC_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

class SharedArena {
 public:
  template <class T>
  ATTFC_DEVICE T* take(int count) {
    extern __shared__ __align__(1024) unsigned char attfc_dynamic_shared[];
    unsigned char* piece = attfc_dynamic_shared + used_;
    used_ += count * static_cast<int>(sizeof(T));
    return reinterpret_cast<T*>(piece);
  }

 private:
  int used_ = 0;
};

template <class T>
ATTFC_DEVICE T load_shared(const T* pointer) {
  return *pointer;
}
template <class T>
ATTFC_DEVICE void store_shared(T* pointer, T value) {
  *pointer = value;
}

ATTFC_DEVICE void sync_block() { __syncthreads(); }

template <class T>
ATTFC_DEVICE T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}
ATTFC_DEVICE bool warp_any(bool predicate) { return __any_sync(0xffffffffu, predicate) != 0; }

// Four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8 and receives, in r[m],
// elements 2 (lane % 4) and + 1 of row lane / 4 of matrix m (_trans: of column lane / 4, rows 2 (lane % 4) and + 1).
ATTFC_DEVICE void ldmatrix_x4(const void* row, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
ATTFC_DEVICE void ldmatrix_x4_trans(const void* row, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b: a 16 x 16 row-major, b 16 x 8 column-major, d 16 x 8, in the PTX ISA's fragment layouts; float32 sums.
template <class Element>
ATTFC_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
ATTFC_DEVICE void mma_16x8x16<BFloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
ATTFC_DEVICE void mma_16x8x16<Float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 (8, 4) bytes from global to shared memory, both aligned to that; zeros, without reading, where !real.
ATTFC_DEVICE void cp_async_16(void* shared, const void* global, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(real ? 16 : 0)
               : "memory");
}
ATTFC_DEVICE void cp_async_8(void* shared, const void* global, bool real) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(real ? 8 : 0)
               : "memory");
}
ATTFC_DEVICE void cp_async_4(void* shared, const void* global, bool real) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(real ? 4 : 0)
               : "memory");
}
ATTFC_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kPending of this thread's latest groups are under way.
template <int kPending>
ATTFC_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two floats rounded to the nearest even 16-bit floats, `low` in the low half.
template <class Element>
ATTFC_DEVICE uint32_t pack(float low, float high);

template <>
ATTFC_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
ATTFC_DEVICE uint32_t pack<Float16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

ATTFC_DEVICE float to_float(BFloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
ATTFC_DEVICE float to_float(Float16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
ATTFC_DEVICE float to_float(float value) { return value; }

// 2^x, relative error at most 2^-22, results below 2^-126 flushed to 0.
ATTFC_DEVICE float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Bits up to the highest that is set.
ATTFC_DEVICE int bit_width(uint64_t value) { return 64 - __clzll(static_cast<long long>(value)); }

// Of 4 or 8 bytes in global or shared memory; at the scope of the device, relaxed.
ATTFC_DEVICE uint32_t atomic_add(uint32_t* at, uint32_t value) { return atomicAdd(at, value); }
ATTFC_DEVICE int64_t atomic_add(int64_t* at, int64_t value) {
  return static_cast<int64_t>(
      atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value)));
}
ATTFC_DEVICE int32_t atomic_max(int32_t* at, int32_t value) { return atomicMax(at, value); }
ATTFC_DEVICE int64_t atomic_cas(int64_t* at, int64_t expected, int64_t value) {
  return static_cast<int64_t>(atomicCAS(reinterpret_cast<unsigned long long*>(at),
                                        static_cast<unsigned long long>(expected),
                                        static_cast<unsigned long long>(value)));
}
ATTFC_DEVICE int64_t load_relaxed(const int64_t* at) {
  int64_t value;
  asm volatile("ld.relaxed.gpu.b64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}
ATTFC_DEVICE void store_relaxed(int64_t* at, int64_t value) {
  asm volatile("st.relaxed.gpu.b64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
ATTFC_DEVICE uint32_t take_ticket(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

template <class Parameters>
const char* launch(void (*kernel)(Parameters), Grid grid, unsigned threads, size_t shared_bytes, void* stream,
                   const Parameters& parameters) {
  cudaError_t status =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes));
  if (status == cudaSuccess) {
    // Not <<<>>> and cudaGetLastError(), which would blame this launch for an earlier call's error.
    void* arguments[] = {const_cast<Parameters*>(&parameters)};
    status = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid.x, grid.y), dim3(threads), arguments,
                              shared_bytes, static_cast<cudaStream_t>(stream));
  }
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // told here, so not left for the next to ask
  return cudaGetErrorString(status);
}

}  // namespace attfc::gpu
