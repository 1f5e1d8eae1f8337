/* The public functions of the softmax family as C functions (quick.c). */
#ifndef CSM_QUICK_H
#define CSM_QUICK_H

#include <Python.h>

#include "internal.h"

/* Below this many elements a call is shorter than giving the GIL away and taking it back, and has one thread. */
enum { CSM_KEEP_GIL = 2048 };
/* C-contiguous, aligned and not empty; of two that are, whether they share no memory; whether a result can be written
 * to `to` while `from`, of its shape, is read: both plain, the same place or apart. */
int csm_is_plain(const Py_buffer *);
int csm_are_apart(const Py_buffer *, const Py_buffer *);
int csm_may_write(const Py_buffer *to, const Py_buffer *from);

/* What they need of the module around them: numpy.ndarray, functions for new arrays (shape, dtype; of few bytes) and
 * (like another), the native dtypes in the order of CSM_DTYPES (NULL: not taken), and functions in C: a call's number
 * of threads from num_threads (-1: an exception is set), the look for an interrupt, and the exception of a status. */
typedef struct csm_quick {
    PyObject *ndarray, *empty, *empty_like, *dtypes[CSM_DTYPE_COUNT];
    int (*threads)(PyObject *num_threads);
    int (*interrupt)(void *);
    int (*raise)(csm_status);
} csm_quick;

/* Takes references to all of it; 0, or -1 with an exception. */
int csm_quick_set_up(const csm_quick *);
/* The C function that stands for the Python function of an operation, in the given module; doc begins with the
 * signature, as those of builtins do. */
PyObject *csm_quick_function(csm_op, PyObject *function, PyObject *module, PyObject *doc);

#endif
