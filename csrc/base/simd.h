#pragma once

// Compiles a leaf function once for each instruction set and picks at load time. Contraction is off
// in the whole core, so the copies differ in speed alone, never in bits. Only for functions that
// are not templates: GCC ignores it there.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define PLACKET_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PLACKET_SIMD
#endif
