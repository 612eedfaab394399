/* The selective scan of state-space models: sixteen channels at a time with all of their states, token by token.
 *
 * A channel's result is a function of its own past alone, computed in one order: the same bits in any batch and in
 * chunks of any size.
 */
#include "cpu.h"
#if HAVE_KERNELS
KERNEL_FILE
#include "recurrent.h"
#include "vector_math.h"

/* ln(1 + e^x), and x itself from 20 on, as torch has it; small results to full relative precision. */
INLINE __m512 softplus_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 e = exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(LOG2E))), u = _mm512_add_ps(one, e);
    const __m512 m = _mm512_getmant_ps(u, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero); /* u = m 2^k */
    const __m512 k = _mm512_getexp_ps(_mm512_div_ps(u, m));
    const __m512 s = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one)), s2 = _mm512_mul_ps(s, s);
    __m512 p = _mm512_set1_ps(2.0f / 9); /* ln m = 2 artanh s, and |s| is at most 1/5 */
    p = _mm512_fmadd_ps(p, s2, _mm512_set1_ps(2.0f / 7));
    p = _mm512_fmadd_ps(p, s2, _mm512_set1_ps(2.0f / 5));
    p = _mm512_fmadd_ps(p, s2, _mm512_set1_ps(2.0f / 3));
    p = _mm512_fmadd_ps(p, s2, _mm512_set1_ps(2.0f));
    const __m512 log = _mm512_fmadd_ps(p, s, _mm512_mul_ps(k, _mm512_set1_ps(0.6931471805599453f)));
    /* What rounding took from 1 + e: ln(1 + e) = ln(u) e / (u - 1) (Kahan). */
    const __m512 lost = _mm512_sub_ps(u, one);
    const __mmask16 tiny = _mm512_cmp_ps_mask(lost, _mm512_setzero_ps(), _CMP_EQ_OQ);
    const __m512 exact = _mm512_mask_mov_ps(_mm512_div_ps(_mm512_mul_ps(log, e), lost), tiny, e);
    return _mm512_mask_mov_ps(exact, _mm512_cmp_ps_mask(x, _mm512_set1_ps(20.0f), _CMP_GT_OQ), x);
}

/* The rows of one sequence, for sixteen channels. a (states, 16) is A log2(e), h (states, 16) the state. */
INLINE void scan_rows(const Dtype dtype, const Scan *op, const int64_t states, int64_t first, int64_t start, int64_t end,
                      const float *a, float *h) {
    const __mmask16 mask = first_lanes(op->num_channels - first);
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    const __m512 skip = _mm512_maskz_loadu_ps(mask, op->d + first), bias = _mm512_maskz_loadu_ps(mask, op->dt_bias + first);
    float b[MAX_STATES], c[MAX_STATES];
    for (int64_t t = start; t < end; t++) {
        for (int64_t n = 0; n < states; n += 16) {
            const __mmask16 part = first_lanes(states - n);
            _mm512_mask_storeu_ps(b + n, part, load_masked(dtype, op->b, t * op->b_stride + n, part));
            _mm512_mask_storeu_ps(c + n, part, load_masked(dtype, op->c, t * op->c_stride + n, part));
        }
        const __m512 x = load_masked(dtype, op->x, t * op->x_stride + first, mask);
        const __m512 step = softplus_of(_mm512_add_ps(load_masked(dtype, op->dt, t * op->dt_stride + first, mask), bias));
        const __m512 driven = _mm512_mul_ps(step, x);
        __m512 sums[2] = {_mm512_mul_ps(skip, x), zero};
#pragma GCC unroll 4
        for (int64_t n = 0; n < states; n++) {
            const __m512 decay = exp2_of(_mm512_mul_ps(step, _mm512_loadu_ps(a + 16 * n)));
            const __m512 input = _mm512_mul_ps(driven, _mm512_set1_ps(b[n]));
            const __m512 next = _mm512_fmadd_ps(decay, _mm512_loadu_ps(h + 16 * n), input);
            _mm512_storeu_ps(h + 16 * n, next);
            sums[n % 2] = _mm512_fmadd_ps(next, _mm512_set1_ps(c[n]), sums[n % 2]);
        }
        const __m512 z = load_masked(dtype, op->z, t * op->z_stride + first, mask);
        const __m512 gate = _mm512_div_ps(z, _mm512_add_ps(one, exp2_of(_mm512_mul_ps(z, _mm512_set1_ps(-LOG2E)))));
        const __m512 y = _mm512_mul_ps(_mm512_add_ps(sums[0], sums[1]), gate);
        store_masked(dtype, op->out, t * op->num_channels + first, mask, y);
    }
}

INLINE void run(const Dtype dtype, const Scan *op, const int64_t states) {
    const int64_t channels = op->num_channels, blocks = (channels + 15) / 16;
    const int serial = op->threads == 1 || op->rows.num_tokens * channels * states * 4 <= SERIAL_CACHED_BYTES;
#pragma omp parallel for schedule(dynamic, 1) num_threads(op->threads) if (!serial)
    for (int64_t block = 0; block < blocks; block++) { /* all sequences, so that A is turned once */
        const int64_t first = 16 * block;
        const __mmask16 mask = first_lanes(channels - first);
        float a[16 * MAX_STATES], h[16 * MAX_STATES];
        const __m512i lanes = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                                 _mm512_set1_epi32((int)states));
        for (int64_t n = 0; n < states; n++) {
            const float *column = op->a + first * states + n;
            const __m512 values = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, lanes, column, 4);
            _mm512_storeu_ps(a + 16 * n, _mm512_mul_ps(values, _mm512_set1_ps(LOG2E)));
        }
        for (int64_t r = 0; r < op->rows.num_seqs; r++) {
            const int64_t start = op->rows.query_start[r], end = op->rows.query_start[r + 1];
            if (start == end) continue;
            float *state = op->state + op->rows.slots[r] * states * channels + first;
            const __mmask16 kept = end - start == op->rows.seq_lens[r] ? 0 : mask;
            for (int64_t n = 0; n < states; n++)
                _mm512_storeu_ps(h + 16 * n, _mm512_maskz_loadu_ps(kept, state + n * channels));
            scan_rows(dtype, op, states, first, start, end, a, h);
            for (int64_t n = 0; n < states; n++)
                _mm512_mask_storeu_ps(state + n * channels, mask, _mm512_loadu_ps(h + 16 * n));
        }
    }
}

INLINE void run_states(const Dtype dtype, const Scan *op) {
    if (op->num_states == 16) run(dtype, op, 16);
    else run(dtype, op, op->num_states);
}

int selective_scan(const Scan *op) {
    if (!ragged_is_valid(&op->rows)) return 0;
    if (op->dtype == F32) run_states(F32, op);
    if (op->dtype == BF16) run_states(BF16, op);
    if (op->dtype == F16) run_states(F16, op);
    return 1;
}
#endif
