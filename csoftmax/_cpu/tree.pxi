# Trees of logistic decisions. Arrays are contiguous and of the dtypes that the arguments name; the classes in
# csoftmax._learn.hierarchical check them. Included by binding.pyx.


cdef void *_data_of(array) except? NULL:
    # as _address, and faster: a step of training passes many arrays
    cdef Py_buffer buffer
    PyObject_GetBuffer(array, &buffer, PyBUF_STRIDED_RO)
    cdef void *data = buffer.buf
    PyBuffer_Release(&buffer)
    return data


cdef class TreeShape:
    """A binary tree, with the arrays that drivers read: children, and from `trace` parents, order and depths."""

    cdef csm_tree tree
    cdef readonly object child, leaf_parent, node_parent, order, depth

    def __init__(self, size_t classes, int64_t root, child):
        """child: int32 (classes - 1, 2), where each node but the root, and each ~leaf, is an element exactly once."""
        nodes = classes - 1
        self.child, self.order, self.depth = child, _empty(nodes, "int32"), _empty(classes, "int32")
        self.leaf_parent, self.node_parent = _empty(classes, "uint32"), _empty(nodes, "uint32")
        self.tree.classes = classes
        self.tree.root = root
        self.tree.child = <const int32_t *>_data_of(self.child)
        self.tree.leaf_parent = <uint32_t *>_data_of(self.leaf_parent)
        self.tree.node_parent = <uint32_t *>_data_of(self.node_parent)
        self.tree.order = <int32_t *>_data_of(self.order)
        self.tree.depth = <int32_t *>_data_of(self.depth)

    def trace(self):
        """Fill the arrays; return the number of nodes that the root reaches."""
        node_depth = _empty(max(self.tree.classes - 1, 1), "int32")
        cdef int32_t *depth = <int32_t *>_data_of(node_depth)
        cdef size_t reached
        with nogil:
            reached = csm_tree_trace(&self.tree, depth)
        return reached

    def sums(self, weights):
        """Sums of weights (float64) of the leaves below both sides of each node, (classes - 1, 2)."""
        sums = _empty((self.tree.classes - 1, 2), "float64")
        cdef const double *given = <const double *>_data_of(weights)
        cdef double *to = <double *>_data_of(sums)
        with nogil:
            csm_tree_sums(&self.tree, given, to)
        return sums


def huffman(weights, classes):
    """The children of Huffman's tree of ascending weights (float64) of classes (int64); the root is node 0."""
    cdef size_t n = len(weights)
    child, sums = _empty((n - 1, 2), "int32"), _empty(max(n - 1, 1), "float64")
    cdef const double *given = <const double *>_data_of(weights)
    cdef const int64_t *leaves = <const int64_t *>_data_of(classes)
    cdef int32_t *to = <int32_t *>_data_of(child)
    cdef double *scratch = <double *>_data_of(sums)
    with nogil:
        csm_tree_huffman(n, given, leaves, to, scratch)
    return child


cdef class TreeCall:
    """Features, theta (nodes, D), the bias of the nodes or None, and what every driver needs."""

    cdef csm_tree_call call
    cdef int dtype
    cdef object arrays

    def __init__(self, int dtype, TreeShape shape, theta, bias, x, double temperature, num_threads):
        nodes = shape.tree.classes - 1
        # the kernels read rows by the numbers of the tree's nodes, wherever that leads
        if theta.shape != (nodes, x.shape[1]) or (bias is not None and bias.shape != (nodes,)):
            of_bias = None if bias is None else bias.shape
            raise ValueError(f"theta has shape {theta.shape}, bias {of_bias}; the tree has {nodes} nodes, x has shape "
                             f"{x.shape}")
        self.arrays = shape, theta, bias, x
        self.dtype = dtype
        self.call.tree = &shape.tree
        self.call.theta = _data_of(theta)
        self.call.bias = _data_of(bias) if bias is not None else NULL
        self.call.x = _data_of(x)
        self.call.n, self.call.d = x.shape[0], x.shape[1]
        self.call.temperature = temperature
        self.call.threads = _threads(num_threads)
        self.call.interrupt = _check_signals

    def log_proba(self, out):
        """Log-probabilities of all classes, float64 (n, classes)."""
        cdef double *to = <double *>_data_of(out)
        cdef cpu.csm_status status
        with nogil:
            status = csm_run_tree_log_proba(self.dtype, csm_current_table(), &self.call, to)
        _raise(status)

    def topk(self, size_t k, values, indices, evaluated):
        """The k best classes: values float64 and indices int64 (n, k), and the nodes evaluated int64 (n)."""
        cdef double *best = <double *>_data_of(values)
        cdef int64_t *at = <int64_t *>_data_of(indices)
        cdef int64_t *nodes = <int64_t *>_data_of(evaluated)
        cdef cpu.csm_status status
        with nogil:
            status = csm_run_tree_topk(self.dtype, csm_current_table(), &self.call, k, best, at, nodes)
        _raise(status)

    def walk(self, rows, uniforms, places):
        """Move places (int64) down by a level for each column of uniforms (float64); rows: the row of x of each.

        Returns False if a logit is NaN.
        """
        cdef csm_tree_call call = self.call
        cdef size_t levels = uniforms.shape[1]
        cdef const int64_t *of_row = <const int64_t *>_data_of(rows)
        cdef const double *given = <const double *>_data_of(uniforms)
        cdef int64_t *to = <int64_t *>_data_of(places)
        cdef cpu.csm_status status
        call.n = len(places)
        with nogil:
            status = csm_run_tree_walk(self.dtype, csm_current_table(), &call, of_row, levels, given, to)
        if status == cpu.CSM_NO_MASS:
            return False
        _raise(status)
        return True


cdef class TreeLoss:
    """The losses of labels, and the gradients and steps that follow from them."""

    cdef TreeCall call
    cdef csm_tree_loss terms
    cdef csm_tree_groups groups
    cdef readonly object loss, grad_x
    cdef object arrays

    def __init__(self, TreeCall call, labels, offsets, scale, upstream, double clip_norm, double clip_value,
                 bint is_rounded, bint gradient):
        """labels int64, -1 for rows that take no part; offsets int64: of the entries of their paths, and the end.

        scale and upstream are float64 or None. is_rounded: losses are rounded to the dtype; else negative losses,
        log-probabilities, are in float64.
        """
        cdef size_t total = offsets[-1]
        name = "float64" if call.dtype == CSM_DTYPE_f64 else "float32"
        ids, codes, g = _empty(total, "int64"), _empty(total, "uint8"), _empty(total, name)
        self.call = call
        self.loss = _empty(call.call.n, "float64")
        self.grad_x = _empty((call.call.n, call.call.d), name) if gradient else None
        self.arrays = [labels, offsets, scale, upstream, ids, codes, g]
        self.terms.labels = <const int64_t *>_data_of(labels)
        self.terms.offsets = <const int64_t *>_data_of(offsets)
        self.terms.scale = <const double *>_data_of(scale) if scale is not None else NULL
        self.terms.upstream = <const double *>_data_of(upstream) if upstream is not None else NULL
        self.terms.clip_norm, self.terms.clip_value = clip_norm, clip_value
        self.terms.is_rounded = is_rounded
        self.terms.ids = <int64_t *>_data_of(ids)
        self.terms.codes = <uint8_t *>_data_of(codes)
        self.terms.g = _data_of(g)
        self.terms.grad_x = _data_of(self.grad_x) if gradient else NULL
        self.terms.loss = <double *>_data_of(self.loss)
        if gradient:
            keys, rows = _empty(2 * total, "uint64"), _empty(total, "uint32")
            self.arrays += [keys, rows]
            self.terms.keys = <uint64_t *>_data_of(keys)
            self.terms.rows = <uint32_t *>_data_of(rows)

    def run(self):
        """Compute losses and, with `gradient`, the gradient of x."""
        cdef cpu.csm_status status
        with nogil:
            status = csm_run_tree_loss(self.call.dtype, csm_current_table(), &self.call.call, &self.terms)
        _raise(status)

    def _group(self):
        """Sort the entries by node; return the distinct nodes."""
        cdef size_t total = len(self.arrays[4])
        arrays = [_empty(total, "int64"), _empty(total + 1, "int64"), _empty(total, "int64"),
                  _empty(total, self.arrays[6].dtype)]
        self.arrays += arrays
        self.groups.nodes = <int64_t *>_data_of(arrays[0])
        self.groups.starts = <int64_t *>_data_of(arrays[1])
        self.groups.examples = <int64_t *>_data_of(arrays[2])
        self.groups.g = _data_of(arrays[3])
        with nogil:
            csm_tree_group(&self.call.call, &self.terms, &self.groups)
        return arrays[0][:self.groups.count]

    cdef _finish(self, csm_tree_rows *rows):
        cdef cpu.csm_status status
        rows.groups = &self.groups
        with nogil:
            status = csm_run_tree_rows(self.call.dtype, csm_current_table(), &self.call.call, rows)
        _raise(status)

    def gradients(self, bint has_bias):
        """The nodes that have a gradient, ascending, the gradients of their rows and of their biases, or None."""
        cdef csm_tree_rows rows
        memset(&rows, 0, sizeof(rows))
        nodes = self._group()
        values = _empty((len(nodes), self.call.call.d), self.arrays[6].dtype)
        bias = _empty(len(nodes), self.arrays[6].dtype) if has_bias else None
        rows.values = _data_of(values)
        rows.bias_values = _data_of(bias) if has_bias else NULL
        self._finish(&rows)
        return nodes, values, bias

    def step(self, int kind, double learning_rate, theta, bias, frozen):
        """Take a step of an optimiser of OPTIMIZERS: all of it, or, on an error, nothing.

        theta and bias: the array, its penalty, and its state as `run_row_update` takes it; bias may be None. frozen:
        uint8 of all nodes, or None.
        """
        cdef csm_tree_rows rows
        cdef csm_row_update of_theta, of_bias
        memset(&rows, 0, sizeof(rows))
        self._group()
        _set_update(&of_theta, kind, learning_rate, theta, self.call.call.d)
        rows.theta = &of_theta
        if bias is not None:
            _set_update(&of_bias, kind, learning_rate, bias, 1)
            rows.bias = &of_bias
        if frozen is not None:
            rows.frozen = <const uint8_t *>_data_of(frozen)
        self._finish(&rows)


cdef int _set_update(csm_row_update *update, int kind, double learning_rate, given, size_t n) except -1:
    w, penalty, state, second, visits, last, step = given
    memset(update, 0, sizeof(csm_row_update))
    update.kind = kind
    update.learning_rate = learning_rate
    update.penalty = penalty
    update.w = _data_of(w)
    update.n = n
    update.state = _data_of(state) if state is not None else NULL
    update.second = _data_of(second) if second is not None else NULL
    update.visits = <uint32_t *>_data_of(visits) if visits is not None else NULL
    update.last = <int64_t *>_data_of(last) if last is not None else NULL
    update.step = step
    return 0
