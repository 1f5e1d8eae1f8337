/* Plain calls of cross_entropy and cross_entropy_with_grad.
 *
 * A call is plain if its arrays are C-contiguous NumPy arrays: logits of native float32 or float64 with the classes on
 * the last axis; labels of int64 or int32, or soft labels of the logits' dtype; class weights of that dtype, at least 0
 * and finite; an `out` that is the logits or shares no memory with any input. Other options are None or Python floats
 * within their range, upstream is 1, and there are no sample weights. A call with a bad label is not plain: the Python
 * function finds the label again and names it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "quick.h"

#include <float.h>

#define module csm_quick_module

int csm_read_float(PyObject *given, double low, double high, double *to) {
    if (!given) return 1;
    if (!PyFloat_CheckExact(given)) return 0;
    *to = PyFloat_AsDouble(given);
    return *to >= low && *to <= high;
}

int csm_read_int(PyObject *given, long low, long high, long *to) {
    if (!given) return 1;
    int overflow;
    if (!PyLong_CheckExact(given)) return 0;
    *to = PyLong_AsLongAndOverflow(given, &overflow);
    return !overflow && *to >= low && *to <= high;
}

int csm_read_reduction(PyObject *given, csm_reduction *to) {
    static const struct {
        const char *name;
        csm_reduction reduction;
    } known[] = {{"mean", CSM_MEAN}, {"sum", CSM_SUM}, {"none", CSM_NONE}};
    *to = CSM_MEAN;
    if (!given) return 1;
    if (!PyUnicode_CheckExact(given)) return 0;
    for (int i = 0; i < 3; i++) {
        *to = known[i].reduction;
        if (PyUnicode_CompareWithASCIIString(given, known[i].name) == 0) return 1;
    }
    return 0;
}

/* Whether all options but the arrays are plain. */
static int read_options(const csm_arguments *given, csm_loss_options *options) {
    PyObject *const *k = given->keyword;
    const double tiny = DBL_TRUE_MIN;
    long axis = -1, ignore_index = -100;
    double upstream = 1;
    const int plain = csm_read_int(k[CSM_KEYWORD_AXIS], -1, -1, &axis) &&
                      csm_read_int(k[CSM_KEYWORD_IGNORE_INDEX], INT32_MIN, INT32_MAX, &ignore_index) &&
                      csm_read_float(k[CSM_KEYWORD_LABEL_SMOOTHING], 0, 1, &options->label_smoothing) &&
                      csm_read_float(k[CSM_KEYWORD_Z_LOSS], 0, DBL_MAX, &options->z_loss) &&
                      csm_read_float(k[CSM_KEYWORD_TEMPERATURE], tiny, DBL_MAX, &options->temperature) &&
                      csm_read_float(k[CSM_KEYWORD_SOFTCAP], 1e-30, 1e30, &options->softcap) &&
                      csm_read_float(k[CSM_KEYWORD_UPSTREAM], 1, 1, &upstream) &&
                      csm_read_float(k[CSM_KEYWORD_CLIP_NORM], tiny, DBL_MAX, &options->clip_norm) &&
                      csm_read_float(k[CSM_KEYWORD_CLIP_VALUE], tiny, DBL_MAX, &options->clip_value) &&
                      csm_read_reduction(k[CSM_KEYWORD_REDUCTION], &options->reduction) &&
                      csm_is_count(k[CSM_KEYWORD_NUM_THREADS]);
    options->has_ignore = 1;
    options->ignore = (uint64_t)(int64_t)ignore_index;
    return plain;
}

/* Whether class weights are at least 0 and finite. */
static int has_valid_weights(const Py_buffer *w, int is_single) {
    const double maximum = is_single ? FLT_MAX : DBL_MAX;
    int good = 1;
    for (Py_ssize_t i = 0; i < w->shape[0]; i++) {
        const double value = is_single ? (double)((const float *)w->buf)[i] : ((const double *)w->buf)[i];
        good &= value >= 0 && value <= maximum;
    }
    return good;
}

/* A call's arrays and their buffers, released together. */
typedef struct buffers {
    Py_buffer logits, labels, weight, gradient, losses;
    int has_logits, has_labels, has_weight, has_gradient, has_losses;
} buffers;

static int hold(PyObject *array, Py_buffer *buffer, int *is_held) {
    *is_held = PyObject_GetBuffer(array, buffer, PyBUF_STRIDED_RO) == 0;
    return *is_held;
}

static void release(buffers *b) {
    if (b->has_logits) PyBuffer_Release(&b->logits);
    if (b->has_labels) PyBuffer_Release(&b->labels);
    if (b->has_weight) PyBuffer_Release(&b->weight);
    if (b->has_gradient) PyBuffer_Release(&b->gradient);
    if (b->has_losses) PyBuffer_Release(&b->losses);
}

/* Acquires the buffers of the inputs and returns whether they are plain. */
static int read_inputs(const csm_arguments *given, int is_soft, csm_loss_options *options, buffers *b) {
    PyObject *weight = given->keyword[CSM_KEYWORD_WEIGHT];
    if (!hold(given->array[0], &b->logits, &b->has_logits)) return 0;
    const int ndim = b->logits.ndim;
    if (ndim == 0 || (ndim == 1 && options->reduction == CSM_NONE) || !csm_is_plain(&b->logits)) return 0;
    if (!hold(given->array[1], &b->labels, &b->has_labels)) return 0;
    if (b->labels.ndim != ndim - 1 + is_soft || !csm_is_plain(&b->labels)) return 0;
    for (int i = 0; i < b->labels.ndim; i++)
        if (b->labels.shape[i] != b->logits.shape[i]) return 0;
    if (!weight) return 1;
    if (!hold(weight, &b->weight, &b->has_weight)) return 0;
    options->weight = b->weight.buf;
    return b->weight.ndim == 1 && b->weight.shape[0] == b->logits.shape[ndim - 1] && csm_is_plain(&b->weight) &&
           has_valid_weights(&b->weight, b->logits.itemsize == sizeof(float));
}

/* Whether `out` can be written while the inputs are read. */
static int is_apart(const buffers *b, int is_soft) {
    return csm_may_write(&b->gradient, &b->logits) && (!is_soft || csm_is_disjoint(&b->gradient, &b->labels)) &&
           (!b->has_weight || csm_is_disjoint(&b->gradient, &b->weight));
}

static csm_status compute(csm_dtype dtype, const buffers *b, int is_soft, double *loss, csm_loss_options *options) {
    const Py_ssize_t item = b->logits.itemsize;
    csm_shape shape = {.n = (size_t)b->logits.shape[b->logits.ndim - 1], .ndim = 1, .shape = {1}};
    for (int i = 0; i < b->logits.ndim - 1; i++) shape.shape[0] *= (size_t)b->logits.shape[i];
    csm_view logits, gradient, labels;
    logits.data = b->logits.buf;
    logits.axis_stride = gradient.axis_stride = item;
    logits.strides[0] = gradient.strides[0] = item * (ptrdiff_t)shape.n;
    if (b->has_gradient) gradient.data = b->gradient.buf;
    labels.data = b->labels.buf;
    labels.axis_stride = b->labels.itemsize;
    labels.strides[0] = is_soft ? logits.strides[0] : b->labels.itemsize;
    if (is_soft) options->soft = &labels;
    else options->labels = &labels;
    const csm_view *to = b->has_gradient ? &gradient : NULL;
    if (b->logits.len < CSM_KEEP_GIL * item)
        return csm_run_cross_entropy(dtype, csm_current_table(), &shape, &logits, to, loss, options);
    options->interrupt = module.interrupt;
    PyThreadState *state = PyEval_SaveThread();
    csm_status status = csm_run_cross_entropy(dtype, csm_current_table(), &shape, &logits, to, loss, options);
    PyEval_RestoreThread(state);
    return status;
}

/* Returns the loss in its final form: a scalar, or, with reduction "none", an array in the logits' dtype. */
PyObject *csm_finish_quick_loss(PyObject *losses, double loss, int dtype) {
    if (losses && dtype == CSM_DTYPE_f64) {
        Py_INCREF(losses);
        return losses;
    }
    if (losses) return PyObject_CallMethod(losses, "astype", "O", module.dtypes[dtype]);
    PyObject *number = PyFloat_FromDouble(loss), *scalar = NULL;
    if (number) scalar = PyObject_CallFunctionObjArgs(module.scalars[dtype], number, NULL);
    Py_XDECREF(number);
    return scalar;
}

/* result_type((loss, gradient)) through tuple.__new__, which takes half the time of calling the named tuple. */
PyObject *csm_quick_pair(PyObject *loss, PyObject *gradient, PyObject *result_type) {
    newfunc new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *fields = PyTuple_Pack(2, loss, gradient), *arguments = fields ? PyTuple_Pack(1, fields) : NULL;
    PyObject *pair = arguments ? new_tuple((PyTypeObject *)result_type, arguments, NULL) : NULL;
    Py_XDECREF(arguments);
    Py_XDECREF(fields);
    return pair;
}

PyObject *csm_quick_loss(int gradient, const csm_arguments *given, PyObject *result_type) {
    PyObject *const *keyword = given->keyword;
    PyObject *out = keyword[CSM_KEYWORD_OUT], *threads = keyword[CSM_KEYWORD_NUM_THREADS];
    PyObject *grad = NULL, *losses = NULL, *loss = NULL, *result = NULL;
    csm_loss_options options = csm_default_loss_options();
    if (!read_options(given, &options)) return NULL;
    int is_copy, unused;
    const int dtype = csm_dtype_index(given->array[0], module.dtypes, CSM_DTYPE_COUNT, &is_copy);
    if (dtype != CSM_DTYPE_f32 && dtype != CSM_DTYPE_f64) return NULL;
    PyObject *const kinds[] = {module.int64, module.int32, module.dtypes[dtype]}, *const kind = module.dtypes[dtype];
    const int labels = csm_dtype_index(given->array[1], kinds, 3, &unused), is_soft = labels == 2;
    if (labels < 0 || (out && csm_dtype_index(out, &kind, 1, &unused) != 0)) return NULL;
    if (keyword[CSM_KEYWORD_WEIGHT] && csm_dtype_index(keyword[CSM_KEYWORD_WEIGHT], &kind, 1, &unused) != 0)
        return NULL;
    options.label_type = labels == 1 ? CSM_INT32 : CSM_INT64;

    buffers b = {.has_logits = 0};
    double sum = 0, *to = &sum;
    if (!read_inputs(given, is_soft, &options, &b)) goto end;
    options.threads = module.threads(threads ? threads : Py_None);
    if (options.threads < 0) goto end;
    if (gradient) {
        grad = out;
        if (out) Py_INCREF(out);
        else grad = csm_new_result(given->array[0], &b.logits, -1, kind, is_copy);
        if (!grad || !hold(grad, &b.gradient, &b.has_gradient) || (out && !is_apart(&b, is_soft))) goto end;
    }
    if (options.reduction == CSM_NONE) {
        losses = csm_new_result(given->array[0], &b.logits, b.logits.ndim - 1, module.dtypes[CSM_DTYPE_f64], 0);
        if (!losses || !hold(losses, &b.losses, &b.has_losses)) goto end;
        to = b.losses.buf;
    }
    const csm_status status = compute((csm_dtype)dtype, &b, is_soft, to, &options);
    if (status == CSM_BAD_LABEL || module.raise(status) != 0) goto end;
    loss = csm_finish_quick_loss(losses, sum, dtype);
    if (loss && gradient) result = csm_quick_pair(loss, grad, result_type);
    else if (loss) {
        Py_INCREF(loss);
        result = loss;
    }
end:
    release(&b);
    Py_XDECREF(grad);
    Py_XDECREF(losses);
    Py_XDECREF(loss);
    return result;
}
