/* linear for more tokens, where arithmetic sets the pace.
 *
 * x is packed once into panels of 16, 32 or 48 tokens with the tokens side by side:
 *
 *     panel[u][token]     u counts 32-bit units along Din: one float32, or two bfloat16
 *
 * so that a lane is a token. A tile of NR rows x NV vectors then needs, for each unit, NV loads and NR broadcasts of a
 * weight straight from W, and no sum across lanes ever. W is never repacked: a call may come with any slice of it. A few
 * tokens that would fill a small part of a vector are left to linear_dot, row by row while the rows are in the cache.
 */
#include "cpu.h"
#if HAVE_KERNELS
KERNEL_FILE
#include <stdlib.h>
#include <string.h>

#include "linear.h"
#include "vector.h"

enum {
    MAX_TOKENS = 48,  /* tokens in a panel */
    MAX_REST = 10,    /* tokens past a multiple of 16 that cost less one by one than as a vector of 16 */
    CHUNK = 48,       /* rows of W that a thread takes at a time; its sums live on the stack */
};

/* Rows of a tile for 1, 2 and 3 vectors of tokens: 24 sums, which hides the latency and leaves registers for x. */
#define TILE_ROWS(nv) ((nv) == 1 ? 24 : (nv) == 2 ? 12 : 8)

INLINE __m512 broadcast(const char *p) { return _mm512_castsi512_ps(_mm512_set1_epi32(*(const int32_t *)p)); }

INLINE __m512 multiply_add(const Dtype dtype, __m512 sum, __m512 w, __m512 x) {
    return dtype == F32 ? _mm512_fmadd_ps(w, x, sum) : _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}

/* NR rows from w on, row_bytes apart, times a panel; ahead: bytes to what is wanted next. */
INLINE void tile(const Dtype dtype, const int NR, const int NV, const char *w, int64_t row_bytes, const float *panel,
                 int64_t din, int64_t ahead, float (*c)[MAX_TOKENS]) {
    __m512 sum[24][3]; /* of constant size, so that the compiler keeps it in registers */
#pragma GCC unroll 24
    for (int r = 0; r < NR; r++)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) sum[r][v] = _mm512_setzero_ps();
    const int64_t units = dtype == F32 ? din : din / 2;
#define STEP_OF(weight)                                                           \
    do {                                                                          \
        __m512 x[3];                                                              \
        _Pragma("GCC unroll 3") for (int v = 0; v < NV; v++)                      \
            x[v] = _mm512_loadu_ps(panel + 16 * v);                               \
        _Pragma("GCC unroll 24") for (int r = 0; r < NR; r++) {                   \
            __m512 weights = weight;                                              \
            _Pragma("GCC unroll 3") for (int v = 0; v < NV; v++)                  \
                sum[r][v] = multiply_add(dtype, sum[r][v], weights, x[v]);        \
        }                                                                         \
        panel += 16 * NV;                                                         \
    } while (0)
    for (int64_t u = 0; u < units;) {
#pragma GCC unroll 24
        for (int r = 0; r < NR; r++) _mm_prefetch(w + r * row_bytes + 4 * u + ahead, _MM_HINT_T0);
        const int64_t line_end = min64(units, u + 16);
        for (; u < line_end; u++) STEP_OF(broadcast(w + r * row_bytes + 4 * u));
    }
    if (dtype == BF16 && din % 2) /* the upper half would be another row's */
        STEP_OF(_mm512_castsi512_ps(_mm512_set1_epi32(*(const uint16_t *)(w + r * row_bytes + 4 * units))));
#undef STEP_OF
#pragma GCC unroll 24
    for (int r = 0; r < NR; r++)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) _mm512_store_ps(&c[r][16 * v], sum[r][v]);
}

/* num_rows rows of W against one panel, into c. */
INLINE void rows_of_panel(const Dtype dtype, const int NV, const char *w, int64_t row_bytes, const float *panel,
                          int64_t din, int64_t num_rows, float (*c)[MAX_TOKENS]) {
    const int NR = TILE_ROWS(NV);
    int64_t r = 0;
    for (; r + NR <= num_rows; r += NR)
        tile(dtype, NR, NV, w + r * row_bytes, row_bytes, panel, din, NR * row_bytes, c + r);
    for (; r + 4 <= num_rows; r += 4) tile(dtype, 4, NV, w + r * row_bytes, row_bytes, panel, din, 0, c + r);
    for (; r < num_rows; r++) tile(dtype, 1, NV, w + r * row_bytes, row_bytes, panel, din, 0, c + r);
}

#define DEFINE_PANEL(name, dtype, nv)                                                                                  \
    static void name(const char *w, int64_t row_bytes, const float *panel, int64_t din, int64_t num_rows,              \
                     float (*c)[MAX_TOKENS]) {                                                                         \
        rows_of_panel(dtype, nv, w, row_bytes, panel, din, num_rows, c);                                               \
    }
DEFINE_PANEL(panel1_f32, F32, 1)
DEFINE_PANEL(panel2_f32, F32, 2)
DEFINE_PANEL(panel3_f32, F32, 3)
DEFINE_PANEL(panel1_bf16, BF16, 1)
DEFINE_PANEL(panel2_bf16, BF16, 2)
DEFINE_PANEL(panel3_bf16, BF16, 3)

typedef void (*PanelFunction)(const char *, int64_t, const float *, int64_t, int64_t, float (*)[MAX_TOKENS]);
static const PanelFunction panel_functions[2][3] = {{panel1_f32, panel2_f32, panel3_f32},
                                                    {panel1_bf16, panel2_bf16, panel3_bf16}};

typedef struct {
    int64_t num_panels, units; /* units include the half one of an odd Din */
    float *data;
} Packed;

/* Panel p of a number of tokens: first token and vectors. Panels differ by one vector at most. */
static int64_t panel_start(int64_t tokens, int64_t num_panels, int64_t p) {
    int64_t vectors = (tokens + 15) / 16;
    return 16 * (vectors * p / num_panels);
}

/* Sixteen tokens from t0 on into lanes of a panel nv vectors wide; tokens past the last are zeros. */
static void pack16(const Linear *op, int64_t t0, int nv, float *panel, int64_t units) {
    const int64_t per_unit = op->dtype == F32 ? 1 : 2;
    const char *x = op->x;
    const int64_t size = (int64_t)size_of(op->dtype);
    for (int64_t u = 0; u < units; u += 16) {
        __m512 rows[16];
        const int64_t left = op->din - u * per_unit; /* elements */
        for (int i = 0; i < 16; i++) {
            const char *from = x + ((t0 + i) * op->ldx + u * per_unit) * size;
            if (t0 + i >= op->tokens) rows[i] = _mm512_setzero_ps();
            else if (op->dtype == F32) rows[i] = _mm512_maskz_loadu_ps(first_lanes(left), from);
            else rows[i] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffff : (1u << left) - 1, from));
        }
        transpose16(rows);
        for (int64_t i = 0; i < min64(16, units - u); i++) _mm512_store_ps(panel + (u + i) * 16 * nv, rows[i]);
    }
}

/* Sums of a chunk, rows x tokens, become y, tokens x rows: bias added in float32, rounded once. */
INLINE void finish(const Dtype dtype, const Linear *op, float (*c)[MAX_TOKENS], int64_t row, int64_t num_rows,
                   int64_t t0, int64_t num_tokens) {
    for (int64_t r = 0; r < num_rows; r += 16) {
        const __mmask16 mask = first_lanes(num_rows - r);
        const __m512 bias = op->bias ? load_masked(dtype, op->bias, row + r, mask) : _mm512_setzero_ps();
        for (int64_t t = 0; t < num_tokens; t += 16) {
            __m512 rows[16];
            for (int i = 0; i < 16; i++) rows[i] = _mm512_load_ps(&c[r + i][t]);
            transpose16(rows);
            for (int64_t i = 0; i < min64(16, num_tokens - t); i++)
                store_masked(dtype, op->y, (t0 + t + i) * op->ldy + row + r, mask, _mm512_add_ps(rows[i], bias));
        }
    }
}

static void chunk_of_rows(const Linear *op, const Linear *rest, const Packed *x, int64_t row, int64_t num_rows) {
    _Alignas(64) float c[CHUNK][MAX_TOKENS];
    const int64_t row_bytes = op->ldw * (int64_t)size_of(op->dtype);
    const char *w = (const char *)op->w + row * row_bytes;
    for (int64_t p = 0; p < x->num_panels; p++) {
        const int64_t t0 = panel_start(op->tokens, x->num_panels, p);
        const int64_t t1 = panel_start(op->tokens, x->num_panels, p + 1);
        panel_functions[op->dtype][(t1 - t0) / 16 - 1](w, row_bytes, x->data + t0 * x->units, op->din, num_rows, c);
        if (op->dtype == F32) finish(F32, op, c, row, num_rows, t0, min64(t1, op->tokens) - t0);
        else finish(BF16, op, c, row, num_rows, t0, min64(t1, op->tokens) - t0);
    }
    if (rest->tokens) linear_dot_rows(rest, row, row + num_rows);
}

int linear_panel(const Linear *all) {
    const int64_t size = (int64_t)size_of(all->dtype), over = all->tokens % 16;
    Linear main = *all, rest = *all;
    const Linear *op = &main;
    rest.tokens = all->tokens > 16 && over <= MAX_REST ? over : 0;
    main.tokens -= rest.tokens;
    rest.x = (const char *)all->x + main.tokens * all->ldx * size;
    rest.y = (char *)all->y + main.tokens * all->ldy * size;
    const int64_t vectors = (op->tokens + 15) / 16;
    Packed x = {.num_panels = (vectors + 2) / 3, .units = op->dtype == F32 ? op->din : (op->din + 1) / 2};
    x.data = aligned_alloc(64, (size_t)(vectors * x.units * 64 + 64));
    if (!x.data) return 0;
    int64_t chunk = min64(CHUNK, max64(16, op->dout / (op->threads * 3) / 16 * 16));
    const int64_t num_chunks = (op->dout + chunk - 1) / chunk;
    const int serial = op->threads == 1 || op->dout * op->din * op->tokens <= SERIAL_BYTES * 16;
#pragma omp parallel num_threads(op->threads) if (!serial)
    {
#pragma omp for schedule(static)
        for (int64_t v = 0; v < vectors; v++) {
            int64_t p = 0;
            while (panel_start(op->tokens, x.num_panels, p + 1) <= 16 * v) p++;
            const int64_t t0 = panel_start(op->tokens, x.num_panels, p);
            const int nv = (int)(panel_start(op->tokens, x.num_panels, p + 1) - t0) / 16;
            pack16(op, 16 * v, nv, x.data + t0 * x.units + (16 * v - t0), x.units);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < num_chunks; i++)
            chunk_of_rows(op, &rest, &x, i * chunk, min64(chunk, op->dout - i * chunk));
    }
    free(x.data);
    return 1;
}
#endif
