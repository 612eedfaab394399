/* What runs between the products: norms, activations, rotary embedding with the cache write. */
#pragma once

#include "cpu.h"

typedef struct {
    Dtype dtype;
    const void *x, *weight, *bias; /* weight, bias may be NULL */
    void *residual, *y;            /* residual: NULL, or (rows, size) that x is added to; y dense */
    /* Row i of x begins at i / inner * outer_stride + i % inner * inner_stride. */
    int64_t rows, inner, outer_stride, inner_stride, size;
    float eps;
    int threads;
} Norm;

void rms_norm(const Norm *op);
void layer_norm(const Norm *op);

typedef enum { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4 } ActivationName;

typedef struct {
    Dtype dtype;
    ActivationName name;
    const void *x; /* (rows, size), or (rows, 2 size) when gated */
    void *y;       /* (rows, size) */
    int64_t rows, size, stride; /* stride: elements from row to row of x */
    int gated, threads;
} Activation;

void activate(const Activation *op);

typedef struct {
    Dtype dtype;
    const void *q, *k, *v;
    void *rotated, *k_cache, *v_cache; /* rotated (T, H, K) dense; not written with cos_sin NULL */
    const float *cos_sin;              /* (num_positions, rope_dim) or NULL */
    const int64_t *positions, *slots;
    int64_t q_stride, k_stride, v_stride; /* elements from token to token; heads lie dense */
    int64_t num_tokens, num_heads, num_kv_heads, head_dim, rope_dim, num_positions, num_blocks, block_size;
    int threads;
} Rope;

/* 0 where a position or a slot is out of range; nothing is written then. */
int rope_kv_write(const Rope *op);
