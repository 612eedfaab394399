/* What state-space models remember from token to token: the operands of their convolution and of their scan.
 *
 * Sequence r has rows query_start[r] to query_start[r + 1] - 1, the last of its seq_lens[r] tokens. Its memory lies in
 * slot slots[r], and counts as zero where all of its tokens are among the rows.
 */
#pragma once

#include "cpu.h"

typedef struct {
    const int32_t *query_start, *seq_lens;
    const int64_t *slots;
    int64_t num_tokens, num_seqs, num_slots;
} Ragged;

/* Whether rows and slots lie where there is memory. */
static inline int ragged_is_valid(const Ragged *r) {
    if (r->query_start[0] < 0 || r->query_start[r->num_seqs] > r->num_tokens) return 0;
    for (int64_t i = 0; i < r->num_seqs; i++)
        if (r->query_start[i] > r->query_start[i + 1] || r->slots[i] < 0 || r->slots[i] >= r->num_slots) return 0;
    return 1;
}

typedef struct {
    Dtype dtype; /* of everything */
    const void *x, *weight, *bias; /* (T, C), (C, taps), (C) or NULL */
    void *window, *out;            /* (slots, taps - 1, C), (T, C) */
    int64_t x_stride, num_channels, num_taps;
    Ragged rows;
    int threads;
} Conv;

/* 0 where rows or slots are out of range; nothing is written then. */
int causal_conv(const Conv *op);

typedef struct {
    Dtype dtype; /* of x, dt, b, c, z and out */
    const void *x, *dt, *b, *c, *z;                          /* x, dt, z (T, C), b, c (T, N) */
    int64_t x_stride, dt_stride, b_stride, c_stride, z_stride; /* elements from token to token */
    const float *a, *d, *dt_bias;                            /* (C, N), (C), (C) */
    float *state;                                            /* (slots, N, C) */
    void *out;                                               /* (T, C) */
    int64_t num_channels, num_states;
    Ragged rows;
    int threads;
} Scan;

enum { MAX_STATES = 256 };

/* 0 where rows or slots are out of range; nothing is written then. */
int selective_scan(const Scan *op);
