/* The steps on a tile of keys: scores, softmax so far, weighted values. Include it after KERNEL_FILE.
 *
 * A row is one query head of one token, and a lane is a row, everywhere: Q lies as q[d][row], scores as s[key][row], the
 * result as o[d][row]. A key or value element is then broadcast straight from its page to up to 48 rows at once, the
 * maximum and the sum over keys run lane by lane, and nothing is ever summed across lanes. Keys come in tiles that begin
 * at multiples of TILE_KEYS, so a row's bits depend neither on its neighbours nor on how a prompt was cut into chunks.
 */
#pragma once

#include "vector_math.h"

enum {
    TILE_KEYS = 64,
    SUB_ROWS = 48,                       /* rows of one pass: 8 keys x 3 vectors of sums fill the registers */
    MAX_SUBS = 4,                        /* passes that share the keys and values of a tile */
    MAX_HEAD_DIM = 256,
    ROW_ELEMENTS = 64 * SUB_ROWS * MAX_SUBS, /* room for q and o: 192 rows at head_dim 64, 48 at 256 */
};

typedef struct { /* up to 48 rows */
    float *q, *o;                /* [head_dim or head_dim / 2][48], [head_dim][48] */
    int num_rows, num_vectors;
    _Alignas(64) float max[SUB_ROWS], sum[SUB_ROWS], rescale[SUB_ROWS]; /* so far, in powers of two */
    _Alignas(64) float slope[SUB_ROWS], sink[SUB_ROWS];
    _Alignas(64) int32_t position[SUB_ROWS], first_key[SUB_ROWS], last_key[SUB_ROWS]; /* keys that a row sees */
    int32_t lowest_first, highest_first, lowest_last, highest_last;
} Sub;

typedef struct { /* what a thread works in; too large for the stack */
    _Alignas(64) float q[ROW_ELEMENTS], o[ROW_ELEMENTS];
    _Alignas(64) float s[TILE_KEYS][SUB_ROWS];
    _Alignas(64) float k_wide[TILE_KEYS * MAX_HEAD_DIM], v_wide[TILE_KEYS * MAX_HEAD_DIM];
    Sub subs[MAX_SUBS];
} Scratch;

typedef struct {
    int32_t start, num_keys; /* keys start .. start + num_keys - 1 */
    const void *k[TILE_KEYS], *v[TILE_KEYS]; /* a key outside of what any row sees points at one that is seen */
} Keys;

INLINE __m512 broadcast(const void *p) { return _mm512_castsi512_ps(_mm512_set1_epi32(*(const int32_t *)p)); }

/* Rows first..last - 1 of the tile after this one: pages lie anywhere, so the hardware cannot guess. Keys are asked for
 * while scores are computed and values while values are added, a few at a time, so that memory is never idle. */
INLINE void prefetch_rows(const void *const *rows, int64_t first, int64_t last, int64_t num_bytes) {
    for (int64_t j = first; j < last; j++)
        for (int64_t line = 0; line < num_bytes; line += 64) _mm_prefetch((const char *)rows[j] + line, _MM_HINT_T1);
}

/* s[key][row] = k[key] . q[row], for eight keys at a time. bfloat16 multiplies two elements of head_dim per step. */
INLINE void scores(const Dtype dtype, const int NV, const Keys *keys, const float *q, int64_t head_dim, const Keys *next,
                   float (*s)[SUB_ROWS]) {
    const int64_t units = dtype == BF16 ? head_dim / 2 : head_dim;
    for (int j = 0; j < keys->num_keys; j += 8) {
        __m512 sum[8][3];
        const char *k[8];
        if (next) prefetch_rows(next->k, j, j + 8, 4 * units);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            k[i] = keys->k[j + i];
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) sum[i][v] = _mm512_setzero_ps();
        }
        for (int64_t u = 0; u < units; u++) {
            __m512 rows[3];
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) rows[v] = _mm512_load_ps(q + u * SUB_ROWS + 16 * v);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const __m512 element = broadcast(k[i] + 4 * u);
#pragma GCC unroll 3
                for (int v = 0; v < NV; v++)
                    sum[i][v] = dtype == BF16 ? _mm512_dpbf16_ps(sum[i][v], (__m512bh)element, (__m512bh)rows[v])
                                              : _mm512_fmadd_ps(element, rows[v], sum[i][v]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
#pragma GCC unroll 3
            for (int v = 0; v < NV; v++) _mm512_store_ps(&s[j + i][16 * v], sum[i][v]);
    }
}

/* -inf where a row does not see a key. */
INLINE void mask_scores(const Sub *sub, const Keys *keys, float (*s)[SUB_ROWS]) {
    for (int v = 0; v < sub->num_vectors; v++) {
        const __m512i first = _mm512_load_si512(sub->first_key + 16 * v), last = _mm512_load_si512(sub->last_key + 16 * v);
        for (int j = 0; j < keys->num_keys; j++) {
            const __m512i key = _mm512_set1_epi32(keys->start + j);
            const __mmask16 unseen = _mm512_cmplt_epi32_mask(key, first) | _mm512_cmpgt_epi32_mask(key, last);
            _mm512_mask_storeu_ps(&s[j][16 * v], unseen, _mm512_set1_ps(-__builtin_inff()));
        }
    }
}

/* Scale, softcap, ALiBi: scores become natural exponents. */
static void adjust_scores(const Attention *op, const Sub *sub, const Keys *keys, float (*s)[SUB_ROWS]) {
    const __m512 scale = _mm512_set1_ps(op->scale), cap = _mm512_set1_ps(op->softcap);
    const __m512 per_cap = _mm512_set1_ps(op->softcap ? 1 / op->softcap : 0);
    for (int v = 0; v < sub->num_vectors; v++) {
        const __m512i position = _mm512_load_si512(sub->position + 16 * v);
        const __m512 slope = _mm512_load_ps(sub->slope + 16 * v);
        for (int j = 0; j < keys->num_keys; j++) {
            __m512 x = _mm512_mul_ps(_mm512_load_ps(&s[j][16 * v]), scale);
            if (op->softcap) x = _mm512_mul_ps(cap, tanh_of(_mm512_mul_ps(x, per_cap)));
            const __m512i distance = _mm512_sub_epi32(_mm512_set1_epi32(keys->start + j), position);
            if (op->slopes) x = _mm512_fmadd_ps(slope, _mm512_cvtepi32_ps(distance), x);
            _mm512_store_ps(&s[j][16 * v], x);
        }
    }
}

/* s becomes probabilities relative to the maximum so far; max, sum and the factor for earlier results follow. For
 * bfloat16 the probabilities of keys 2i and 2i + 1 share a lane of row i. */
INLINE void softmax(const Dtype dtype, Sub *sub, int num_keys, float factor, float (*s)[SUB_ROWS]) {
    for (int v = 0; v < sub->num_vectors; v++) {
        const __m512 scale = _mm512_set1_ps(factor), before = _mm512_load_ps(sub->max + 16 * v);
        __m512 tops[4] = {before, before, before, before};
        int j = 0;
        for (; j + 4 <= num_keys; j += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                tops[i] = _mm512_max_ps(tops[i], _mm512_mul_ps(_mm512_load_ps(&s[j + i][16 * v]), scale));
        for (; j < num_keys; j++) tops[0] = _mm512_max_ps(tops[0], _mm512_mul_ps(_mm512_load_ps(&s[j][16 * v]), scale));
        const __m512 top = _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
        _mm512_store_ps(sub->max + 16 * v, top);
        /* A row that has seen no key yet has -inf everywhere; 0 in its place keeps inf - inf out. */
        const __mmask16 none = _mm512_cmp_ps_mask(top, _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ);
        const __m512 base = _mm512_mask_mov_ps(top, none, _mm512_setzero_ps());
        const __m512 rescale = exp2_of(_mm512_sub_ps(before, base));
        __m512 sum = _mm512_mul_ps(_mm512_load_ps(sub->sum + 16 * v), rescale);
        _mm512_store_ps(sub->rescale + 16 * v, rescale);
        for (j = 0; j + 2 <= num_keys; j += 2) {
            const __m512 p0 = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(&s[j][16 * v]), scale, base));
            const __m512 p1 = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(&s[j + 1][16 * v]), scale, base));
            sum = _mm512_add_ps(_mm512_add_ps(sum, p0), p1);
            if (dtype == BF16) {
                const __m512i low = _mm512_cvtepu16_epi32(narrow_bf16(p0)), high = _mm512_cvtepu16_epi32(narrow_bf16(p1));
                _mm512_store_si512(&s[j / 2][16 * v], _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            } else {
                _mm512_store_ps(&s[j][16 * v], p0);
                _mm512_store_ps(&s[j + 1][16 * v], p1);
            }
        }
        if (j < num_keys) {
            const __m512 p = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(&s[j][16 * v]), scale, base));
            sum = _mm512_add_ps(sum, p);
            if (dtype == BF16) _mm512_store_si512(&s[j / 2][16 * v], _mm512_cvtepu16_epi32(narrow_bf16(p)));
            else _mm512_store_ps(&s[j][16 * v], p);
        }
        _mm512_store_ps(sub->sum + 16 * v, sum);
    }
}

/* o[d][row] = o * rescale + sum over keys of v[key][d] * p[key][row], for eight d at a time. For bfloat16 v holds pairs
 * of keys, as pack_values laid them. */
INLINE void add_values(const Dtype dtype, const int NV, const Sub *sub, int num_keys, const void *const *v, int64_t head_dim,
                       const Keys *next, float (*p)[SUB_ROWS]) {
    const int steps = dtype == BF16 ? (num_keys + 1) / 2 : num_keys;
    const int64_t row_bytes = head_dim * (dtype == BF16 ? 2 : 4);
    for (int64_t d = 0; d < head_dim; d += 8) {
        __m512 sum[8][3];
        if (next) prefetch_rows(next->v, d * TILE_KEYS / head_dim, (d + 8) * TILE_KEYS / head_dim, row_bytes);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
#pragma GCC unroll 3
            for (int n = 0; n < NV; n++)
                sum[i][n] = _mm512_mul_ps(_mm512_load_ps(sub->o + (d + i) * SUB_ROWS + 16 * n),
                                          _mm512_load_ps(sub->rescale + 16 * n));
        for (int j = 0; j < steps; j++) {
            const char *value = (const char *)v[j] + 4 * d;
            __m512 rows[3];
#pragma GCC unroll 3
            for (int n = 0; n < NV; n++) rows[n] = _mm512_load_ps(&p[j][16 * n]);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const __m512 element = broadcast(value + 4 * i);
#pragma GCC unroll 3
                for (int n = 0; n < NV; n++)
                    sum[i][n] = dtype == BF16 ? _mm512_dpbf16_ps(sum[i][n], (__m512bh)element, (__m512bh)rows[n])
                                              : _mm512_fmadd_ps(element, rows[n], sum[i][n]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
#pragma GCC unroll 3
            for (int n = 0; n < NV; n++) _mm512_store_ps(sub->o + (d + i) * SUB_ROWS + 16 * n, sum[i][n]);
    }
}

/* The same two steps for up to eight rows, as a decoding sequence has: on a core that splits 512-bit operations in two,
 * half the width takes half the time. Each lane does what it does above, so the bits agree. */
INLINE __m256 multiply_add8(const Dtype dtype, __m256 sum, const void *element, __m256 rows) {
    const __m256 all = _mm256_castsi256_ps(_mm256_set1_epi32(*(const int32_t *)element));
    return dtype == BF16 ? _mm256_dpbf16_ps(sum, (__m256bh)all, (__m256bh)rows) : _mm256_fmadd_ps(all, rows, sum);
}

INLINE void scores8(const Dtype dtype, const Keys *keys, const float *q, int64_t head_dim, const Keys *next,
                    float (*s)[SUB_ROWS]) {
    const int64_t units = dtype == BF16 ? head_dim / 2 : head_dim;
    for (int j = 0; j < keys->num_keys; j += 8) {
        __m256 sum[8];
        const char *k[8];
        if (next) prefetch_rows(next->k, j, j + 8, 4 * units);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            k[i] = keys->k[j + i];
            sum[i] = _mm256_setzero_ps();
        }
        for (int64_t u = 0; u < units; u++) {
            const __m256 rows = _mm256_load_ps(q + u * SUB_ROWS);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) sum[i] = multiply_add8(dtype, sum[i], k[i] + 4 * u, rows);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) _mm256_store_ps(s[j + i], sum[i]);
    }
}

INLINE void add_values8(const Dtype dtype, const Sub *sub, int num_keys, const void *const *v, int64_t head_dim,
                        const Keys *next, float (*p)[SUB_ROWS]) {
    const int steps = dtype == BF16 ? (num_keys + 1) / 2 : num_keys;
    const __m256 rescale = _mm256_load_ps(sub->rescale);
    const int64_t row_bytes = head_dim * (dtype == BF16 ? 2 : 4);
    for (int64_t d = 0; d < head_dim; d += 8) {
        __m256 sum[8];
        if (next) prefetch_rows(next->v, d * TILE_KEYS / head_dim, (d + 8) * TILE_KEYS / head_dim, row_bytes);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) sum[i] = _mm256_mul_ps(_mm256_load_ps(sub->o + (d + i) * SUB_ROWS), rescale);
        for (int j = 0; j < steps; j++) {
            const char *value = (const char *)v[j] + 4 * d;
            const __m256 rows = _mm256_load_ps(p[j]);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) sum[i] = multiply_add8(dtype, sum[i], value + 4 * i, rows);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) _mm256_store_ps(sub->o + (d + i) * SUB_ROWS, sum[i]);
    }
}

/* bfloat16 values of keys 2i and 2i + 1 side by side, so that one multiply-add takes both. */
static void pack_values(const Keys *keys, int64_t head_dim, float *to, const void **rows) {
    for (int j = 0; j < keys->num_keys; j += 2, to += head_dim) {
        const uint16_t *even = keys->v[j], *odd = keys->v[j + 1 < keys->num_keys ? j + 1 : j];
        for (int64_t d = 0; d < head_dim; d += 16) {
            const __mmask16 mask = first_lanes(head_dim - d);
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + d));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd + d));
            _mm512_mask_storeu_epi32(to + d, mask, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
        rows[j / 2] = to;
    }
}

/* float16 rows as float32. */
static void widen_rows(const void *const *from, int num_keys, int64_t head_dim, float *to, const void **rows) {
    for (int j = 0; j < num_keys; j++, to += head_dim) {
        for (int64_t d = 0; d < head_dim; d += 16) {
            const __mmask16 mask = first_lanes(head_dim - d);
            _mm512_mask_storeu_ps(to + d, mask, load_masked(F16, from[j], d, mask));
        }
        rows[j] = to;
    }
}
