# Losses over sampled classes. Matrices have contiguous rows, and their dtypes are those that the arguments name; the
# callers check them. Included by binding.pyx.


cdef void *_optional(array) except? NULL:
    return NULL if array is None else _address(array)


def run_row_dots(int dtype, x, w, ids, out, num_threads):
    """out[i, j] = x[i] . w[ids[i, j]]; ids (int64) of one row are the same for all. out has the compute type."""
    cdef cpu.csm_options options = _options(num_threads)
    cdef size_t n = out.shape[0], m = out.shape[1], d = x.shape[1]
    cdef ptrdiff_t x_step = x.strides[0], w_step = w.strides[0], out_step = out.strides[0]
    cdef ptrdiff_t ids_step = ids.strides[0] // 8 if ids.shape[0] != 1 else 0
    cdef const void *given = _address(x)
    cdef const void *rows = _address(w)
    cdef const int64_t *numbers = <const int64_t *>_address(ids)
    cdef void *to = _address(out)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_row_dots(dtype, csm_current_table(), n, m, d, given, x_step, rows, w_step, numbers, ids_step,
                                  to, out_step, &options)
    _raise(status)


def run_row_sums(int dtype, offsets, g, w, ids, start, start_ids, out, num_threads):
    """out[i] = start + sum of g[e] w[ids[e]] over e from offsets[i] to offsets[i + 1] - 1.

    g, start and out have the compute type. start is out itself; or None, 0; or a matrix of which start_ids (int64) has
    a row for each i, -1 for 0.
    """
    cdef cpu.csm_options options = _options(num_threads)
    cdef size_t n = out.shape[0], d = out.shape[1]
    cdef ptrdiff_t w_step = w.strides[0], out_step = out.strides[0]
    cdef ptrdiff_t start_step = 0 if start is None else start.strides[0]
    cdef const int64_t *limits = <const int64_t *>_address(offsets)
    cdef const void *factors = _address(g)
    cdef const void *rows = _address(w)
    cdef const int64_t *numbers = <const int64_t *>_address(ids)
    cdef const void *begin = _optional(start)
    cdef const int64_t *begin_ids = <const int64_t *>_optional(start_ids)
    cdef void *to = _address(out)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_row_sums(dtype, csm_current_table(), n, limits, d, factors, rows, w_step, numbers, begin,
                                  start_step, begin_ids, to, out_step, &options)
    _raise(status)


def run_row_add(int dtype, ids, values, double scale, w, num_threads):
    """w[ids] += scale * values, all in the dtype; ids (int64) are distinct."""
    cdef cpu.csm_options options = _options(num_threads)
    cdef size_t n = values.shape[0], d = values.shape[1]
    cdef ptrdiff_t values_step = values.strides[0], w_step = w.strides[0]
    cdef const int64_t *numbers = <const int64_t *>_address(ids)
    cdef const void *given = _address(values)
    cdef void *to = _address(w)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_row_add(dtype, csm_current_table(), n, d, numbers, given, values_step, scale, to, w_step,
                                 &options)
    _raise(status)


def sort_rows(keys, size_t bins):
    """Counting sort of int64 keys below `bins`: offsets (bins + 1) and the positions of equal keys, ascending."""
    cdef size_t count = len(keys)
    offsets, order = _empty(bins + 1, "int64"), _empty(count, "int64")
    cdef const int64_t *given = <const int64_t *>_address(keys)
    cdef int64_t *limits = <int64_t *>_address(offsets)
    cdef int64_t *to = <int64_t *>_address(order)
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_sort_rows(count, given, bins, limits, to)
    _raise(status)
    return offsets, order


def group_rows(keys, size_t columns, bint has_source):
    """Distinct int64 keys >= 0, ascending; offsets of each; positions of equal keys, ascending; their sources or None.

    With has_source, keys are n x columns numbers and then n, of one more column: positions are those in
    n x (columns + 1), in the order of the keys, and sources their rows.
    """
    cdef size_t count = len(keys), found
    rows, offsets, order = _empty(count, "int64"), _empty(count + 1, "int64"), _empty(count, "int64")
    source = _empty(count, "int64") if has_source else None
    cdef const int64_t *given = <const int64_t *>_address(keys)
    cdef int64_t *distinct = <int64_t *>_address(rows)
    cdef int64_t *limits = <int64_t *>_address(offsets)
    cdef int64_t *to = <int64_t *>_address(order)
    cdef int64_t *of_row = <int64_t *>_optional(source)
    cdef cpu.csm_status status
    with nogil:
        status = csm_group_rows(count, given, columns, distinct, limits, to, of_row, &found)
    _raise(status)
    return rows[:found], offsets[: found + 1], order, source


def split_terms(offsets, order, size_t m):
    """Groups of positions below m, those of ids, and of others, those of labels, each in order.

    Returns the first id of each group (-1: none), the offsets and positions of labels, less m, the offsets and
    positions of ids, and the group of each position.
    """
    cdef size_t count = len(order), n = len(offsets) - 1, r, i, at, ids = 0, labels = 0
    first, group = _empty(n, "int64"), _empty(count, "int64")
    label_offsets, label_order = _empty(n + 1, "int64"), _empty(count - m, "int64")
    id_offsets, id_order = _empty(n + 1, "int64"), _empty(m, "int64")
    cdef const int64_t *limits = <const int64_t *>_address(offsets)
    cdef const int64_t *given = <const int64_t *>_address(order)
    cdef int64_t *start = <int64_t *>_address(first)
    cdef int64_t *group_of = <int64_t *>_address(group)
    cdef int64_t *label_limits = <int64_t *>_address(label_offsets)
    cdef int64_t *label_at = <int64_t *>_address(label_order)
    cdef int64_t *id_limits = <int64_t *>_address(id_offsets)
    cdef int64_t *id_at = <int64_t *>_address(id_order)
    with nogil:
        for r in range(n):
            label_limits[r] = <int64_t>labels
            id_limits[r] = <int64_t>ids
            start[r] = -1
            for i in range(<size_t>limits[r], <size_t>limits[r + 1]):
                at = <size_t>given[i]
                group_of[at] = <int64_t>r
                if at < m:
                    if start[r] < 0:
                        start[r] = <int64_t>at
                    id_at[ids] = <int64_t>at
                    ids += 1
                else:
                    label_at[labels] = <int64_t>(at - m)
                    labels += 1
        label_limits[n] = <int64_t>labels
        id_limits[n] = <int64_t>ids
    return first, label_offsets, label_order, id_offsets, id_order, group


def run_sampled_loss(int dtype, bint is_softmax, x, w, ids, labels, u, terms, label_terms, hits, counts, scale,
                     upstream, loss, sums, grad_x, bint gradient, double temperature, double clip_norm,
                     double clip_value, num_threads):
    """Losses (float64) of rows over negatives and, last, the label; with `gradient`, u becomes the gradient of logits.

    x and w are in storage; ids (int64) are the gathered rows of w of each row, or None where u holds the products with
    shared negatives; labels are rows of w. terms, of the compute type, with one row for all or one for each, are added
    to the logits, label_terms to those of labels. hits: None to keep hits, else the shared negatives ascending and
    their columns or None, or () for gathered ones. counts, sums (of derivatives, a result), for logistic terms only,
    scale and upstream are float64 or None. The gradient of x is added to grad_x, for gathered negatives, or is None.
    """
    cdef csm_sampled_loss c
    cdef cpu.csm_status status
    memset(&c, 0, sizeof(c))
    c.is_softmax = is_softmax
    c.n = u.shape[0]
    c.m = u.shape[1] - 1
    c.d = x.shape[1]
    c.x = _address(x)
    c.w = _address(w)
    c.x_step = x.strides[0]
    c.w_step = w.strides[0]
    c.ids = <const int64_t *>_optional(ids)
    c.labels = <const int64_t *>_address(labels)
    c.u = _address(u)
    c.u_step = u.strides[0]
    c.terms = _optional(terms)
    if terms is not None and terms.shape[0] != 1:
        c.terms_step = terms.strides[0]
    c.label_terms = _optional(label_terms)
    c.masks_hits = hits is not None
    if hits:
        c.sorted = <const int64_t *>_address(hits[0])
        c.order = <const int64_t *>_optional(hits[1])
    c.counts = <const double *>_optional(counts)
    if counts is not None and counts.shape[0] != 1:
        c.counts_step = counts.shape[1]
    c.scale = <const double *>_optional(scale)
    c.upstream = <const double *>_optional(upstream)
    c.loss = <double *>_address(loss)
    c.sums = <double *>_optional(sums)
    if grad_x is not None:
        c.grad_x = _address(grad_x)
        c.grad_x_step = grad_x.strides[0]
    c.options = cpu.csm_default_logistic_options()
    c.options.gradient = gradient
    c.options.temperature = temperature
    c.options.clip_norm = clip_norm
    c.options.clip_value = clip_value
    c.options.threads = _threads(num_threads)
    c.options.interrupt = _check_signals
    with nogil:
        status = csm_run_sampled_loss(dtype, csm_current_table(), &c)
    _raise(status)


def run_logistic_loss(int dtype, u, counts, scale, upstream, loss, bint gradient, double temperature,
                      double clip_norm, double clip_value, num_threads):
    """Losses (float64) of rows of logistic terms, the target last; with `gradient`, u becomes their gradient.

    counts, float64, has one row for all, one for each, or is None; scale and upstream are float64 for each row or None.
    """
    cdef cpu.csm_logistic_options options = cpu.csm_default_logistic_options()
    cdef size_t n = u.shape[0], m = u.shape[1] - 1
    cdef ptrdiff_t step = u.strides[0]
    cdef void *terms = _address(u)
    cdef const double *c = <const double *>_address(counts) if counts is not None else NULL
    cdef size_t counts_step = counts.shape[1] if counts is not None and counts.shape[0] != 1 else 0
    cdef const double *s = <const double *>_address(scale) if scale is not None else NULL
    cdef const double *up = <const double *>_address(upstream) if upstream is not None else NULL
    cdef double *to = <double *>_address(loss)
    cdef cpu.csm_status status
    options.gradient = gradient
    options.temperature = temperature
    options.clip_norm = clip_norm
    options.clip_value = clip_value
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    with nogil:
        status = csm_run_logistic_loss(dtype, csm_current_table(), n, m, terms, step, c, counts_step, s, up, to,
                                       &options)
    _raise(status)
