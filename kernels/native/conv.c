/* The causal convolution of state-space models, with its activation: sixteen channels at a time, sequence by sequence. */
#include "cpu.h"
#if HAVE_KERNELS
KERNEL_FILE
#include "recurrent.h"
#include "vector_math.h"

typedef struct {
    const char *x, *window; /* of the sequence, at the first of the sixteen channels; window NULL: zeros */
    int64_t x_bytes, window_bytes;
    __mmask16 mask;
} Input;

/* Token i of the window and the rows after it. */
INLINE __m512 input(const Dtype dtype, const Input *in, int64_t i, int64_t before) {
    if (i >= before) return load_masked(dtype, in->x + (i - before) * in->x_bytes, 0, in->mask);
    return in->window ? load_masked(dtype, in->window + i * in->window_bytes, 0, in->mask) : _mm512_setzero_ps();
}

INLINE void run(const Dtype dtype, const Conv *op, const int64_t taps) {
    const int64_t size = (int64_t)size_of(dtype), channels = op->num_channels, before = taps - 1;
    const int64_t num_bytes = op->rows.num_tokens * channels * size;
    const int serial = op->threads == 1 || num_bytes <= SERIAL_CACHED_BYTES / 2;
#pragma omp parallel for schedule(dynamic, 2) num_threads(op->threads) if (!serial)
    for (int64_t first = 0; first < channels; first += 16) {
        const __mmask16 mask = first_lanes(channels - first);
        float weight[taps][16];
        for (int lane = 0; lane < 16; lane++)
            for (int64_t tap = 0; tap < taps; tap++) {
                const int64_t channel = min64(first + lane, channels - 1);
                weight[tap][lane] = _mm512_cvtss_f32(load_masked(dtype, op->weight, channel * taps + tap, 1));
            }
        const __m512 bias = op->bias ? load_masked(dtype, op->bias, first, mask) : _mm512_setzero_ps();
        for (int64_t r = 0; r < op->rows.num_seqs; r++) {
            const int64_t start = op->rows.query_start[r], count = op->rows.query_start[r + 1] - start;
            if (count == 0) continue;
            char *window = (char *)op->window + (op->rows.slots[r] * before * channels + first) * size;
            const Input in = {.x = (const char *)op->x + (start * op->x_stride + first) * size,
                              .window = count == op->rows.seq_lens[r] ? NULL : window,
                              .x_bytes = op->x_stride * size, .window_bytes = channels * size, .mask = mask};
            char *out = (char *)op->out + (start * channels + first) * size;
            for (int64_t t = 0; t < count; t++, out += channels * size) {
                __m512 y = bias;
                for (int64_t tap = 0; tap < taps; tap++)
                    y = _mm512_fmadd_ps(input(dtype, &in, t + tap, before), _mm512_loadu_ps(weight[tap]), y);
                const __m512 e = exp2_of(_mm512_mul_ps(y, _mm512_set1_ps(-LOG2E)));
                store_masked(dtype, out, 0, mask, _mm512_div_ps(y, _mm512_add_ps(_mm512_set1_ps(1.0f), e)));
            }
            /* In this order a short sequence reads what is left of the old window before it is overwritten. */
            for (int64_t i = 0; i < before; i++)
                store_masked(dtype, window + i * channels * size, 0, mask, input(dtype, &in, count + i, before));
        }
    }
}

INLINE void run_taps(const Dtype dtype, const Conv *op) {
    if (op->num_taps == 4) run(dtype, op, 4);
    else run(dtype, op, op->num_taps);
}

int causal_conv(const Conv *op) {
    if (!ragged_is_valid(&op->rows)) return 0;
    if (op->dtype == F32) run_taps(F32, op);
    if (op->dtype == BF16) run_taps(BF16, op);
    if (op->dtype == F16) run_taps(F16, op);
    return 1;
}
#endif
