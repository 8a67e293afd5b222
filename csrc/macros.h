// Compiler words used by every file of csrc.
#pragma once

#define SF_INLINE inline __attribute__((always_inline))

// Arithmetic that the CPU and the CUDA files share, so that the CPU tests exercise both.
#ifdef __CUDACC__
#define SF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SF_HOST_DEVICE SF_INLINE
#endif

// Before a loop of constant length that indexes a local array: unrolled, the array lives in registers.
#ifdef __CUDA_ARCH__
#define SF_UNROLL _Pragma("unroll")
#else
#define SF_UNROLL
#endif

// One clone of a leaf loop per x86-64 level, chosen when the library is loaded. The clones need ifunc (glibc)
// and a gcc that knows the level names; elsewhere the compiler's default target is used.
#if !defined(__CUDACC__) && defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#include <features.h>
#ifdef __GLIBC__
#define SF_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
#endif
#ifndef SF_CLONES
#define SF_CLONES
#endif
