/* Attention over a paged cache: the operands, and what the steps on one tile of keys share. */
#pragma once

#include "cpu.h"

typedef struct {
    Dtype dtype; /* of q, the caches and out */
    const void *q, *k, *v;
    void *out;                                     /* (T, H, K), dense */
    int64_t q_token_stride, q_head_stride;         /* elements, as all strides */
    int64_t block_stride, head_stride, key_stride; /* of both caches */
    const int32_t *block_table, *query_start, *seq_lens;
    int64_t table_stride, table_width, num_tokens, num_seqs, num_heads, num_kv_heads, head_dim, num_blocks, block_size;
    float scale, softcap;        /* softcap 0: none */
    int64_t window;              /* 0: none */
    const float *slopes, *sinks; /* per query head, or NULL */
    int causal, threads;
} Attention;

enum { ATTENTION_DONE = 1, ATTENTION_NO_MEMORY = 0, ATTENTION_BAD_INDEX = -1 };
int paged_attention(const Attention *op);
