# Class hashing. A family is uint64 of the shape (3, R); arrays are contiguous. Included by binding.pyx.


cdef csm_hash_call _hash_call(family, uint64_t buckets, ids, num_threads) except *:
    cdef csm_hash_call c
    cdef size_t hashes = family.shape[1]
    cdef const uint64_t *numbers = <const uint64_t *>_address(family)
    memset(&c, 0, sizeof(c))
    c.hash.hashes = hashes
    c.hash.buckets = buckets
    c.hash.first = numbers
    c.hash.second = numbers + hashes
    c.hash.add = numbers + 2 * hashes
    c.ids = <const uint64_t *>_address_or_null(ids)
    c.divisor = 1
    c.threads = _threads(num_threads)
    c.interrupt = _check_signals
    return c


cdef csm_hash_call _hash_call_of(family, tables, size_t count, ids, rule, num_threads) except *:
    cdef csm_hash_call c = _hash_call(family, tables.shape[2], ids, num_threads)
    is_least, divisor, prior = rule
    c.rows = tables.shape[0]
    c.tables = tables.shape[1]
    c.table = <const float *>_address(tables)
    c.count = count
    c.ids_row = count if ids is not None and ids.ndim == 2 else 0
    c.is_least = is_least
    c.divisor = divisor
    c.prior = <const float *>_address_or_null(prior)
    return c


def run_hash_buckets(family, buckets, ids, out, num_threads):
    """Buckets (n, R) in int64 of ids (n,), of 64 bits."""
    cdef csm_hash_call c = _hash_call(family, buckets, ids, num_threads)
    cdef int64_t *to = <int64_t *>_address(out)
    cdef cpu.csm_status status
    c.count = len(ids)
    with nogil:
        status = csm_run_hash_buckets(csm_current_table(), &c, to)
    _raise(status)


def run_hash_scores(family, tables, uint64_t begin, ids, rule, out, num_threads):
    """Scores (n, m) in float32 from tables (n, R or 1, B) in float32, of classes ids, (m,) or (n, m).

    ids None: the m classes from begin on, a multiple of 1024.
    rule: whether the least counts instead of the sum, the divisor, and the prior of each class (float32) or None.
    """
    cdef csm_hash_call c = _hash_call_of(family, tables, out.shape[1], ids, rule, num_threads)
    cdef float *to = <float *>_address(out)
    cdef cpu.csm_status status
    c.begin = begin
    with nogil:
        status = csm_run_hash_scores(csm_current_table(), &c, to)
    _raise(status)


def run_hash_topk(family, tables, size_t count, ids, rule, values, places, num_threads):
    """The k best of count classes: values (n, k) in float32, and their places among the classes in int64."""
    cdef csm_hash_call c = _hash_call_of(family, tables, count, ids, rule, num_threads)
    cdef float *best = <float *>_address(values)
    cdef int64_t *to = <int64_t *>_address(places)
    cdef size_t k = values.shape[1]
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_hash_topk(csm_current_table(), &c, k, best, to)
    _raise(status)
