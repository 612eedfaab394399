/* Rotary embedding of queries and keys, and the write of keys and values into their pages, token by token. */
#include "cpu.h"
#if HAVE_KERNELS
KERNEL_FILE
#include <string.h>

#include "elementwise.h"
#include "vector.h"

/* One head: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) for the halves of the first rope_dim elements. */
INLINE void rotate(const Dtype dtype, const Rope *op, const char *x, char *y, const float *cos_sin) {
    const int64_t size = (int64_t)size_of(dtype), half = op->rope_dim / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = first_lanes(half - i);
        const __m512 cos = _mm512_maskz_loadu_ps(mask, cos_sin + i), sin = _mm512_maskz_loadu_ps(mask, cos_sin + half + i);
        const __m512 x1 = load_masked(dtype, x, i, mask), x2 = load_masked(dtype, x, half + i, mask);
        store_masked(dtype, y, i, mask, _mm512_fmsub_ps(x1, cos, _mm512_mul_ps(x2, sin)));
        store_masked(dtype, y, half + i, mask, _mm512_fmadd_ps(x2, cos, _mm512_mul_ps(x1, sin)));
    }
    memcpy(y + op->rope_dim * size, x + op->rope_dim * size, (size_t)((op->head_dim - op->rope_dim) * size));
}

INLINE void run(const Dtype dtype, const Rope *op) {
    const int64_t size = (int64_t)size_of(dtype), head_bytes = op->head_dim * size;
    const int64_t num_bytes = op->num_tokens * (op->num_heads + 2 * op->num_kv_heads) * head_bytes;
    const int serial = op->threads == 1 || num_bytes <= SERIAL_CACHED_BYTES;
#pragma omp parallel for schedule(dynamic, 16) num_threads(op->threads) if (!serial)
    for (int64_t t = 0; t < op->num_tokens; t++) {
        const float *cos_sin = op->cos_sin ? op->cos_sin + op->positions[t] * op->rope_dim : NULL;
        if (cos_sin)
            for (int64_t h = 0; h < op->num_heads; h++)
                rotate(dtype, op, (const char *)op->q + t * op->q_stride * size + h * head_bytes,
                       (char *)op->rotated + (t * op->num_heads + h) * head_bytes, cos_sin);
        if (op->slots[t] < 0) continue;
        const int64_t block = op->slots[t] / op->block_size, offset = op->slots[t] % op->block_size;
        for (int64_t g = 0; g < op->num_kv_heads; g++) {
            const int64_t to = ((block * op->num_kv_heads + g) * op->block_size + offset) * head_bytes;
            const char *k = (const char *)op->k + t * op->k_stride * size + g * head_bytes;
            const char *v = (const char *)op->v + t * op->v_stride * size + g * head_bytes;
            if (cos_sin) rotate(dtype, op, k, (char *)op->k_cache + to, cos_sin);
            else memcpy((char *)op->k_cache + to, k, (size_t)head_bytes);
            memcpy((char *)op->v_cache + to, v, (size_t)head_bytes);
        }
    }
}

int rope_kv_write(const Rope *op) {
    for (int64_t t = 0; t < op->num_tokens; t++) {
        if (op->cos_sin && (op->positions[t] < 0 || op->positions[t] >= op->num_positions)) return 0;
        if (op->slots[t] >= op->num_blocks * op->block_size) return 0;
    }
    if (op->dtype == F32) run(F32, op);
    if (op->dtype == BF16) run(BF16, op);
    if (op->dtype == F16) run(F16, op);
    return 1;
}
#endif
