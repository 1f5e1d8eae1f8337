/* Plain calls of kl_divergence and kl_divergence_with_grad.
 *
 * A call is plain if x and y are C-contiguous NumPy arrays of native float32 or float64, of one dtype and shape, with
 * the classes on the last axis; the temperature is a positive finite float, upstream is 1; there are no masks and
 * weights; `out` is x or y, or shares no memory with them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "quick.h"

#include <float.h>

#define module csm_quick_module

/* Whether all options but the arrays are plain. */
static int read_options(const csm_arguments *given, int gradient, csm_divergence_options *options) {
    PyObject *const *k = given->keyword;
    long axis = -1;
    double upstream = 1;
    const int plain = csm_read_int(k[CSM_KEYWORD_AXIS], -1, -1, &axis) &&
                      csm_read_float(k[CSM_KEYWORD_TEMPERATURE], DBL_TRUE_MIN, DBL_MAX, &options->temperature) &&
                      csm_read_float(k[CSM_KEYWORD_UPSTREAM], 1, 1, &upstream) &&
                      csm_read_reduction(k[CSM_KEYWORD_REDUCTION], &options->reduction) &&
                      csm_is_count(k[CSM_KEYWORD_NUM_THREADS]);
    if (!gradient) options->reduction = CSM_NONE;
    return plain;
}

static csm_status compute(csm_dtype dtype, const Py_buffer *x, const Py_buffer *y, const Py_buffer *to, double *loss,
                          csm_divergence_options *options) {
    csm_shape shape = {.n = (size_t)x->shape[x->ndim - 1], .ndim = 1, .shape = {1}};
    for (int i = 0; i < x->ndim - 1; i++) shape.shape[0] *= (size_t)x->shape[i];
    csm_view views[3];
    const Py_buffer *const buffers[] = {x, y, to};
    for (int i = 0; i < 3; i++) {
        if (buffers[i]) views[i].data = buffers[i]->buf;
        views[i].axis_stride = x->itemsize;
        views[i].strides[0] = x->itemsize * (ptrdiff_t)shape.n;
    }
    const csm_view *gradient = to ? &views[2] : NULL;
    if (x->len < CSM_KEEP_GIL * x->itemsize)
        return csm_run_divergence(dtype, csm_current_table(), &shape, &views[0], &views[1], gradient, loss, options);
    options->interrupt = module.interrupt;
    PyThreadState *state = PyEval_SaveThread();
    csm_status status =
        csm_run_divergence(dtype, csm_current_table(), &shape, &views[0], &views[1], gradient, loss, options);
    PyEval_RestoreThread(state);
    return status;
}

PyObject *csm_quick_divergence(int gradient, const csm_arguments *given, PyObject *result_type) {
    PyObject *out = given->keyword[CSM_KEYWORD_OUT], *threads = given->keyword[CSM_KEYWORD_NUM_THREADS];
    PyObject *grad = NULL, *losses = NULL, *loss = NULL, *result = NULL;
    csm_divergence_options options = csm_default_divergence_options();
    Py_buffer buffer[4]; /* x, y, the gradient, the losses */
    int held = 0, is_copy, unused;
    double sum = 0, *to = &sum;
    if (!read_options(given, gradient, &options)) return NULL;
    const int dtype = csm_dtype_index(given->array[0], module.dtypes, CSM_DTYPE_COUNT, &is_copy);
    if (dtype != CSM_DTYPE_f32 && dtype != CSM_DTYPE_f64) return NULL;
    PyObject *const kind = module.dtypes[dtype];
    if (csm_dtype_index(given->array[1], &kind, 1, &unused) != 0 ||
        (out && csm_dtype_index(out, &kind, 1, &unused) != 0))
        return NULL;
    while (held < 2 && PyObject_GetBuffer(given->array[held], &buffer[held], PyBUF_STRIDED_RO) == 0) held++;
    if (held < 2 || buffer[0].ndim == 0 || !csm_is_plain(&buffer[0]) || !csm_is_plain(&buffer[1]) ||
        !csm_has_same_shape(&buffer[0], &buffer[1]))
        goto end;
    options.threads = module.threads(threads ? threads : Py_None);
    if (options.threads < 0) goto end;
    if (gradient) {
        grad = out;
        if (out) Py_INCREF(out);
        else grad = csm_new_result(given->array[0], &buffer[0], -1, kind, is_copy);
        if (!grad || PyObject_GetBuffer(grad, &buffer[held], PyBUF_STRIDED_RO) != 0) goto end;
        held++;
        if (out && !(csm_may_write(&buffer[2], &buffer[0]) && csm_may_write(&buffer[2], &buffer[1]))) goto end;
    }
    if (options.reduction == CSM_NONE && buffer[0].ndim > 1) {
        losses = csm_new_result(given->array[0], &buffer[0], buffer[0].ndim - 1, module.dtypes[CSM_DTYPE_f64], 0);
        if (!losses || PyObject_GetBuffer(losses, &buffer[held], PyBUF_STRIDED_RO) != 0) goto end;
        to = buffer[held++].buf;
    }
    const Py_buffer *const written = gradient ? &buffer[2] : NULL;
    if (module.raise(compute((csm_dtype)dtype, &buffer[0], &buffer[1], written, to, &options)) != 0) goto end;
    loss = csm_finish_quick_loss(losses, sum, dtype);
    if (loss && gradient) {
        result = csm_quick_pair(loss, grad, result_type);
    } else if (loss) {
        Py_INCREF(loss);
        result = loss;
    }
end:
    while (held-- > 0) PyBuffer_Release(&buffer[held]);
    Py_XDECREF(grad);
    Py_XDECREF(losses);
    Py_XDECREF(loss);
    return result;
}
