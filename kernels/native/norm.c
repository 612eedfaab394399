/* RMSNorm and LayerNorm, with the residual add before them where there is one: one row at a time, while it is in cache. */
#include "cpu.h"
#if HAVE_KERNELS
KERNEL_FILE
#include <math.h>

#include "elementwise.h"
#include "vector.h"

enum { WIDE = 4 }; /* sums that run side by side, to hide the latency of an addition */

INLINE float total(const __m512 sums[WIDE]) {
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

/* Elements i.. of the row; when there is a residual, their sum goes there, rounded as torch would, and is the row. */
INLINE __m512 load_added(const Dtype dtype, const void *x, void *residual, int64_t i, __mmask16 mask) {
    __m512 value = load_masked(dtype, x, i, mask);
    if (residual) {
        value = round_to(dtype, _mm512_add_ps(value, load_masked(dtype, residual, i, mask)));
        store_masked(dtype, residual, i, mask, value);
    }
    return value;
}

INLINE void rms_row(const Dtype dtype, const Norm *op, const void *x, void *residual, void *y) {
    __m512 squares[WIDE] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = 0; i < op->size; i += 16 * WIDE)
#pragma GCC unroll 4
        for (int w = 0; w < WIDE; w++) {
            const int64_t at = i + 16 * w;
            const __m512 value = load_added(dtype, x, residual, at, first_lanes(op->size - at));
            squares[w] = _mm512_fmadd_ps(value, value, squares[w]);
        }
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(total(squares) / (float)op->size + op->eps));
    const void *row = residual ? residual : x;
    for (int64_t i = 0; i < op->size; i += 16) {
        const __mmask16 mask = first_lanes(op->size - i);
        /* Rounded before the weight, as LlamaRMSNorm does. */
        const __m512 normed = round_to(dtype, _mm512_mul_ps(load_masked(dtype, row, i, mask), scale));
        store_masked(dtype, y, i, mask, _mm512_mul_ps(normed, load_masked(dtype, op->weight, i, mask)));
    }
}

INLINE void layer_row(const Dtype dtype, const Norm *op, const void *x, void *residual, void *y) {
    const __m512 zero = _mm512_setzero_ps();
    __m512 sums[WIDE] = {zero, zero, zero, zero}, squares[WIDE] = {zero, zero, zero, zero};
    for (int64_t i = 0; i < op->size; i += 16 * WIDE)
#pragma GCC unroll 4
        for (int w = 0; w < WIDE; w++) {
            const int64_t at = i + 16 * w;
            sums[w] = _mm512_add_ps(sums[w], load_added(dtype, x, residual, at, first_lanes(op->size - at)));
        }
    const void *row = residual ? residual : x;
    const __m512 mean = _mm512_set1_ps(total(sums) / (float)op->size);
    for (int64_t i = 0; i < op->size; i += 16 * WIDE) /* a second look: squares minus the squared mean would cancel */
#pragma GCC unroll 4
        for (int w = 0; w < WIDE; w++) {
            const int64_t at = i + 16 * w;
            const __mmask16 mask = first_lanes(op->size - at);
            const __m512 centred = _mm512_maskz_sub_ps(mask, load_masked(dtype, row, at, mask), mean);
            squares[w] = _mm512_fmadd_ps(centred, centred, squares[w]);
        }
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(total(squares) / (float)op->size + op->eps));
    for (int64_t i = 0; i < op->size; i += 16) {
        const __mmask16 mask = first_lanes(op->size - i);
        __m512 value = _mm512_mul_ps(_mm512_sub_ps(load_masked(dtype, row, i, mask), mean), scale);
        if (op->weight) value = _mm512_mul_ps(value, load_masked(dtype, op->weight, i, mask));
        if (op->bias) value = _mm512_add_ps(value, load_masked(dtype, op->bias, i, mask));
        store_masked(dtype, y, i, mask, value);
    }
}

INLINE void rows(const Dtype dtype, const Norm *op, const int rms) {
    const int64_t size = (int64_t)size_of(dtype);
    const int serial = op->threads == 1 || op->rows * op->size * size <= SERIAL_CACHED_BYTES;
#pragma omp parallel for schedule(dynamic, 16) num_threads(op->threads) if (!serial)
    for (int64_t i = 0; i < op->rows; i++) {
        const char *x = (const char *)op->x + (i / op->inner * op->outer_stride + i % op->inner * op->inner_stride) * size;
        char *residual = op->residual ? (char *)op->residual + i * op->size * size : NULL;
        char *y = (char *)op->y + i * op->size * size;
        if (rms) rms_row(dtype, op, x, residual, y);
        else layer_row(dtype, op, x, residual, y);
    }
}

void rms_norm(const Norm *op) {
    if (op->dtype == F32) rows(F32, op, 1);
    if (op->dtype == BF16) rows(BF16, op, 1);
    if (op->dtype == F16) rows(F16, op, 1);
}

void layer_norm(const Norm *op) {
    if (op->dtype == F32) rows(F32, op, 0);
    if (op->dtype == BF16) rows(BF16, op, 0);
    if (op->dtype == F16) rows(F16, op, 0);
}
#endif
