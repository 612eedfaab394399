/* One number format's tile of linear_dot.c, included once for each with these macros:
 *   NAME(f) the function's name; XTYPE, WTYPE element types; XVECTOR, WVECTOR; STEP elements in a vector;
 *   LOADX, LOADW(p), LOADX_MASKED, LOADW_MASKED(p, n); MULTIPLY_ADD(sum, w, x).
 */

/* ROWS rows of W from `row` on against NT tokens, a constant. All sums stay in registers while both stream by. A row that
 * the matrix lacks repeats the last one. Meanwhile the rows from `next` on are asked for: the hardware's prefetcher
 * follows a row, but starts anew with each. */
INLINE void NAME(tile)(const int NT, const Linear *op, const Tile *at) {
    const int64_t num_rows = min64(ROWS, op->dout - at->row), din = op->din, ldx = at->ldx, row_bytes = op->ldw * sizeof(WTYPE);
    const WTYPE *w[ROWS];
    const XTYPE *x = at->x;
    const char *next = at->next;
    __m512 sum[ROWS][GROUP]; /* of constant size, so that the compiler keeps it in registers */
    WVECTOR wv[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        w[r] = (const WTYPE *)op->w + (at->row + min64(r, num_rows - 1)) * op->ldw;
#pragma GCC unroll 6
        for (int t = 0; t < NT; t++) sum[r][t] = _mm512_setzero_ps();
    }
    int64_t i = 0;
    for (; i + STEP <= din; i += STEP) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) wv[r] = LOADW(w[r] + i);
        if (at->next)
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) _mm_prefetch(next + r * row_bytes, _MM_HINT_T1);
        next += STEP * sizeof(WTYPE);
#pragma GCC unroll 6
        for (int t = 0; t < NT; t++) {
            XVECTOR xv = LOADX(x + t * ldx + i);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sum[r][t] = MULTIPLY_ADD(sum[r][t], wv[r], xv);
        }
    }
    if (i < din) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) wv[r] = LOADW_MASKED(w[r] + i, din - i);
#pragma GCC unroll 6
        for (int t = 0; t < NT; t++) {
            XVECTOR xv = LOADX_MASKED(x + t * ldx + i, din - i);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sum[r][t] = MULTIPLY_ADD(sum[r][t], wv[r], xv);
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < NT; t++)
        finish(op, at->row, at->token + t, (1 << num_rows) - 1, sum_of_four(sum[0][t], sum[1][t], sum[2][t], sum[3][t]));
}

#define TILE(nt) \
    static void NAME(tile##nt)(const Linear *op, const Tile *at) { NAME(tile)(nt, op, at); }
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#undef TILE
static void (*const NAME(tiles)[GROUP])(const Linear *, const Tile *) = {
    NAME(tile1), NAME(tile2), NAME(tile3), NAME(tile4), NAME(tile5), NAME(tile6)};
