/* The Python module: unpacks integers and addresses, lets go of the interpreter and calls a kernel.
 *
 * The callers in Python have checked shapes and number formats. This file is compiled for any CPU, so that asking
 * features() is safe everywhere.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "attention.h"
#include "cpu.h"
#include "elementwise.h"
#include "linear.h"
#include "recurrent.h"

static int64_t integer(PyObject *object) { return PyLong_AsLongLong(object); }
static void *address(PyObject *object) { return PyLong_AsVoidPtr(object); }

static int wrong_count(Py_ssize_t got, Py_ssize_t want) {
    if (got == want) return 0;
    PyErr_Format(PyExc_TypeError, "takes %zd arguments, got %zd", want, got);
    return 1;
}

/* 0: nothing here can run. 1: float32 and float16. 3: bfloat16 too. */
static PyObject *features(PyObject *self, PyObject *unused) {
    int level = 0;
#if HAVE_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        level = __builtin_cpu_supports("avx512bf16") ? 3 : 1;
#endif
    return PyLong_FromLong(level);
}

/* Whole 4 KiB pages within the range only: the rest may belong to another tensor. */
static PyObject *advise_huge_pages(PyObject *self, PyObject *const *a, Py_ssize_t n) {
    if (wrong_count(n, 2)) return NULL;
    uintptr_t begin = ((uintptr_t)address(a[0]) + 4095) & ~(uintptr_t)4095;
    uintptr_t end = ((uintptr_t)address(a[0]) + (uintptr_t)integer(a[1])) & ~(uintptr_t)4095;
    if (PyErr_Occurred()) return NULL;
    int done = 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    done = begin < end && madvise((void *)begin, end - begin, MADV_HUGEPAGE) == 0;
#endif
    return PyBool_FromLong(done);
}

#if HAVE_KERNELS
PyDoc_STRVAR(linear_doc, "linear(form, threads, dtype, x, ldx, w, ldw, bias, y, ldy, tokens, din, dout); form 0 dot, 1 panel");
static PyObject *linear(PyObject *self, PyObject *const *a, Py_ssize_t n) {
    if (wrong_count(n, 13)) return NULL;
    int form = (int)integer(a[0]), done;
    Linear op = {.threads = (int)integer(a[1]), .dtype = (Dtype)integer(a[2]), .x = address(a[3]), .ldx = integer(a[4]),
                 .w = address(a[5]), .ldw = integer(a[6]), .bias = address(a[7]), .y = address(a[8]), .ldy = integer(a[9]),
                 .tokens = integer(a[10]), .din = integer(a[11]), .dout = integer(a[12])};
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = form == 0 ? linear_dot(&op) : linear_panel(&op);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(attention_doc,
             "paged_attention(threads, dtype, causal, scale, softcap, window, q, q_token_stride, q_head_stride, k, v, "
             "block_stride, head_stride, key_stride, num_blocks, num_kv_heads, block_size, block_table, table_stride, table_width, "
             "query_start, seq_lens, num_seqs, slopes, sinks, out, num_tokens, num_heads, head_dim)");
static PyObject *attention(PyObject *self, PyObject *const *a, Py_ssize_t n) {
    if (wrong_count(n, 29)) return NULL;
    Attention op = {.threads = (int)integer(a[0]), .dtype = (Dtype)integer(a[1]), .causal = (int)integer(a[2]),
                    .scale = (float)PyFloat_AsDouble(a[3]), .softcap = (float)PyFloat_AsDouble(a[4]), .window = integer(a[5]),
                    .q = address(a[6]), .q_token_stride = integer(a[7]), .q_head_stride = integer(a[8]),
                    .k = address(a[9]), .v = address(a[10]), .block_stride = integer(a[11]), .head_stride = integer(a[12]),
                    .key_stride = integer(a[13]), .num_blocks = integer(a[14]), .num_kv_heads = integer(a[15]),
                    .block_size = integer(a[16]), .block_table = address(a[17]), .table_stride = integer(a[18]),
                    .table_width = integer(a[19]),
                    .query_start = address(a[20]), .seq_lens = address(a[21]), .num_seqs = integer(a[22]),
                    .slopes = address(a[23]), .sinks = address(a[24]), .out = address(a[25]), .num_tokens = integer(a[26]),
                    .num_heads = integer(a[27]), .head_dim = integer(a[28])};
    if (PyErr_Occurred()) return NULL;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = paged_attention(&op);
    Py_END_ALLOW_THREADS
    if (result == ATTENTION_NO_MEMORY) return PyErr_NoMemory();
    if (result == ATTENTION_BAD_INDEX) {
        PyErr_SetString(PyExc_IndexError, "block_table, query_start or seq_lens lead outside the cache or the batch");
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(norm_doc,
             "norm(rms, threads, dtype, x, outer_stride, inner, inner_stride, residual, weight, bias, eps, y, rows, size)");
static PyObject *norm(PyObject *self, PyObject *const *a, Py_ssize_t n) {
    if (wrong_count(n, 14)) return NULL;
    int rms = (int)integer(a[0]);
    Norm op = {.threads = (int)integer(a[1]), .dtype = (Dtype)integer(a[2]), .x = address(a[3]), .outer_stride = integer(a[4]),
               .inner = integer(a[5]), .inner_stride = integer(a[6]), .residual = address(a[7]), .weight = address(a[8]),
               .bias = address(a[9]), .eps = (float)PyFloat_AsDouble(a[10]), .y = address(a[11]), .rows = integer(a[12]),
               .size = integer(a[13])};
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (rms) rms_norm(&op);
    else layer_norm(&op);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(activation_doc, "activate(name, gated, threads, dtype, x, stride, y, rows, size)");
static PyObject *activation(PyObject *self, PyObject *const *a, Py_ssize_t n) {
    if (wrong_count(n, 9)) return NULL;
    Activation op = {.name = (ActivationName)integer(a[0]), .gated = (int)integer(a[1]), .threads = (int)integer(a[2]),
                     .dtype = (Dtype)integer(a[3]), .x = address(a[4]), .stride = integer(a[5]), .y = address(a[6]),
                     .rows = integer(a[7]), .size = integer(a[8])};
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    activate(&op);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(rope_doc,
             "rope_kv_write(threads, dtype, q, q_stride, k, k_stride, v, v_stride, cos_sin, num_positions, rope_dim, "
             "positions, slots, rotated, k_cache, v_cache, num_tokens, num_heads, num_kv_heads, head_dim, num_blocks, block_size)");
static PyObject *rope(PyObject *self, PyObject *const *a, Py_ssize_t n) {
    if (wrong_count(n, 22)) return NULL;
    Rope op = {.threads = (int)integer(a[0]), .dtype = (Dtype)integer(a[1]), .q = address(a[2]), .q_stride = integer(a[3]),
               .k = address(a[4]), .k_stride = integer(a[5]), .v = address(a[6]), .v_stride = integer(a[7]),
               .cos_sin = address(a[8]), .num_positions = integer(a[9]), .rope_dim = integer(a[10]), .positions = address(a[11]),
               .slots = address(a[12]), .rotated = address(a[13]), .k_cache = address(a[14]), .v_cache = address(a[15]),
               .num_tokens = integer(a[16]), .num_heads = integer(a[17]), .num_kv_heads = integer(a[18]),
               .head_dim = integer(a[19]), .num_blocks = integer(a[20]), .block_size = integer(a[21])};
    if (PyErr_Occurred()) return NULL;
    int done;
    Py_BEGIN_ALLOW_THREADS
    done = rope_kv_write(&op);
    Py_END_ALLOW_THREADS
    if (!done) {
        PyErr_SetString(PyExc_IndexError, "a position lies outside the table of cosines, or a slot outside the cache");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *done_unless_out_of_range(int done) {
    if (done) Py_RETURN_NONE;
    PyErr_SetString(PyExc_IndexError, "query_start leads outside the batch, or a slot outside the state");
    return NULL;
}

PyDoc_STRVAR(conv_doc,
             "causal_conv(threads, dtype, x, x_stride, weight, bias, window, query_start, seq_lens, slots, out, num_tokens, "
             "num_seqs, num_channels, num_taps, num_slots)");
static PyObject *conv(PyObject *self, PyObject *const *a, Py_ssize_t n) {
    if (wrong_count(n, 16)) return NULL;
    Conv op = {.threads = (int)integer(a[0]), .dtype = (Dtype)integer(a[1]), .x = address(a[2]), .x_stride = integer(a[3]),
               .weight = address(a[4]), .bias = address(a[5]), .window = address(a[6]),
               .rows = {.query_start = address(a[7]), .seq_lens = address(a[8]), .slots = address(a[9]),
                        .num_tokens = integer(a[11]), .num_seqs = integer(a[12]), .num_slots = integer(a[15])},
               .out = address(a[10]), .num_channels = integer(a[13]), .num_taps = integer(a[14])};
    if (PyErr_Occurred()) return NULL;
    int done;
    Py_BEGIN_ALLOW_THREADS
    done = causal_conv(&op);
    Py_END_ALLOW_THREADS
    return done_unless_out_of_range(done);
}

PyDoc_STRVAR(scan_doc,
             "selective_scan(threads, dtype, x, x_stride, dt, dt_stride, b, b_stride, c, c_stride, z, z_stride, a, d, dt_bias, "
             "state, query_start, seq_lens, slots, out, num_tokens, num_seqs, num_channels, num_states, num_slots)");
static PyObject *scan(PyObject *self, PyObject *const *a, Py_ssize_t n) {
    if (wrong_count(n, 25)) return NULL;
    Scan op = {.threads = (int)integer(a[0]), .dtype = (Dtype)integer(a[1]), .x = address(a[2]), .x_stride = integer(a[3]),
               .dt = address(a[4]), .dt_stride = integer(a[5]), .b = address(a[6]), .b_stride = integer(a[7]),
               .c = address(a[8]), .c_stride = integer(a[9]), .z = address(a[10]), .z_stride = integer(a[11]),
               .a = address(a[12]), .d = address(a[13]), .dt_bias = address(a[14]), .state = address(a[15]),
               .rows = {.query_start = address(a[16]), .seq_lens = address(a[17]), .slots = address(a[18]),
                        .num_tokens = integer(a[20]), .num_seqs = integer(a[21]), .num_slots = integer(a[24])},
               .out = address(a[19]), .num_channels = integer(a[22]), .num_states = integer(a[23])};
    if (PyErr_Occurred()) return NULL;
    int done;
    Py_BEGIN_ALLOW_THREADS
    done = selective_scan(&op);
    Py_END_ALLOW_THREADS
    return done_unless_out_of_range(done);
}
#endif

static PyMethodDef methods[] = {
    {"features", features, METH_NOARGS, "What this CPU can run: 0 nothing, 1 float32 and float16, 3 bfloat16 too."},
    {"advise_huge_pages", (PyCFunction)(void (*)(void))advise_huge_pages, METH_FASTCALL,
     "advise_huge_pages(address, num_bytes): whether the system took the advice."},
#if HAVE_KERNELS
    {"linear", (PyCFunction)(void (*)(void))linear, METH_FASTCALL, linear_doc},
    {"paged_attention", (PyCFunction)(void (*)(void))attention, METH_FASTCALL, attention_doc},
    {"norm", (PyCFunction)(void (*)(void))norm, METH_FASTCALL, norm_doc},
    {"activate", (PyCFunction)(void (*)(void))activation, METH_FASTCALL, activation_doc},
    {"rope_kv_write", (PyCFunction)(void (*)(void))rope, METH_FASTCALL, rope_doc},
    {"causal_conv", (PyCFunction)(void (*)(void))conv, METH_FASTCALL, conv_doc},
    {"selective_scan", (PyCFunction)(void (*)(void))scan, METH_FASTCALL, scan_doc},
#endif
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "Kernels for CPUs with AVX-512.", -1, methods};

PyMODINIT_FUNC PyInit__cpu(void) { return PyModule_Create(&definition); }
