/* Quick calls: public functions as C functions that compute plain calls themselves and pass on all others (quick.c). */
#ifndef CSM_QUICK_H
#define CSM_QUICK_H

#include <Python.h>

#include "core/extension.h"

/* The functions with a quick path: the operations of CSM_OPS, then the losses. */
enum {
    CSM_QUICK_CROSS_ENTROPY = CSM_OP_COUNT,
    CSM_QUICK_CROSS_ENTROPY_WITH_GRAD,
    CSM_QUICK_KL_DIVERGENCE,
    CSM_QUICK_KL_DIVERGENCE_WITH_GRAD,
    CSM_QUICK_COUNT,
};

/* Below this many elements, a call takes less time than releasing and reacquiring the GIL. */
enum { CSM_KEEP_GIL = 2048 };

/* Keywords of these functions. */
#define CSM_KEYWORDS(X)                 \
    X(AXIS, axis)                       \
    X(TEMPERATURE, temperature)         \
    X(WHERE, where)                     \
    X(OUT, out)                         \
    X(DEVICE, device)                   \
    X(NUM_THREADS, num_threads)         \
    X(KEEPDIMS, keepdims)               \
    X(WEIGHT, weight)                   \
    X(SAMPLE_WEIGHT, sample_weight)     \
    X(LABEL_SMOOTHING, label_smoothing) \
    X(IGNORE_INDEX, ignore_index)       \
    X(Z_LOSS, z_loss)                   \
    X(REDUCTION, reduction)             \
    X(UPSTREAM, upstream)               \
    X(CLIP_NORM, clip_norm)             \
    X(CLIP_VALUE, clip_value)           \
    X(SOFTCAP, softcap)
#define CSM_KEYWORD_ENUM(name, text) CSM_KEYWORD_##name,
enum { CSM_KEYWORDS(CSM_KEYWORD_ENUM) CSM_KEYWORD_COUNT };
#undef CSM_KEYWORD_ENUM

/* A call's arguments as borrowed references; a keyword is NULL if it is absent, or if it is None and that is its
 * default. */
typedef struct csm_arguments {
    PyObject *array[2], *keyword[CSM_KEYWORD_COUNT];
} csm_arguments;

/* Objects and functions of the Python module that quick calls need. */
typedef struct csm_quick {
    PyObject *ndarray;
    PyObject *empty; /* empty(shape, dtype) for results of few bytes */
    PyObject *empty_like; /* empty_like(x) for results of any size */
    PyObject
        *dtypes[CSM_DTYPE_COUNT]; /* native dtypes in the order of CSM_DTYPES; NULL for those without a quick path */
    PyObject *scalars[CSM_DTYPE_COUNT]; /* their scalar types */
    PyObject *int64, *int32; /* dtypes of labels */
    int (*threads)(PyObject *num_threads); /* a call's number of threads, or -1 with an exception */
    int (*interrupt)(void *); /* checks for a signal */
    int (*raise)(csm_status); /* 0, or -1 with the exception of a status */
} csm_quick;
extern csm_quick csm_quick_module;

/* Copies the structure and takes references to its objects; returns 0, or -1 with an exception. */
int csm_quick_set_up(const csm_quick *);
/* Returns the C function that replaces the Python function number `which` in the given module. doc begins with the
 * signature, like that of builtins. result_type is the named tuple of a loss with its gradient, else None. */
PyObject *csm_quick_function(int which, PyObject *function, PyObject *module, PyObject *doc, PyObject *result_type);

/* Whether a buffer is C-contiguous, aligned and not empty. */
int csm_is_plain(const Py_buffer *);
/* Whether two plain buffers share no memory. */
int csm_is_disjoint(const Py_buffer *, const Py_buffer *);
int csm_has_same_shape(const Py_buffer *, const Py_buffer *);
/* Whether a result can be written to `to` while `from` is read: same shape, both plain, and same memory or disjoint. */
int csm_may_write(const Py_buffer *to, const Py_buffer *from);

/* Index of an array's dtype among `count` known ones, or -1 for another dtype or an object that is not an ndarray.
 * Native dtypes are usually singletons; unpickled arrays carry equal copies, for which *is_copy is set. */
int csm_dtype_index(PyObject *array, PyObject *const *known, int count, int *is_copy);
/* Whether an argument is absent or a positive int. */
int csm_is_count(PyObject *given);
/* Returns a new result in the shape of x (whose buffer is `like`) without the axis `without` (negative: all axes). */
PyObject *csm_new_result(PyObject *x, const Py_buffer *like, int without, PyObject *dtype, int is_copy);

/* Whether an argument is absent or a float, or an int, in [low, high]; *to keeps its value if it is absent. */
int csm_read_float(PyObject *given, double low, double high, double *to);
int csm_read_int(PyObject *given, long low, long high, long *to);
int csm_read_reduction(PyObject *given, csm_reduction *to);
/* A loss in its final form: a scalar, or, from an array of float64, one of the dtype. */
PyObject *csm_finish_quick_loss(PyObject *losses, double loss, int dtype);
/* result_type((loss, gradient)). */
PyObject *csm_quick_pair(PyObject *loss, PyObject *gradient, PyObject *result_type);

/* The same as csm_quick_loss for a plain Kullback-Leibler divergence (quick_divergence.c). */
PyObject *csm_quick_divergence(int gradient, const csm_arguments *, PyObject *result_type);

/* Computes a plain cross-entropy (quick_loss.c): a new reference, NULL with an exception, or NULL without one if the
 * call is not plain. */
PyObject *csm_quick_loss(int gradient, const csm_arguments *, PyObject *result_type);

#endif
