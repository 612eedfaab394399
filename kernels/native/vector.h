/* Sixteen float32 lanes: loads and stores of every number format. Include it after KERNEL_FILE. */
#pragma once

#include <immintrin.h>

#include "cpu.h"

#define INLINE static inline __attribute__((always_inline))

/* Mask of the first n of 16 lanes, n clipped to 0..16. */
INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* bfloat16 is the upper half of a float32. */
INLINE __m512 widen_bf16(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }

INLINE __m256i narrow_bf16(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); } /* to nearest, ties to even */

INLINE __m256i narrow_f16(__m512 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* Elements i.. of an array of the given format; dtype is a constant wherever speed matters. */
INLINE __m512 load_masked(Dtype dtype, const void *p, int64_t i, __mmask16 mask) {
    if (dtype == F32) return _mm512_maskz_loadu_ps(mask, (const float *)p + i);
    __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)p + i);
    return dtype == BF16 ? widen_bf16(half) : _mm512_cvtph_ps(half);
}

INLINE void store_masked(Dtype dtype, void *p, int64_t i, __mmask16 mask, __m512 v) {
    if (dtype == F32)
        _mm512_mask_storeu_ps((float *)p + i, mask, v);
    else
        _mm256_mask_storeu_epi16((uint16_t *)p + i, mask, dtype == BF16 ? narrow_bf16(v) : narrow_f16(v));
}

/* The value that a store and a load would give: where torch rounds between two operations, so do we. */
INLINE __m512 round_to(Dtype dtype, __m512 v) {
    if (dtype == F32) return v;
    return dtype == BF16 ? widen_bf16(narrow_bf16(v)) : _mm512_cvtph_ps(narrow_f16(v));
}

/* Sums of four vectors in one: the tree is the same whatever the neighbours are, so a row's bits do not depend on them. */
INLINE __m128 sum_of_four(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m256 a8 = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m256 b8 = _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps(b, 1));
    __m256 c8 = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    __m256 d8 = _mm256_add_ps(_mm512_castps512_ps256(d), _mm512_extractf32x8_ps(d, 1));
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a8, b8), _mm256_hadd_ps(c8, d8));
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

/* rows[i][j] becomes rows[j][i]. */
INLINE void transpose16(__m512 rows[16]) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) { /* pairs of rows */
        t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* fours of rows: r[4i+c] holds columns c, c+4, c+8, c+12 */
        __m512d lo0 = _mm512_castps_pd(t[4 * i]), lo1 = _mm512_castps_pd(t[4 * i + 2]);
        __m512d hi0 = _mm512_castps_pd(t[4 * i + 1]), hi1 = _mm512_castps_pd(t[4 * i + 3]);
        rows[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo0, lo1));
        rows[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo0, lo1));
        rows[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(hi0, hi1));
        rows[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(hi0, hi1));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512 a = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0x88);
        __m512 b = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0xdd);
        __m512 d = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0x88);
        __m512 e = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0xdd);
        t[c] = _mm512_shuffle_f32x4(a, d, 0x88);
        t[8 + c] = _mm512_shuffle_f32x4(a, d, 0xdd);
        t[4 + c] = _mm512_shuffle_f32x4(b, e, 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(b, e, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) rows[i] = t[i];
}
