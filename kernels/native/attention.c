/* Attention over a paged cache for a ragged batch: decode rows and prompt rows in one call.
 *
 * The work is cut into items: one sequence, one kv head, and up to 192 of its rows, where the query heads that share the
 * kv head are rows too, so that a key is loaded once for all of them. Items go to threads, the largest first.
 */
#include "cpu.h"
#if HAVE_KERNELS
KERNEL_FILE
#include <stdlib.h>

#include "attention.h"
#include "attention_tile.h"

typedef struct {
    int32_t seq, kv_head;
    int64_t first_row, num_rows, cost;
} Item;

static _Thread_local Scratch scratch;

/* Pointers to keys and values of a tile; 0 where the block table leads outside the cache. */
static int find_keys(const Attention *op, const Item *item, int64_t start, int64_t first, int64_t end, Keys *keys) {
    const int64_t size = (int64_t)size_of(op->dtype), step = op->key_stride * size;
    const int32_t *table = op->block_table + item->seq * op->table_stride;
    keys->start = (int32_t)start;
    keys->num_keys = (int)min64(TILE_KEYS, end - start);
    const int low = (int)max64(0, first - start), high = keys->num_keys;
    int64_t page = (start + low) / op->block_size, offset = (start + low) % op->block_size;
    for (int j = low; j < high; page++, offset = 0) { /* page by page: a division for each key would show */
        if (page >= op->table_width || table[page] < 0 || table[page] >= op->num_blocks) return 0;
        const int64_t base = table[page] * op->block_stride + item->kv_head * op->head_stride;
        const int64_t at = base * size + offset * step;
        const char *k = (const char *)op->k + at, *v = (const char *)op->v + at;
        for (; offset < op->block_size && j < high; offset++, j++, k += step, v += step) {
            keys->k[j] = k;
            keys->v[j] = v;
        }
    }
    for (int j = 0; j < low; j++) keys->k[j] = keys->k[low], keys->v[j] = keys->v[low];
    for (int j = high; j < TILE_KEYS; j++) keys->k[j] = keys->k[high - 1], keys->v[j] = keys->v[high - 1];
    return 1;
}

/* Rows of the item from `row` on: their queries transposed, and what each of them may see. */
static void begin_sub(const Attention *op, const Item *item, int64_t row, int64_t num_rows, Sub *sub) {
    const int64_t group = op->num_heads / op->num_kv_heads, length = op->seq_lens[item->seq];
    const int64_t t0 = op->query_start[item->seq], before = length - (op->query_start[item->seq + 1] - t0);
    sub->num_rows = (int)num_rows;
    sub->num_vectors = (int)(num_rows + 15) / 16;
    sub->lowest_first = sub->lowest_last = INT32_MAX;
    sub->highest_first = sub->highest_last = -1;
    const char *rows[SUB_ROWS];
    for (int i = 0; i < 16 * sub->num_vectors; i++) {
        const int64_t at = item->first_row + row + min64(i, num_rows - 1), token = at / group;
        const int64_t head = item->kv_head * group + at % group, position = before + token;
        int64_t first = 0, last = op->causal ? position : length - 1;
        if (op->window) {
            first = max64(0, position - op->window + 1);
            last = min64(last, position + op->window - 1);
        }
        const int64_t element = (t0 + token) * op->q_token_stride + head * op->q_head_stride;
        rows[i] = (const char *)op->q + element * (int64_t)size_of(op->dtype);
        sub->position[i] = (int32_t)position;
        sub->first_key[i] = (int32_t)first;
        sub->last_key[i] = (int32_t)last;
        sub->slope[i] = op->slopes ? op->slopes[head] : 0;
        sub->sink[i] = op->sinks ? op->sinks[head] * LOG2E : 0;
        sub->max[i] = -__builtin_inff();
        sub->sum[i] = 0;
        sub->lowest_first = (int32_t)min64(sub->lowest_first, first);
        sub->highest_first = (int32_t)max64(sub->highest_first, first);
        sub->lowest_last = (int32_t)min64(sub->lowest_last, last);
        sub->highest_last = (int32_t)max64(sub->highest_last, last);
    }
    const int64_t per_unit = op->dtype == BF16 ? 2 : 1, units = op->head_dim / per_unit;
    for (int v = 0; v < sub->num_vectors; v++)
        for (int64_t u = 0; u < units; u += 16) {
            __m512 lanes[16];
            const __mmask16 mask = first_lanes(units - u);
            for (int i = 0; i < 16; i++) /* a pair of bfloat16 moves as one float32 would */
                lanes[i] = load_masked(op->dtype == F16 ? F16 : F32, rows[16 * v + i], u, mask);
            transpose16(lanes);
            for (int i = 0; i < min64(16, units - u); i++) _mm512_store_ps(sub->q + (u + i) * SUB_ROWS + 16 * v, lanes[i]);
        }
    for (int64_t d = 0; d < op->head_dim; d++)
        for (int v = 0; v < sub->num_vectors; v++) _mm512_store_ps(sub->o + d * SUB_ROWS + 16 * v, _mm512_setzero_ps());
}

/* One tile of keys for one sub. wide: the format that the tile's rows have by now; NV: vectors of rows, 0 a half one. */
INLINE void run_tile(const Dtype wide, const int NV, const Attention *op, Sub *sub, const Keys *keys,
                     const void *const *values, const Keys *next) {
    if (NV == 0) scores8(wide, keys, sub->q, op->head_dim, next, scratch.s);
    else scores(wide, NV, keys, sub->q, op->head_dim, next, scratch.s);
    /* Which way is taken depends on the call alone; only the mask looks at neighbours, and it changes no bit of others. */
    const int special = op->softcap || op->slopes;
    if (special) adjust_scores(op, sub, keys, scratch.s);
    if (keys->start < sub->highest_first || keys->start + keys->num_keys - 1 > sub->lowest_last)
        mask_scores(sub, keys, scratch.s);
    const float factor = special ? LOG2E : op->scale * LOG2E;
    softmax(wide, sub, keys->num_keys, factor, scratch.s);
    if (NV == 0) add_values8(wide, sub, keys->num_keys, values, op->head_dim, next, scratch.s);
    else add_values(wide, NV, sub, keys->num_keys, values, op->head_dim, next, scratch.s);
}

#define DEFINE_TILE(name, wide, nv)                                                                       \
    static void name(const Attention *op, Sub *sub, const Keys *keys, const void *const *v, const Keys *next) { \
        run_tile(wide, nv, op, sub, keys, v, next);                                                       \
    }
DEFINE_TILE(tile0_f32, F32, 0)
DEFINE_TILE(tile1_f32, F32, 1)
DEFINE_TILE(tile2_f32, F32, 2)
DEFINE_TILE(tile3_f32, F32, 3)
DEFINE_TILE(tile0_bf16, BF16, 0)
DEFINE_TILE(tile1_bf16, BF16, 1)
DEFINE_TILE(tile2_bf16, BF16, 2)
DEFINE_TILE(tile3_bf16, BF16, 3)
static void (*const tile_functions[2][4])(const Attention *, Sub *, const Keys *, const void *const *, const Keys *) = {
    {tile0_f32, tile1_f32, tile2_f32, tile3_f32}, {tile0_bf16, tile1_bf16, tile2_bf16, tile3_bf16}};

/* Divides by the sums and writes the rows. */
static void end_sub(const Attention *op, const Item *item, int64_t row, Sub *sub) {
    const int64_t group = op->num_heads / op->num_kv_heads, t0 = op->query_start[item->seq];
    for (int v = 0; v < sub->num_vectors; v++) {
        __m512 sum = _mm512_load_ps(sub->sum + 16 * v), factor = _mm512_set1_ps(1.0f);
        if (op->sinks) { /* one more key, without a value */
            const __m512 max = _mm512_load_ps(sub->max + 16 * v), sink = _mm512_load_ps(sub->sink + 16 * v);
            const __m512 top = _mm512_max_ps(max, sink);
            factor = exp2_of(_mm512_sub_ps(max, top));
            sum = _mm512_fmadd_ps(sum, factor, exp2_of(_mm512_sub_ps(sink, top)));
        }
        const __mmask16 empty = _mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_EQ_OQ);
        factor = _mm512_mask_div_ps(_mm512_setzero_ps(), (__mmask16)~empty, factor, sum);
        for (int64_t d = 0; d < op->head_dim; d += 16) {
            const __mmask16 mask = first_lanes(op->head_dim - d);
            __m512 lanes[16];
            for (int i = 0; i < 16; i++)
                lanes[i] = d + i < op->head_dim ? _mm512_mul_ps(_mm512_load_ps(sub->o + (d + i) * SUB_ROWS + 16 * v), factor)
                                                : _mm512_setzero_ps();
            transpose16(lanes);
            for (int i = 0; i < min64(16, sub->num_rows - 16 * v); i++) {
                const int64_t at = item->first_row + row + 16 * v + i, token = at / group;
                const int64_t head = item->kv_head * group + at % group;
                store_masked(op->dtype, op->out, ((t0 + token) * op->num_heads + head) * op->head_dim + d, mask, lanes[i]);
            }
        }
    }
}

/* The first keys that an item reads, so that they are on their way when its turn comes; 0 where there are none. */
static int find_first_keys(const Attention *op, const Item *item, Keys *keys) {
    const int64_t group = op->num_heads / op->num_kv_heads, length = op->seq_lens[item->seq];
    const int64_t before = length - (op->query_start[item->seq + 1] - op->query_start[item->seq]);
    const int64_t first = op->window ? max64(0, before + item->first_row / group - op->window + 1) : 0;
    return first < length && find_keys(op, item, first / TILE_KEYS * TILE_KEYS, first, length, keys);
}

/* upcoming: what this thread is likely to have next, or NULL. */
static int run_item(const Attention *op, const Item *item, const Item *upcoming) {
    const int num_subs = (int)((item->num_rows + SUB_ROWS - 1) / SUB_ROWS);
    int64_t first = INT32_MAX, end = 0;
    for (int i = 0; i < num_subs; i++) {
        Sub *sub = &scratch.subs[i];
        sub->q = scratch.q + i * SUB_ROWS * op->head_dim;
        sub->o = scratch.o + i * SUB_ROWS * op->head_dim;
        begin_sub(op, item, i * SUB_ROWS, min64(SUB_ROWS, item->num_rows - i * SUB_ROWS), sub);
        first = min64(first, sub->lowest_first);
        end = max64(end, sub->highest_last + 1);
    }
    Keys tiles[2], *keys = &tiles[0], *next = &tiles[1];
    const int64_t begin = first / TILE_KEYS * TILE_KEYS;
    if (!find_keys(op, item, begin, first, end, keys)) return 0;
    for (int64_t start = begin; start < end; start += TILE_KEYS) {
        int has_next = start + TILE_KEYS < end;
        if (has_next && !find_keys(op, item, start + TILE_KEYS, first, end, next)) return 0;
        if (!has_next && upcoming) has_next = find_first_keys(op, upcoming, next);
        Keys wide = *keys;
        const void *values[TILE_KEYS], *const *v = keys->v;
        if (op->dtype == F16) {
            widen_rows(keys->k, (keys->num_keys + 7) / 8 * 8, op->head_dim, scratch.k_wide, wide.k);
            widen_rows(keys->v, keys->num_keys, op->head_dim, scratch.v_wide, values);
            v = values;
        } else if (op->dtype == BF16) {
            pack_values(keys, op->head_dim, scratch.v_wide, values);
            v = values;
        }
        int first_pass = 1;
        for (int i = 0; i < num_subs; i++) {
            Sub *sub = &scratch.subs[i];
            if (sub->lowest_first >= start + TILE_KEYS || sub->highest_last < start) continue;
            const int width = sub->num_rows <= 8 ? 0 : sub->num_vectors;
            tile_functions[op->dtype == BF16][width](op, sub, &wide, v, first_pass && has_next ? next : NULL);
            first_pass = 0;
        }
        Keys *swap = keys;
        keys = next;
        next = swap;
    }
    for (int i = 0; i < num_subs; i++) end_sub(op, item, i * SUB_ROWS, &scratch.subs[i]);
    return 1;
}

static int larger_first(const void *a, const void *b) {
    const Item *x = a, *y = b;
    return (x->cost < y->cost) - (x->cost > y->cost);
}

int paged_attention(const Attention *op) {
    const int64_t group = op->num_heads / op->num_kv_heads;
    /* Fewer rows for larger heads, so that queries and results of an item stay in the second-level cache. */
    int64_t max_rows = max64(1, min64(MAX_SUBS, ROW_ELEMENTS / op->head_dim / SUB_ROWS)) * SUB_ROWS;
    int64_t total_rows = 0, num_items = 0;
    for (int64_t r = 0; r < op->num_seqs; r++) {
        const int64_t n = op->query_start[r + 1] - op->query_start[r];
        const int cross = !op->causal && !op->window; /* rows that need not be tokens of the sequence they read */
        if (n < 0 || (n > op->seq_lens[r] && !cross) || op->query_start[r + 1] > op->num_tokens || op->query_start[r] < 0)
            return ATTENTION_BAD_INDEX;
        total_rows += n * group * op->num_kv_heads;
    }
    /* Enough items for every thread to have some; a single short prompt would otherwise be one. */
    while (max_rows > SUB_ROWS && total_rows < max_rows * op->threads * 4) max_rows -= SUB_ROWS;
    for (int64_t r = 0; r < op->num_seqs; r++)
        num_items += op->num_kv_heads * (((op->query_start[r + 1] - op->query_start[r]) * group + max_rows - 1) / max_rows);
    if (num_items == 0) return ATTENTION_DONE;
    Item *items = malloc(sizeof(Item) * (size_t)num_items);
    if (!items) return ATTENTION_NO_MEMORY;
    int64_t i = 0, work = 0;
    for (int64_t r = 0; r < op->num_seqs; r++) {
        const int64_t rows = (op->query_start[r + 1] - op->query_start[r]) * group, length = op->seq_lens[r];
        for (int64_t row = 0; row < rows; row += max_rows)
            for (int32_t g = 0; g < op->num_kv_heads; g++) {
                const int64_t n = min64(max_rows, rows - row);
                int64_t keys = op->causal ? length - (rows - row - n) / group : length;
                if (op->window) keys = min64(keys, op->window + n / group + TILE_KEYS);
                const int64_t cost = keys * ((n + 15) / 16);
                items[i] = (Item){.seq = (int32_t)r, .kv_head = g, .first_row = row, .num_rows = n, .cost = cost};
                work += items[i++].cost;
            }
    }
    qsort(items, (size_t)num_items, sizeof(Item), larger_first);
    int bad = 0;
    const int serial = op->threads == 1 || num_items == 1 || work * op->head_dim < 16 * 1024;
#pragma omp parallel for schedule(dynamic, 1) num_threads(op->threads) if (!serial)
    for (int64_t n = 0; n < num_items; n++)
        if (!run_item(op, &items[n], n + op->threads < num_items ? &items[n + op->threads] : NULL)) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
    free(items);
    return bad ? ATTENTION_BAD_INDEX : ATTENTION_DONE;
}
#endif
