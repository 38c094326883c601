/* What the kernels need and C++ has no word for, one instruction a function: numbers of 16 bits, products on tensor
 * cores, asynchronous copies. Needs sm_80. tests/plugins_trt/emulator has a twin of this file for hosts.
 *
 * Lane 4 g + t of a warp holds of the matrices of a product (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
 *     c [16, 8]     (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
 *     a [16, k]     rows g and g + 8, see multiply_*
 *     b [k, 8]      column g
 */
#ifndef VIDEOSSM_KERNELS_PTX_CUH
#define VIDEOSSM_KERNELS_PTX_CUH

#include <cuda_runtime.h>

#include "kernels/types.cuh"

namespace videossm {

/* Of the launch, at least 16-byte aligned. */
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char videossm_shared[];
    return videossm_shared;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/* x, in a way that what is computed from it is computed where it is used, rather than kept in registers till then. */
__device__ __forceinline__ int recomputed(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* To the nearest; `low` in the lower bits. */
template <typename T>
__device__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<Half>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <>
__device__ __forceinline__ uint32_t pack<BFloat16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ float to_float(Half x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
}

__device__ __forceinline__ float to_float(BFloat16 x) {
    return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

/* What the tensor cores read of a float: its sign, its exponent and ten bits of mantissa. */
__device__ __forceinline__ float upper_bits(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

/* 2^x within 2 units of the last place; 0 below 2^-126. */
__device__ __forceinline__ float exp2_fast(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

/* c += a b over 16, in pairs. a: (g, 2t..) (g + 8, 2t..) (g, 2t + 8..) (g + 8, 2t + 8..), b: (2t.., g) (2t + 8.., g) */
template <typename T>
__device__ void multiply_pairs(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void multiply_pairs<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void multiply_pairs<BFloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                         const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* c += a b over 8, of the numbers' upper bits. a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4), b: (t, g) (t + 4, g). */
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

/* Four matrices [8, 8] of 16 bits from shared memory; lane 8 i + j names the address of row j of matrix i, 16 bytes.
 * Lane 4 g + t gets (g, 2t..) of each. */
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* The same; lane 4 g + t gets the column (2t.., g) of each. */
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&matrices)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* 16 bytes to shared memory, there after wait_copies; zeros, and nothing read, where not `valid`. */
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}

/* Ends a group of this thread's copies. */
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* Until all but the last `GROUPS` groups of this thread have landed. */
template <int GROUPS>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" : : "n"(GROUPS) : "memory");
}

/* Into the second-level cache; `global` may not be null and may be past the end of a line. */
__device__ __forceinline__ void prefetch(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" : : "l"(__cvta_generic_to_global(global)));
}

}  // namespace videossm

#endif
