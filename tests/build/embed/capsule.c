/* csoftmax from an extension module written in C, through the capsule csoftmax._C_API, without linking. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <csoftmax_api.h>

static const csm_api *csm;

/* logsumexp(buffer of doubles) */
static PyObject *logsumexp(PyObject *self, PyObject *array) {
    (void)self;
    Py_buffer buffer;
    if (PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE) != 0) return NULL;
    csm_shape shape = {.n = (size_t)buffer.len / sizeof(double), .ndim = 0};
    double result;
    csm_view x = csm_contiguous(&shape, shape.n, buffer.buf, sizeof(double));
    csm_view y = csm_contiguous(&shape, 1, &result, sizeof(double));
    csm_status status = csm->logsumexp_f64(&shape, &x, &y, NULL);
    PyBuffer_Release(&buffer);
    if (status != CSM_OK) return PyErr_Format(PyExc_ValueError, "csoftmax: %s", csm->status_text(status));
    return PyFloat_FromDouble(result);
}

static PyMethodDef methods[] = {{"logsumexp", logsumexp, METH_O, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "capsule", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_capsule(void) {
    csm = csm_import();
    return csm ? PyModule_Create(&module) : NULL;
}
