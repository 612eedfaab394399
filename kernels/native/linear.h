/* y = x W^T + b: the operands, and the two ways to compute it. */
#pragma once

#include "cpu.h"

typedef struct {
    Dtype dtype;
    const void *x, *w, *bias; /* bias may be NULL */
    void *y;
    int64_t ldx, ldw, ldy; /* elements from row to row */
    int64_t tokens, din, dout;
    int threads;
} Linear;

/* Few tokens: the weights are read once, as they lie, and every sum is a dot product along Din. 0 without memory. */
int linear_dot(const Linear *op);

/* More tokens: lanes are tokens, every weight is broadcast to them.. */
int linear_panel(const Linear *op);

/* Rows first..last of linear_dot, for float32 and bfloat16, where W is in the cache by now. */
void linear_dot_rows(const Linear *op, int64_t first, int64_t last);
