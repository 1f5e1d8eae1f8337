/* The public functions of the softmax family as C functions: what must cost little is done here, and everything else by
 * the Python function of the same name, which gets the arguments as they came.
 *
 * Quick are numpy arrays of native floats of any strides, one axis, a temperature that is positive and finite, a number
 * of threads, and an `out` that is C-contiguous as the inputs are, and apart from each or the same.  Nothing is written
 * before all of that is known, no argument is refused here (the Python function has the words for it), and none of them
 * is asked for anything that could run code of its own.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_quick.h"

#include "_pages.h"

#include <float.h>
#include <stdatomic.h>

enum { AXIS, TEMPERATURE, WHERE, OUT, DEVICE, NUM_THREADS, KEEPDIMS, KEYWORDS };
static const char *const names[KEYWORDS] = {"axis", "temperature", "where", "out", "device", "num_threads", "keepdims"};
static PyObject *keywords[KEYWORDS]; /* interned, as those of calls are */
static PyObject *dtype_name, *nothing; /* (): the index of an array's only element */
static csm_quick module;
static _Atomic(PyObject *) functions[CSM_OP_COUNT]; /* those of Python */

static const char has_two[] = {
#define TWO(name, binary, keeps) binary,
    CSM_OPS(TWO)
#undef TWO
};
static const char keeps_axis[] = {
#define KEEPS(name, binary, keeps) keeps,
    CSM_OPS(KEEPS)
#undef KEEPS
};

/* Borrowed references; a keyword is NULL where it is absent or None. */
typedef struct arguments {
    PyObject *array[2], *keyword[KEYWORDS];
} arguments;

static int read_arguments(csm_op op, PyObject *const *args, Py_ssize_t count, PyObject *kwnames, arguments *to) {
    const Py_ssize_t arrays = 1 + has_two[op];
    if (count < arrays || count > arrays + 1) return 0;
    memset(to, 0, sizeof *to);
    for (Py_ssize_t i = 0; i < arrays; i++) to->array[i] = args[i];
    if (count > arrays) to->keyword[AXIS] = args[arrays];
    const Py_ssize_t given = kwnames ? PyTuple_Size(kwnames) : 0;
    for (Py_ssize_t i = 0; i < given; i++) {
        const PyObject *name = PyTuple_GetItem(kwnames, i);
        int k = 0;
        while (k < KEYWORDS && name != keywords[k]) k++;
        if (k == KEYWORDS || to->keyword[k] || k == (keeps_axis[op] ? KEEPDIMS : OUT)) return 0;
        to->keyword[k] = args[count + i];
        if (to->keyword[k] != Py_None) continue;
        if (k == AXIS || k == TEMPERATURE) return 0;
        to->keyword[k] = NULL;
    }
    return !to->keyword[WHERE] && !to->keyword[DEVICE] && (!to->keyword[KEEPDIMS] || to->keyword[KEEPDIMS] == Py_False);
}

/* 0: not an int (0, nothing) or a float, or out of range. */
static int read_temperature(PyObject *given, double *t) {
    *t = 1;
    if (!given) return 1;
    if (PyFloat_CheckExact(given)) *t = PyFloat_AsDouble(given);
    else if (PyLong_CheckExact(given)) *t = PyLong_AsDouble(given);
    else return 0;
    if (*t > 0 && *t <= DBL_MAX) return 1;
    PyErr_Clear(); /* an int beyond all doubles */
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

/* Nothing, or an int from 1 on. */
static int is_count(PyObject *given) {
    int overflow;
    return !given || (PyLong_CheckExact(given) && PyLong_AsLongAndOverflow(given, &overflow) >= 1 && !overflow);
}

/* The dtype of a numpy array, or -1 for one that is not quick, or another object.  Native dtypes are mostly the same
 * objects; *other: it is one that is equal, as those of arrays that were pickled are. */
static int dtype_of(PyObject *array, int *other) {
    *other = 0;
    if ((PyObject *)Py_TYPE(array) != module.ndarray) return -1;
    PyObject *dtype = PyObject_GetAttr(array, dtype_name);
    int i = CSM_DTYPE_COUNT;
    if (dtype)
        for (i = 0; i < CSM_DTYPE_COUNT && dtype != module.dtypes[i];) i++;
    if (dtype && i == CSM_DTYPE_COUNT) {
        *other = 1;
        for (i = 0; i < CSM_DTYPE_COUNT; i++)
            if (module.dtypes[i] && PyObject_RichCompareBool(dtype, module.dtypes[i], Py_EQ) == 1) break;
    }
    Py_XDECREF(dtype);
    PyErr_Clear();
    return i < CSM_DTYPE_COUNT ? i : -1;
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

int csm_are_apart(const Py_buffer *a, const Py_buffer *b) {
    const char *x = a->buf, *y = b->buf;
    return x >= y + b->len || y >= x + a->len;
}

static int same_shape(const Py_buffer *a, const Py_buffer *b) {
    if (a->ndim != b->ndim) return 0;
    for (int i = 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i]) return 0;
    return 1;
}

int csm_may_write(const Py_buffer *to, const Py_buffer *from) {
    return !to->readonly && to->itemsize == from->itemsize && same_shape(to, from) && csm_is_plain(to) &&
           csm_is_plain(from) && (to->buf == from->buf || csm_are_apart(to, from));
}

/* Arrays in rows that are not large are made without asking what NumPy thinks is like them, which costs half a small
 * call.  exactly: with the very dtype of x. */
static PyObject *new_result(PyObject *x, const Py_buffer *like, int without, int dtype, int exactly) {
    if (without < 0 && (exactly || like->len >= CSM_LARGE || !csm_is_plain(like)))
        return PyObject_CallFunctionObjArgs(module.empty_like, x, NULL);
    PyObject *shape = PyTuple_New(like->ndim - (without >= 0)), *result = NULL;
    for (int i = 0, to = 0; shape && i < like->ndim; i++) {
        if (i == without) continue;
        PyObject *length = PyLong_FromSsize_t(like->shape[i]);
        if (!length || PyTuple_SetItem(shape, to++, length) != 0) Py_CLEAR(shape);
    }
    if (shape) result = PyObject_CallFunctionObjArgs(module.empty, shape, module.dtypes[dtype], NULL);
    Py_XDECREF(shape);
    return result;
}

/* Everything along `axis` but the axis itself; axis < 0: there is none. */
static void describe(const Py_buffer *b, int axis, csm_view *view) {
    view->data = b->buf;
    view->axis_stride = axis < 0 ? 0 : b->strides[axis];
    for (int i = 0, to = 0; i < b->ndim; i++)
        if (i != axis) view->strides[to++] = b->strides[i];
}

static csm_status compute(csm_op op, csm_dtype dtype, const Py_buffer *b, const Py_buffer *y, int axis,
                          csm_options *options) {
    csm_shape shape;
    csm_view view[3];
    const int two = has_two[op];
    size_t elements = 1;
    shape.ndim = 0;
    for (int i = 0; i < b->ndim; i++) {
        if (i != axis) shape.shape[shape.ndim++] = (size_t)b->shape[i];
        elements *= (size_t)b->shape[i];
    }
    shape.n = (size_t)b->shape[axis];
    describe(b, axis, &view[0]);
    if (two) describe(b + 1, axis, &view[1]);
    describe(y, keeps_axis[op] ? axis : -1, &view[2]);
    if (elements < CSM_KEEP_GIL)
        return csm_run(op, dtype, csm_current_table(), &shape, &view[0], two ? &view[1] : NULL, &view[2], options);
    options->interrupt = module.interrupt;
    PyThreadState *state = PyEval_SaveThread();
    csm_status status =
        csm_run(op, dtype, csm_current_table(), &shape, &view[0], two ? &view[1] : NULL, &view[2], options);
    PyEval_RestoreThread(state);
    return status;
}

/* A new reference; NULL with an exception, or without one where the call is not quick. */
static PyObject *quick(csm_op op, const arguments *given) {
    const int arrays = 1 + has_two[op];
    Py_buffer buffer[3]; /* the arrays, and the result behind them */
    PyObject *out = given->keyword[OUT], *result = NULL;
    csm_options options = csm_default_options();
    if (!read_temperature(given->keyword[TEMPERATURE], &options.temperature) || !is_count(given->keyword[NUM_THREADS]))
        return NULL;
    int other, unused;
    const int dtype = dtype_of(given->array[0], &other);
    if (dtype < 0 || (out && dtype_of(out, &unused) != dtype) ||
        (arrays > 1 && dtype_of(given->array[1], &unused) != dtype))
        return NULL;

    int held = 0;
    while (held < arrays && PyObject_GetBuffer(given->array[held], &buffer[held], PyBUF_STRIDED_RO) == 0) held++;
    const int axis = held == arrays && buffer[0].ndim > 0 ? read_axis(given->keyword[AXIS], buffer[0].ndim) : -1;
    if (axis < 0 || buffer[0].len == 0 || (arrays > 1 && !same_shape(&buffer[0], &buffer[1]))) goto end;
    options.threads = module.threads(given->keyword[NUM_THREADS] ? given->keyword[NUM_THREADS] : Py_None);
    if (options.threads < 0) goto end;

    result = out ? out : new_result(given->array[0], &buffer[0], keeps_axis[op] ? -1 : axis, dtype, other);
    if (!result) goto end;
    if (out) Py_INCREF(out);
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
        result = PyObject_GetItem(array, nothing);
        Py_DECREF(array);
    }
end:
    while (held-- > 0) PyBuffer_Release(&buffer[held]);
    return result;
}

static PyObject *slow(csm_op op, PyObject *const *args, Py_ssize_t count, PyObject *kwnames) {
    const Py_ssize_t given = kwnames ? PyTuple_Size(kwnames) : 0;
    PyObject *positional = PyTuple_New(count), *named = given ? PyDict_New() : NULL, *result = NULL;
    if (!positional || (given && !named)) goto end;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(args[i]);
        if (PyTuple_SetItem(positional, i, args[i]) != 0) goto end;
    }
    for (Py_ssize_t i = 0; i < given; i++)
        if (PyDict_SetItem(named, PyTuple_GetItem(kwnames, i), args[count + i]) != 0) goto end;
    result = PyObject_Call(functions[op], positional, named);
end:
    Py_XDECREF(positional);
    Py_XDECREF(named);
    return result;
}

static PyObject *enter(csm_op op, PyObject *const *args, Py_ssize_t count, PyObject *kwnames) {
    arguments given;
    PyObject *result = read_arguments(op, args, count, kwnames, &given) ? quick(op, &given) : NULL;
    return result || PyErr_Occurred() ? result : slow(op, args, count, kwnames);
}

/* One C function an operation: pickle finds a function by its name only if it is bound to nothing. */
#define ENTRY(name, binary, keeps)                                                                              \
    static PyObject *name##_entry(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *kwnames) { \
        (void)self;                                                                                             \
        return enter(CSM_OP_##name, args, count, kwnames);                                                      \
    }
CSM_OPS(ENTRY)
#define METHOD(name, binary, keeps) \
    {#name, (PyCFunction)(void (*)(void))name##_entry, METH_FASTCALL | METH_KEYWORDS, NULL},
static PyMethodDef methods[] = {CSM_OPS(METHOD)};

int csm_quick_set_up(const csm_quick *given) {
    module = *given;
    Py_INCREF(module.ndarray);
    Py_INCREF(module.empty);
    Py_INCREF(module.empty_like);
    for (int i = 0; i < CSM_DTYPE_COUNT; i++) Py_XINCREF(module.dtypes[i]);
    for (int k = 0; k < KEYWORDS; k++)
        if (!(keywords[k] = PyUnicode_InternFromString(names[k]))) return -1;
    dtype_name = PyUnicode_InternFromString("dtype");
    nothing = PyTuple_New(0);
    return dtype_name && nothing ? 0 : -1;
}

PyObject *csm_quick_function(csm_op op, PyObject *function, PyObject *module_name, PyObject *doc) {
    Py_INCREF(function);
    functions[op] = function; /* that of a module that is loaded again stays: a thread may be about to call it */
    methods[op].ml_doc = PyUnicode_AsUTF8AndSize(doc, NULL);
    if (!methods[op].ml_doc) return NULL;
    Py_INCREF(doc); /* it holds these bytes */
    return PyCFunction_NewEx(&methods[op], NULL, module_name);
}
