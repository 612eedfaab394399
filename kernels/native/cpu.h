/* What every native kernel shares: number formats, loads and stores as float32, and the way to run on many cores.
 *
 * A kernel file begins with KERNEL_FILE, which compiles all of it for AVX-512. Such code must only run where
 * cpu_features() allows it; module.c, compiled for any x86, sees to that.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAVE_KERNELS 1
#define KERNEL_FILE _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,bmi2\")")
#else
#define HAVE_KERNELS 0
#endif

typedef enum { F32 = 0, BF16 = 1, F16 = 2 } Dtype;

static inline size_t size_of(Dtype dtype) { return dtype == F32 ? 4 : 2; }
static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Meeting the other threads costs some microseconds, and milliseconds when the system has given one of their cores to
 * another process. Work below this many bytes, from memory or from the cache, is done by the caller alone. */
enum { SERIAL_BYTES = 1 << 15, SERIAL_CACHED_BYTES = 1 << 17 };
