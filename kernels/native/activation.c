/* Activations, alone or as the gate of an MLP, in float32 and in one pass. */
#include "cpu.h"
#if HAVE_KERNELS
KERNEL_FILE
#include "elementwise.h"
#include "vector_math.h"

INLINE __m512 activated(const ActivationName name, __m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    switch (name) {
        case SILU: /* x / (1 + e^-x) */
            return _mm512_div_ps(x, _mm512_add_ps(one, exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2E)))));
        case GELU: {
            const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
            return _mm512_mul_ps(half, _mm512_add_ps(one, erf_of(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)))));
        }
        case GELU_TANH: { /* x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
            const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
            const __m512 u = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
            const __m512 exponent = _mm512_mul_ps(u, _mm512_set1_ps(-2 * 0.7978845608f * LOG2E));
            /* The cube overflows long before x does. */
            return _mm512_div_ps(x, _mm512_add_ps(one, exp2_of(_mm512_min_ps(_mm512_set1_ps(200.0f), exponent))));
        }
        case RELU: return _mm512_max_ps(zero, x); /* NaN where x is: the second operand comes back */
        default: {
            const __m512 positive = _mm512_max_ps(zero, x);
            return _mm512_mul_ps(positive, positive);
        }
    }
}

INLINE void run(const Dtype dtype, const ActivationName name, const Activation *op) {
    const int64_t size = (int64_t)size_of(dtype), blocks = (op->size + 1023) / 1024;
    const int serial = op->threads == 1 || op->rows * op->size * size <= SERIAL_CACHED_BYTES / 2;
    /* Pieces of rows, so that one long row is shared too. */
#pragma omp parallel for schedule(dynamic, 8) num_threads(op->threads) if (!serial)
    for (int64_t piece = 0; piece < op->rows * blocks; piece++) {
        const int64_t row = piece / blocks, first = piece % blocks * 1024;
        const char *gate = (const char *)op->x + row * op->stride * size, *up = gate + op->size * size;
        char *y = (char *)op->y + row * op->size * size;
        for (int64_t i = first; i < min64(op->size, first + 1024); i += 16) {
            const __mmask16 mask = first_lanes(op->size - i);
            __m512 value = activated(name, load_masked(dtype, gate, i, mask));
            if (op->gated) value = _mm512_mul_ps(round_to(dtype, value), load_masked(dtype, up, i, mask));
            store_masked(dtype, y, i, mask, value);
        }
    }
}

INLINE void run_named(const Dtype dtype, const Activation *op) {
    switch (op->name) {
        case SILU: run(dtype, SILU, op); break;
        case GELU: run(dtype, GELU, op); break;
        case GELU_TANH: run(dtype, GELU_TANH, op); break;
        case RELU: run(dtype, RELU, op); break;
        case RELU2: run(dtype, RELU2, op); break;
    }
}

void activate(const Activation *op) {
    if (op->dtype == F32) run_named(F32, op);
    if (op->dtype == BF16) run_named(BF16, op);
    if (op->dtype == F16) run_named(F16, op);
}
#endif
