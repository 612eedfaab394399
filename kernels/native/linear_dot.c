/* linear for few tokens, where the memory that W streams from sets the pace.
 *
 * Each weight is read once and used for all tokens of a group while it is in registers; a second group finds the rows in
 * the cache. Each sum runs along Din in the order of its vectors, whatever the number of tokens: a token's result has the
 * same bits in a batch of any size.
 */
#include "cpu.h"
#if HAVE_KERNELS
KERNEL_FILE
#include <stdlib.h>

#include "linear.h"
#include "vector.h"

enum {
    ROWS = 4, GROUP = 6, /* rows and most tokens of a tile: 4 x 6 sums leave 8 registers for weights and x */
    SLAB = 48,           /* tokens that stay in the second-level cache while a chunk of rows passes them */
};

typedef struct {
    int64_t row, token, ldx;
    const void *x;    /* at the first token */
    const char *next; /* rows to prefetch, or NULL */
} Tile;

/* Writes up to four sums of token t: adds the bias in float32, rounds once. */
INLINE void finish(const Linear *op, int64_t row, int64_t t, __mmask16 rows, __m128 sums) {
    __m512 value = _mm512_castps128_ps512(sums);
    if (op->bias) value = _mm512_add_ps(value, load_masked(op->dtype, op->bias, row, rows));
    store_masked(op->dtype, op->y, t * op->ldy + row, rows, value);
}

#define WVECTOR __m512
#define XVECTOR __m512
#define XTYPE float
#define STEP 16
#define LOADX(p) _mm512_loadu_ps(p)
#define LOADX_MASKED(p, n) _mm512_maskz_loadu_ps(first_lanes(n), p)
#define MULTIPLY_ADD(sum, w, x) _mm512_fmadd_ps(w, x, sum)

#define NAME(f) f##_f32
#define WTYPE float
#define LOADW(p) _mm512_loadu_ps(p)
#define LOADW_MASKED(p, n) _mm512_maskz_loadu_ps(first_lanes(n), p)
#include "linear_dot_tile.h"
#undef NAME
#undef WTYPE
#undef LOADW
#undef LOADW_MASKED

/* float16 weights are widened as they come; x was widened before. */
#define NAME(f) f##_f16
#define WTYPE uint16_t
#define LOADW(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define LOADW_MASKED(p, n) load_masked(F16, p, 0, first_lanes(n))
#include "linear_dot_tile.h"
#undef NAME
#undef WTYPE
#undef LOADW
#undef LOADW_MASKED

#undef WVECTOR
#undef XVECTOR
#undef XTYPE
#undef STEP
#undef LOADX
#undef LOADX_MASKED
#undef MULTIPLY_ADD

/* bfloat16: one instruction multiplies 32 pairs and adds neighbours into 16 float32 sums. */
INLINE __mmask32 first_halves(int64_t n) { return n >= 32 ? 0xffffffff : (__mmask32)((1u << n) - 1); }

#define NAME(f) f##_bf16
#define WVECTOR __m512bh
#define XVECTOR __m512bh
#define XTYPE uint16_t
#define WTYPE uint16_t
#define STEP 32
#define LOADW(p) ((__m512bh)_mm512_loadu_si512(p))
#define LOADX(p) ((__m512bh)_mm512_loadu_si512(p))
#define LOADW_MASKED(p, n) ((__m512bh)_mm512_maskz_loadu_epi16(first_halves(n), p))
#define LOADX_MASKED(p, n) ((__m512bh)_mm512_maskz_loadu_epi16(first_halves(n), p))
#define MULTIPLY_ADD(sum, w, x) _mm512_dpbf16_ps(sum, w, x)
#include "linear_dot_tile.h"

/* float16 tokens as float32, so that a tile widens only the weights; other formats as they are. NULL without memory. */
static const void *widen_x(const Linear *op, int64_t *ldx) {
    *ldx = op->ldx;
    if (op->dtype != F16) return op->x;
    float *x = malloc(sizeof(float) * (size_t)(op->tokens * op->din) + 1);
    *ldx = op->din;
    for (int64_t t = 0; x && t < op->tokens; t++)
        for (int64_t i = 0; i < op->din; i += 16) {
            const __mmask16 mask = first_lanes(op->din - i);
            _mm512_mask_storeu_ps(x + t * op->din + i, mask, load_masked(F16, op->x, t * op->ldx + i, mask));
        }
    return x;
}

static void rows_of_chunk(const Linear *op, const char *x, int64_t ldx, int64_t first, int64_t last) {
    void (*const *tiles)(const Linear *, const Tile *) =
        op->dtype == F32 ? tiles_f32 : op->dtype == BF16 ? tiles_bf16 : tiles_f16;
    const int64_t row_bytes = op->ldw * (int64_t)size_of(op->dtype), x_row_bytes = ldx * (op->dtype == BF16 ? 2 : 4);
    for (int64_t slab = 0; slab < op->tokens; slab += SLAB)
        for (int64_t row = first; row < last; row += ROWS)
            for (int64_t t = slab; t < min64(op->tokens, slab + SLAB); t += GROUP) {
                /* Full groups and a rest are faster than even ones. The first asks for the tile after the next. */
                const Tile at = {.row = row, .token = t, .ldx = ldx, .x = x + t * x_row_bytes,
                                 .next = t == 0 ? (const char *)op->w + (row + 2 * ROWS) * row_bytes : NULL};
                tiles[min64(GROUP, op->tokens - t) - 1](op, &at);
            }
}

void linear_dot_rows(const Linear *op, int64_t first, int64_t last) { rows_of_chunk(op, op->x, op->ldx, first, last); }

int linear_dot(const Linear *op) {
    int64_t ldx;
    const void *x = widen_x(op, &ldx);
    if (!x) return 0;
    /* Enough rows at a time that threads seldom ask for more, few enough that they end together. */
    const int64_t row_bytes = max64(1, op->din * (int64_t)size_of(op->dtype));
    const int64_t chunk = max64(1, min64((1 << 17) / row_bytes, op->dout / (op->threads * 4)) / ROWS) * ROWS;
    const int64_t num_chunks = (op->dout + chunk - 1) / chunk;
    const int serial = op->threads == 1 || op->dout * row_bytes <= SERIAL_BYTES;
    /* Chunks are handed out as threads ask for them: a thread that the system holds up delays one chunk. */
#pragma omp parallel for schedule(dynamic, 1) num_threads(op->threads) if (!serial)
    for (int64_t c = 0; c < num_chunks; c++)
        rows_of_chunk(op, x, ldx, c * chunk, min64(op->dout, (c + 1) * chunk));
    if (x != op->x) free((void *)x);
    return 1;
}
#endif
