# Output layers in int8. A layer is csoftmax._ops.int8.Layer, whose arrays have been checked; others are contiguous, of
# the dtypes that the arguments name. Included by binding.pyx.


cdef void *_address_or_null(array) except? NULL:
    return NULL if array is None else _address(array)


cdef csm_int8_layer _layer_of(layer, num_threads) except *:
    cdef csm_int8_layer c
    c.classes = layer.n_classes
    c.dims = layer.n_features
    c.dtype = layer.dtype
    c.codes = <uint8_t *>_address(layer.codes)
    c.second = <uint8_t *>_address_or_null(layer.second)
    c.scale = <float *>_address(layer.scale)
    c.residual = <float *>_address(layer.residual)
    c.second_residual = <float *>_address_or_null(layer.second_residual)
    c.norm = <float *>_address(layer.norm)
    c.bias = <float *>_address(layer.bias)
    c.exact_bias = <const double *>_address_or_null(layer.exact_bias)
    c.exponent = <const int16_t *>_address(layer.exponent)
    c.w = _address(layer.w)
    c.w_row = layer.w.strides[0]
    c.w_axis = layer.w.strides[1]
    c.ratio = layer.ratio
    c.largest = layer.largest
    c.threads = _threads(num_threads)
    c.interrupt = _check_signals
    c.order = <const int64_t *>_address_or_null(layer.order)
    c.is_biased = layer.is_biased
    c.nibbles = NULL
    if layer.leading is not None and layer.leading.nibbles is not None:
        c.nibbles = <uint8_t *>_address(layer.leading.nibbles)
        c.gap = <float *>_address(layer.leading.gap)
        c.reach = <float *>_address(layer.leading.reach)
        c.part = <uint8_t *>_address(layer.leading.part)
    return c


def run_int8_quantise(layer, w, ids, num_threads):
    """Codes, scales and norms of the rows of w, for the classes ids (int64), or None: all."""
    cdef csm_int8_layer c = _layer_of(layer, num_threads)
    cdef size_t count = w.shape[0]
    cdef const int64_t *at = <const int64_t *>_address_or_null(ids)
    cdef cpu.csm_status status
    c.w = _address(w)
    c.w_row = w.strides[0]
    c.w_axis = w.strides[1]
    with nogil:
        status = csm_run_int8_quantise(csm_current_table(), &c, count, at)
    _raise(status)


def run_int8_nibbles(layer, groups, num_threads):
    """The leading four bits of the codes of groups (int64), or None: all, and what bounds them."""
    cdef csm_int8_layer c = _layer_of(layer, num_threads)
    cdef const int64_t *at = <const int64_t *>_address_or_null(groups)
    cdef size_t count = len(layer.leading.gap) if groups is None else len(groups)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_int8_nibbles(csm_current_table(), &c, count, at)
    _raise(status)


def run_int8_topk(layer, x, size_t k, int limbs, where, indptr, excluded, values, indices, found, rescored,
                  num_threads):
    """The k best classes of each row of x (float64); where: uint8 of one row or one for each; CSR of int64."""
    cdef csm_int8_layer c = _layer_of(layer, num_threads)
    cdef csm_int8_search s
    cdef cpu.csm_status status
    s.queries = x.shape[0]
    s.k = k
    s.x = <const double *>_address(x)
    s.limbs = limbs
    s.where = <const unsigned char *>_address_or_null(where)
    s.where_row = where.shape[1] if where is not None and where.shape[0] != 1 else 0
    s.indptr = <const int64_t *>_address_or_null(indptr)
    s.excluded = <const int64_t *>_address_or_null(excluded)
    s.values = <double *>_address(values)
    s.indices = <int64_t *>_address(indices)
    s.found = <int64_t *>_address(found)
    s.rescored = <int64_t *>_address(rescored)
    with nogil:
        status = csm_run_int8_topk(csm_current_table(), &c, &s)
    _raise(status)


def run_int8_lists(layer, centers, lists, x, size_t k, size_t probes, bint is_exact, size_t limit, where, indptr,
                   excluded, values, indices, found, rescored, certified, scanned, probed, num_threads):
    """The same within lists, of which centers is a layer; lists: begin (int64) and numbers (float64)."""
    cdef csm_int8_layer c = _layer_of(layer, num_threads), means = _layer_of(centers, num_threads)
    cdef csm_int8_search s
    cdef csm_int8_lists some
    cdef cpu.csm_status status
    s.queries = x.shape[0]
    s.k = k
    s.x = <const double *>_address(x)
    s.limbs = 2
    s.where = <const unsigned char *>_address_or_null(where)
    s.where_row = where.shape[1] if where is not None and where.shape[0] != 1 else 0
    s.indptr = <const int64_t *>_address_or_null(indptr)
    s.excluded = <const int64_t *>_address_or_null(excluded)
    s.values = <double *>_address(values)
    s.indices = <int64_t *>_address(indices)
    s.found = <int64_t *>_address(found)
    s.rescored = <int64_t *>_address(rescored)
    begin, radius, largest, typical, spread, along = lists
    some.centers = &means
    some.lists = len(radius)
    some.begin = <const int64_t *>_address(begin)
    some.radius = <const double *>_address(radius)
    some.largest = <const double *>_address(largest)
    some.typical = <const double *>_address(typical)
    some.spread = <const double *>_address(spread)
    some.along = <const double *>_address(along)
    some.probes = probes
    some.is_exact = is_exact
    some.limit = limit
    some.certified = <unsigned char *>_address(certified)
    some.scanned = <int64_t *>_address(scanned)
    some.probed = <int64_t *>_address(probed)
    with nogil:
        status = csm_run_int8_lists(csm_current_table(), &c, &s, &some)
    _raise(status)


def run_int8_scores(layer, x, ids, scores, num_threads):
    """Exact scores (float64) of one query x (float64) for the classes ids (int64), or None: all."""
    cdef csm_int8_layer c = _layer_of(layer, num_threads)
    cdef const double *given = <const double *>_address(x)
    cdef const int64_t *at = <const int64_t *>_address_or_null(ids)
    cdef double *to = <double *>_address(scores)
    cdef size_t count = len(scores)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_int8_scores(csm_current_table(), &c, given, count, at, to)
    _raise(status)


def run_int8_bounds(layer, x, scores, bounds, num_threads):
    """Scores of all classes for one query, and bounds of their errors (float64). Returns that of the query's norm."""
    cdef csm_int8_layer c = _layer_of(layer, num_threads)
    cdef const double *given = <const double *>_address(x)
    cdef double *to = <double *>_address(scores)
    cdef double *errors = <double *>_address(bounds)
    cdef double size = 0
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_int8_bounds(csm_current_table(), &c, given, to, errors, &size)
    _raise(status)
    return size


def run_int8_dots(bint vnni, codes, x, size_t vectors, offset, out):
    """The integer products of one group of 16 classes, for tests; returns whether there is such a kernel."""
    cdef const uint8_t *given = <const uint8_t *>_address(codes)
    cdef const int8_t *a = <const int8_t *>_address(x)
    cdef const int32_t *start = <const int32_t *>_address(offset)
    cdef int32_t *to = <int32_t *>_address(out)
    return csm_run_int8_dots(csm_current_table(), vnni, given, codes.size // 64, a, vectors, start, to) == 0


def run_int8_narrow_dots(codes, x, size_t vectors, offset, scratch, out):
    """The integer products of the leading six bits of one group of 16 classes, for tests."""
    cdef const uint8_t *given = <const uint8_t *>_address(codes)
    cdef const int8_t *a = <const int8_t *>_address(x)
    cdef const int32_t *start = <const int32_t *>_address(offset)
    cdef uint8_t *room = <uint8_t *>_address(scratch)
    cdef int32_t *to = <int32_t *>_address(out)
    csm_run_int8_narrow_dots(csm_current_table(), given, codes.size // 64, a, vectors, start, room, to)


def run_int8_nibble_dots(nibbles, x, int32_t offset, out):
    """The integer products of the leading four bits of one group of 16 classes, for tests."""
    cdef const uint8_t *given = <const uint8_t *>_address(nibbles)
    cdef const int8_t *a = <const int8_t *>_address(x)
    cdef int32_t *to = <int32_t *>_address(out)
    csm_run_int8_nibble_dots(csm_current_table(), given, nibbles.size // 64, a, offset, to)
