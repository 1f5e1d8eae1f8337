/* Public functions as C functions. Plain calls are computed here, because the checks of the Python function cost
 * several times as much as a small softmax; every other call is passed on unchanged to the Python function of the same
 * name.
 *
 * In the softmax family a call is plain if it has NumPy arrays of native floats with any strides, one axis, a
 * temperature that is positive and finite, a number of threads, and an `out` that is C-contiguous like the inputs and
 * is one of them or shares no memory with any; quick_loss.c defines it for losses. Nothing is written before all of
 * that has been checked. No argument is refused here (the Python function has the messages), and no access to an
 * argument could run Python code.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "quick.h"

#include "pages.h"

#include <float.h>
#include <stdatomic.h>

csm_quick csm_quick_module;
#define module csm_quick_module
static PyObject *keywords[CSM_KEYWORD_COUNT]; /* interned, like the keywords of calls */
static PyObject *dtype_name, *empty_tuple; /* (): the index of the only element of a 0-d array */
static _Atomic(PyObject *) functions[CSM_QUICK_COUNT], result_types[CSM_QUICK_COUNT];

static const char is_binary[] = {
#define IS_BINARY(name, signature, ...) CSM_INPUTS_##signature == 2,
    CSM_OPS(IS_BINARY)
#undef IS_BINARY
};
static const char keeps_axis[] = {
#define KEEPS_AXIS(name, signature, keeps, ...) keeps,
    CSM_OPS(KEEPS_AXIS)
#undef KEEPS_AXIS
};

/* Keywords as bits. */
#define BIT(name) (1u << CSM_KEYWORD_##name)
enum {
    SOFTMAX_KEYWORDS = BIT(AXIS) | BIT(TEMPERATURE) | BIT(WHERE) | BIT(DEVICE) | BIT(NUM_THREADS),
    LOSS_KEYWORDS = BIT(AXIS) | BIT(WEIGHT) | BIT(SAMPLE_WEIGHT) | BIT(LABEL_SMOOTHING) | BIT(IGNORE_INDEX) |
        BIT(Z_LOSS) | BIT(TEMPERATURE) | BIT(SOFTCAP) | BIT(REDUCTION) | BIT(DEVICE) | BIT(NUM_THREADS),
    DIVERGENCE_KEYWORDS = BIT(AXIS) | BIT(TEMPERATURE) | BIT(WHERE) | BIT(DEVICE) | BIT(NUM_THREADS),
    DIVERGENCE_GRADIENT_KEYWORDS = BIT(REDUCTION) | BIT(SAMPLE_WEIGHT) | BIT(UPSTREAM) | BIT(OUT),
    GRADIENT_KEYWORDS = BIT(UPSTREAM) | BIT(CLIP_NORM) | BIT(CLIP_VALUE) | BIT(OUT),
    NONE_IS_DEFAULT = BIT(WHERE) | BIT(OUT) | BIT(DEVICE) | BIT(NUM_THREADS) | BIT(KEEPDIMS) | BIT(WEIGHT) |
        BIT(SAMPLE_WEIGHT) | BIT(CLIP_NORM) | BIT(CLIP_VALUE) | BIT(SOFTCAP),
    NEVER_PLAIN = BIT(WHERE) | BIT(DEVICE) | BIT(SAMPLE_WEIGHT), /* whatever their value */
};

static unsigned accepted_keywords(int which) {
    if (which < CSM_OP_COUNT) return SOFTMAX_KEYWORDS | (keeps_axis[which] ? BIT(OUT) : BIT(KEEPDIMS));
    if (which == CSM_QUICK_KL_DIVERGENCE) return DIVERGENCE_KEYWORDS | BIT(KEEPDIMS);
    if (which == CSM_QUICK_KL_DIVERGENCE_WITH_GRAD) return DIVERGENCE_KEYWORDS | DIVERGENCE_GRADIENT_KEYWORDS;
    return LOSS_KEYWORDS | (which == CSM_QUICK_CROSS_ENTROPY_WITH_GRAD ? GRADIENT_KEYWORDS : 0u);
}

/* Whether the arguments have their usual form: the arrays by position, nothing unknown, nothing that is never plain. */
static int read_arguments(int which, PyObject *const *args, Py_ssize_t count, PyObject *kwnames, csm_arguments *to) {
    const int is_loss = which >= CSM_OP_COUNT;
    const Py_ssize_t arrays = is_loss || is_binary[which] ? 2 : 1;
    if (count < arrays || count > arrays + !is_loss) return 0;
    memset(to, 0, sizeof *to);
    for (Py_ssize_t i = 0; i < arrays; i++) to->array[i] = args[i];
    if (count > arrays) to->keyword[CSM_KEYWORD_AXIS] = args[arrays];
    const unsigned accepted = accepted_keywords(which);
    const Py_ssize_t given = kwnames ? PyTuple_Size(kwnames) : 0;
    for (Py_ssize_t i = 0; i < given; i++) {
        const PyObject *name = PyTuple_GetItem(kwnames, i);
        int k = 0;
        while (k < CSM_KEYWORD_COUNT && name != keywords[k]) k++;
        if (k == CSM_KEYWORD_COUNT || to->keyword[k] || !(accepted >> k & 1)) return 0;
        to->keyword[k] = args[count + i];
        if (to->keyword[k] == Py_None) {
            if (!(NONE_IS_DEFAULT >> k & 1)) return 0;
            to->keyword[k] = NULL;
        } else if (NEVER_PLAIN >> k & 1) {
            return 0;
        }
    }
    PyObject *keepdims = to->keyword[CSM_KEYWORD_KEEPDIMS];
    return !keepdims || keepdims == Py_False;
}

/* Whether a temperature is absent or a number that is positive and finite. */
static int read_temperature(PyObject *given, double *t) {
    *t = 1;
    if (!given) return 1;
    if (PyFloat_CheckExact(given)) *t = PyFloat_AsDouble(given);
    else if (PyLong_CheckExact(given)) *t = PyLong_AsDouble(given);
    else return 0;
    if (*t > 0 && *t <= DBL_MAX) return 1;
    PyErr_Clear(); /* of an int that overflows double */
    return 0;
}

/* The axis as an index, or -1. */
static int read_axis(PyObject *given, int ndim) {
    if (!given) return ndim - 1;
    if (!PyLong_CheckExact(given)) return -1;
    int overflow;
    const long axis = PyLong_AsLongAndOverflow(given, &overflow);
    if (overflow || axis < -ndim || axis >= ndim) return -1;
    return (int)(axis < 0 ? axis + ndim : axis);
}

int csm_is_count(PyObject *given) {
    int overflow;
    return !given || (PyLong_CheckExact(given) && PyLong_AsLongAndOverflow(given, &overflow) >= 1 && !overflow);
}

int csm_dtype_index(PyObject *array, PyObject *const *known, int count, int *is_copy) {
    *is_copy = 0;
    if ((PyObject *)Py_TYPE(array) != module.ndarray) return -1;
    PyObject *dtype = PyObject_GetAttr(array, dtype_name);
    int i = count;
    if (dtype)
        for (i = 0; i < count && dtype != known[i];) i++;
    if (dtype && i == count) {
        *is_copy = 1;
        for (i = 0; i < count; i++)
            if (known[i] && PyObject_RichCompareBool(dtype, known[i], Py_EQ) == 1) break;
    }
    Py_XDECREF(dtype);
    PyErr_Clear();
    return i < count ? i : -1;
}

int csm_is_plain(const Py_buffer *b) {
    Py_ssize_t stride = b->itemsize;
    if ((uintptr_t)b->buf % (size_t)b->itemsize) return 0;
    for (int i = b->ndim - 1; i >= 0; i--) {
        if (b->shape[i] != 1 && b->strides[i] != stride) return 0;
        stride *= b->shape[i];
    }
    return stride != 0;
}

int csm_is_disjoint(const Py_buffer *a, const Py_buffer *b) {
    const char *x = a->buf, *y = b->buf;
    return x >= y + b->len || y >= x + a->len;
}

int csm_has_same_shape(const Py_buffer *a, const Py_buffer *b) {
    if (a->ndim != b->ndim) return 0;
    for (int i = 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i]) return 0;
    return 1;
}

int csm_may_write(const Py_buffer *to, const Py_buffer *from) {
    return !to->readonly && to->itemsize == from->itemsize && csm_has_same_shape(to, from) && csm_is_plain(to) &&
           csm_is_plain(from) && (to->buf == from->buf || csm_is_disjoint(to, from));
}

/* Small C-ordered results are allocated directly: numpy.empty_like would cost half a small call. A dtype that is a copy
 * of the native one goes through empty_like, which gives the result the same dtype object. */
PyObject *csm_new_result(PyObject *x, const Py_buffer *like, int without, PyObject *dtype, int is_copy) {
    if (without < 0 && (is_copy || like->len >= CSM_LARGE || !csm_is_plain(like)))
        return PyObject_CallFunctionObjArgs(module.empty_like, x, NULL);
    PyObject *shape = PyTuple_New(like->ndim - (without >= 0)), *result = NULL;
    for (int i = 0, to = 0; shape && i < like->ndim; i++) {
        if (i == without) continue;
        PyObject *length = PyLong_FromSsize_t(like->shape[i]);
        if (!length || PyTuple_SetItem(shape, to++, length) != 0) Py_CLEAR(shape);
    }
    if (shape) result = PyObject_CallFunctionObjArgs(module.empty, shape, dtype, NULL);
    Py_XDECREF(shape);
    return result;
}

/* Fills the view of a buffer; a negative axis means that the buffer has no class axis. */
static void describe(const Py_buffer *b, int axis, csm_view *view) {
    view->data = b->buf;
    view->axis_stride = axis < 0 ? 0 : b->strides[axis];
    for (int i = 0, to = 0; i < b->ndim; i++)
        if (i != axis) view->strides[to++] = b->strides[i];
}

static csm_status compute(csm_op op, csm_dtype dtype, const Py_buffer *inputs, const Py_buffer *result, int axis,
                          csm_options *options) {
    csm_shape shape;
    csm_view view[3];
    const int binary = is_binary[op];
    size_t elements = 1;
    shape.ndim = 0;
    for (int i = 0; i < inputs->ndim; i++) {
        if (i != axis) shape.shape[shape.ndim++] = (size_t)inputs->shape[i];
        elements *= (size_t)inputs->shape[i];
    }
    shape.n = (size_t)inputs->shape[axis];
    describe(inputs, axis, &view[0]);
    if (binary) describe(inputs + 1, axis, &view[1]);
    describe(result, keeps_axis[op] ? axis : -1, &view[2]);
    const csm_view *second = binary ? &view[1] : NULL;
    if (elements < CSM_KEEP_GIL)
        return csm_run_softmax(op, dtype, csm_current_table(), &shape, &view[0], second, &view[2], options);
    options->interrupt = module.interrupt;
    PyThreadState *state = PyEval_SaveThread();
    csm_status status = csm_run_softmax(op, dtype, csm_current_table(), &shape, &view[0], second, &view[2], options);
    PyEval_RestoreThread(state);
    return status;
}

/* Returns a new reference, NULL with an exception, or NULL without one if the call is not plain. */
static PyObject *quick_softmax(csm_op op, const csm_arguments *given) {
    const int arrays = 1 + is_binary[op];
    Py_buffer buffer[3]; /* the arrays, followed by the result */
    PyObject *out = given->keyword[CSM_KEYWORD_OUT], *threads = given->keyword[CSM_KEYWORD_NUM_THREADS];
    PyObject *result = NULL;
    csm_options options = csm_default_options();
    if (!read_temperature(given->keyword[CSM_KEYWORD_TEMPERATURE], &options.temperature) || !csm_is_count(threads))
        return NULL;
    int is_copy, unused;
    const int dtype = csm_dtype_index(given->array[0], module.dtypes, CSM_DTYPE_COUNT, &is_copy);
    if (dtype < 0 || (out && csm_dtype_index(out, module.dtypes, CSM_DTYPE_COUNT, &unused) != dtype) ||
        (arrays > 1 && csm_dtype_index(given->array[1], module.dtypes, CSM_DTYPE_COUNT, &unused) != dtype))
        return NULL;

    int held = 0;
    while (held < arrays && PyObject_GetBuffer(given->array[held], &buffer[held], PyBUF_STRIDED_RO) == 0) held++;
    int axis = -1;
    if (held == arrays && buffer[0].ndim > 0) axis = read_axis(given->keyword[CSM_KEYWORD_AXIS], buffer[0].ndim);
    if (axis < 0 || buffer[0].len == 0 || (arrays > 1 && !csm_has_same_shape(&buffer[0], &buffer[1]))) goto end;
    options.threads = module.threads(threads ? threads : Py_None);
    if (options.threads < 0) goto end;

    result = out;
    if (out) Py_INCREF(out);
    else
        result = csm_new_result(given->array[0], &buffer[0], keeps_axis[op] ? -1 : axis, module.dtypes[dtype], is_copy);
    if (!result) goto end;
    if (PyObject_GetBuffer(result, &buffer[held], PyBUF_STRIDED_RO) != 0) {
        Py_CLEAR(result);
        goto end;
    }
    held++;
    int writes = 1;
    for (int i = 0; out && i < arrays; i++) writes = writes && csm_may_write(&buffer[arrays], &buffer[i]);
    if (!writes || module.raise(compute(op, (csm_dtype)dtype, buffer, &buffer[arrays], axis, &options)) != 0)
        Py_CLEAR(result);
    if (result && !keeps_axis[op] && buffer[0].ndim == 1) { /* a scalar */
        PyObject *array = result;
        result = PyObject_GetItem(array, empty_tuple);
        Py_DECREF(array);
    }
end:
    while (held-- > 0) PyBuffer_Release(&buffer[held]);
    return result;
}

/* Calls the Python function with the arguments unchanged. */
static PyObject *pass_on(int which, PyObject *const *args, Py_ssize_t count, PyObject *kwnames) {
    const Py_ssize_t given = kwnames ? PyTuple_Size(kwnames) : 0;
    PyObject *positional = PyTuple_New(count), *named = given ? PyDict_New() : NULL, *result = NULL;
    if (!positional || (given && !named)) goto end;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(args[i]);
        if (PyTuple_SetItem(positional, i, args[i]) != 0) goto end;
    }
    for (Py_ssize_t i = 0; i < given; i++)
        if (PyDict_SetItem(named, PyTuple_GetItem(kwnames, i), args[count + i]) != 0) goto end;
    result = PyObject_Call(functions[which], positional, named);
end:
    Py_XDECREF(positional);
    Py_XDECREF(named);
    return result;
}

static PyObject *enter(int which, PyObject *const *args, Py_ssize_t count, PyObject *kwnames) {
    csm_arguments given;
    PyObject *result = NULL;
    if (read_arguments(which, args, count, kwnames, &given)) {
        if (which < CSM_OP_COUNT) result = quick_softmax((csm_op)which, &given);
        else if (which >= CSM_QUICK_KL_DIVERGENCE)
            result = csm_quick_divergence(which != CSM_QUICK_KL_DIVERGENCE, &given, result_types[which]);
        else result = csm_quick_loss(which == CSM_QUICK_CROSS_ENTROPY_WITH_GRAD, &given, result_types[which]);
    }
    return result || PyErr_Occurred() ? result : pass_on(which, args, count, kwnames);
}

/* Each function has its own C function: pickle finds a function by its name only if it is not bound to an object. */
#define ENTRY(name, which)                                                                                      \
    static PyObject *name##_entry(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *kwnames) { \
        (void)self;                                                                                             \
        return enter(which, args, count, kwnames);                                                              \
    }
#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name##_entry, METH_FASTCALL | METH_KEYWORDS, NULL}
#define OP_ENTRY(name, ...) ENTRY(name, CSM_OP_##name)
#define OP_METHOD(name, ...) METHOD(name),
CSM_OPS(OP_ENTRY)
ENTRY(cross_entropy, CSM_QUICK_CROSS_ENTROPY)
ENTRY(cross_entropy_with_grad, CSM_QUICK_CROSS_ENTROPY_WITH_GRAD)
ENTRY(kl_divergence, CSM_QUICK_KL_DIVERGENCE)
ENTRY(kl_divergence_with_grad, CSM_QUICK_KL_DIVERGENCE_WITH_GRAD)
static PyMethodDef methods[] = {CSM_OPS(OP_METHOD) METHOD(cross_entropy), METHOD(cross_entropy_with_grad),
                                METHOD(kl_divergence), METHOD(kl_divergence_with_grad)};

int csm_quick_set_up(const csm_quick *given) {
    static const char *const names[] = {
#define NAME(name, text) #text,
        CSM_KEYWORDS(NAME)
#undef NAME
    };
    module = *given;
    Py_INCREF(module.ndarray);
    Py_INCREF(module.empty);
    Py_INCREF(module.empty_like);
    Py_INCREF(module.int64);
    Py_INCREF(module.int32);
    for (int i = 0; i < CSM_DTYPE_COUNT; i++) {
        Py_XINCREF(module.dtypes[i]);
        Py_XINCREF(module.scalars[i]);
    }
    for (int k = 0; k < CSM_KEYWORD_COUNT; k++)
        if (!(keywords[k] = PyUnicode_InternFromString(names[k]))) return -1;
    dtype_name = PyUnicode_InternFromString("dtype");
    empty_tuple = PyTuple_New(0);
    return dtype_name && empty_tuple ? 0 : -1;
}

PyObject *csm_quick_function(int which, PyObject *function, PyObject *module_name, PyObject *doc,
                             PyObject *result_type) {
    Py_INCREF(function);
    Py_INCREF(result_type);
    /* If the module is loaded again, replaced functions keep their references: a thread may be about to use them. */
    functions[which] = function;
    result_types[which] = result_type;
    methods[which].ml_doc = PyUnicode_AsUTF8AndSize(doc, NULL);
    if (!methods[which].ml_doc) return NULL;
    Py_INCREF(doc); /* it owns the bytes of ml_doc */
    return PyCFunction_NewEx(&methods[which], NULL, module_name);
}
