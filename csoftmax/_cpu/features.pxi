# Sparse features: scores of labels, and the gradient of their weights. Included by binding.pyx.

cdef void *_data(array) except? NULL:
    # the memory of a contiguous array; NULL for None
    return NULL if array is None else <void *><uintptr_t>array.ctypes.data


cdef int _describe_pairs(csm_pairs *pairs, offsets, labels, weights, row, rows, size_t n_labels) except -1:
    pairs.labels = n_labels
    pairs.width = (n_labels + CSM_FEATURE_LANES - 1) // CSM_FEATURE_LANES * CSM_FEATURE_LANES
    pairs.offsets = <const int64_t *>_data(offsets)
    pairs.label = <const uint16_t *>_data(labels)
    pairs.weight = <double *>_data(weights)
    pairs.row = <const int32_t *>_data(row)
    pairs.rows = <double *>_data(rows)
    return 0


cdef int _describe_entries(csm_entries *entries, indptr, indices, values) except -1:
    entries.begin = <const int64_t *>_data(indptr)
    entries.index = <const int32_t *>_data(indices)
    entries.value = <const float *>_data(values)
    return 0


def run_emissions(indptr, attributes, values, offsets, labels, weights, row, rows, emissions, size_t n_labels,
                  bint fills, num_threads):
    """Scores (tokens, labels) from the weights of pairs; all arrays are contiguous, of the dtypes of job.h.

    indptr, attributes and values are the entries by token; values may be None. fills: fill `rows` from the weights.
    """
    cdef csm_pairs pairs
    cdef csm_entries entries
    cdef cpu.csm_status status
    cdef int threads = _threads(num_threads)
    cdef size_t attribute_count = len(row) if fills else 0, tokens = len(indptr) - 1
    cdef double *to = <double *>_data(emissions)
    _describe_pairs(&pairs, offsets, labels, weights, row, rows, n_labels)
    _describe_entries(&entries, indptr, attributes, values)
    with nogil:
        status = csm_run_emissions(csm_current_table(), &pairs, attribute_count, &entries, tokens, to, threads,
                                   _check_signals)
    _raise(status)


def run_feature_gradient(blocks, indptr, tokens, values, grad, offsets, labels, row, result, size_t n_labels,
                         num_threads):
    """Gradient of the weights of pairs, from that of the scores; FEATURE_LANES doubles follow `grad` in its memory.

    indptr, tokens and values are the entries by attribute; blocks are the edges of groups of attributes.
    """
    cdef csm_pairs pairs
    cdef csm_entries entries
    cdef cpu.csm_status status
    cdef int threads = _threads(num_threads)
    cdef size_t count = len(blocks) - 1
    cdef const int64_t *edges = <const int64_t *>_data(blocks)
    cdef const double *by = <const double *>_data(grad)
    _describe_pairs(&pairs, offsets, labels, result, row, None, n_labels)
    _describe_entries(&entries, indptr, tokens, values)
    with nogil:
        status = csm_run_feature_gradient(csm_current_table(), &pairs, edges, count, &entries, by, threads,
                                          _check_signals)
    _raise(status)
