# Shards of the classes of rows: records, their merge, and results from merged records. Included by binding.pyx.
# Records, maxima of blocks and what is merged are contiguous; dtype is one of DTYPES, kind one of SHARD_KINDS.

cdef extern from "core/extension.h" nogil:
    enum:
        CSM_SAMPLE_FIRST_SELECTED
        CSM_SAMPLE_MANY_SELECTED
        CSM_SAMPLE_MANY_PART
    ctypedef enum csm_sample_stage:
        CSM_SAMPLE_STAGE_MASSES
        CSM_SAMPLE_STAGE_NUCLEUS
        CSM_SAMPLE_STAGE_DRAWS
    ctypedef struct csm_sample_shard:
        csm_sample_stage stage
        size_t classes, offset
        const double *row_max
        const double *last
        const int64_t *last_class
        double *masses
        int64_t *sums
        int64_t *kept
    cpu.csm_status csm_run_sample_shard(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *, size_t,
                                        const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_sample_options *,
                                        const csm_sample_shard *)


FIRST_SELECTED = CSM_SAMPLE_FIRST_SELECTED
MANY_SELECTED = CSM_SAMPLE_MANY_SELECTED
MANY_PART = CSM_SAMPLE_MANY_PART


cdef void *_memory(array) except? NULL:
    # that of a contiguous array; a tenth of the time of array.ctypes.data
    cdef Py_buffer buffer
    PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE)
    cdef void *memory = buffer.buf
    PyBuffer_Release(&buffer)
    return memory


cdef const double *_doubles(array) except? NULL:
    return NULL if array is None else <const double *>_memory(array)


cdef int64_t *_words(array) except? NULL:
    return <int64_t *>_memory(array)


cdef cpu.csm_shard_options _shard_options(size_t classes, size_t offset, double temperature, row_max,
                                          num_threads) except *:
    cdef cpu.csm_shard_options o = cpu.csm_default_shard_options()
    o.classes = classes
    o.offset = offset
    o.temperature = temperature
    o.row_max = _doubles(row_max)
    o.threads = _threads(num_threads)
    o.interrupt = _check_signals
    return o


def run_shard(int kind, int dtype, input, y, e, where, records, block_max, size_t classes, size_t offset,
              double temperature, temperatures, row_max, num_threads):
    """Write the records of the rows of a shard, and the maxima of its blocks; e, or None, receives powers."""
    cdef _Buffers b = _Buffers()
    cdef cpu.csm_shard_options o = _shard_options(classes, offset, temperature, row_max, num_threads)
    cdef const cpu.csm_view *second
    cdef const cpu.csm_view *powers
    cdef int64_t *words = _words(records)
    cdef double *maxima = <double *>_doubles(block_max)
    cdef cpu.csm_status status
    b.take(0, input, True, False)
    second = b.take(1, y, True, False)
    powers = b.take(2, e, True, True)
    o.where = b.take(3, where, True, False)
    o.temperatures = b.take(4, temperatures, False, False)
    with nogil:
        status = cpu.csm_shard_rows(<cpu.csm_shard_kind>kind, <cpu.csm_array_type>dtype, &b.shape, &b.view[0], second,
                                    powers, words, maxima, &o)
    _raise(status)


def finish_shard(int kind, int dtype, input, y, bint from_e, where, records, block_max, result, size_t classes,
                 size_t offset, double temperature, temperatures, row_max, num_threads):
    """Write the part of the result that belongs to a shard, from merged records; from_e: it holds the powers."""
    cdef _Buffers b = _Buffers()
    cdef cpu.csm_shard_options o = _shard_options(classes, offset, temperature, row_max, num_threads)
    cdef const cpu.csm_view *second
    cdef const cpu.csm_view *to
    cdef const int64_t *words = _words(records)
    cdef const double *maxima = _doubles(block_max)
    cdef cpu.csm_status status
    b.take(0, input, True, False)
    second = b.take(1, y, True, False)
    to = b.take(2, result, kind != cpu.CSM_SHARD_LOGSUMEXP, True)
    o.where = b.take(3, where, True, False)
    o.temperatures = b.take(4, temperatures, False, False)
    with nogil:
        status = cpu.csm_finish_rows(<cpu.csm_shard_kind>kind, <cpu.csm_array_type>dtype, &b.shape, &b.view[0], second,
                                     from_e, words, maxima, to, &o)
    _raise(status)


cdef class _ShardLoss:
    # the arguments that the stages of a loss over shards share
    cdef _Buffers b
    cdef cpu.csm_shard_options o
    cdef cpu.csm_loss_options loss

    def __init__(self, x, labels, ignore, soft, weight, sample_weight, upstream, factors, size_t words,
                 size_t classes, size_t offset, double weight_sum, double divisor, row_max, num_threads,
                 temperatures=None, double softcap=0):
        self.b = _Buffers()
        self.o = _shard_options(classes, offset, factors[0], row_max, num_threads)
        self.o.words = words
        self.o.weight_sum = weight_sum
        self.o.divisor = divisor
        self.loss = cpu.csm_default_loss_options()
        _, self.loss.label_smoothing, self.loss.z_loss, self.loss.clip_norm, self.loss.clip_value = factors
        if labels is not None:
            self.loss.label_type = cpu.CSM_INT64
            if ignore is not None:
                self.loss.has_ignore = 1
                self.loss.ignore = <uint64_t>ignore
        self.b.take(0, x, True, False)
        self.loss.soft = self.b.take(1, soft, True, False)
        self.loss.labels = self.b.take(2, labels, False, False)
        self.loss.sample_weight = self.b.take(3, sample_weight, False, False)
        self.loss.upstream = self.b.take(4, upstream, False, False)
        self.o.temperatures = self.b.take(6, temperatures, False, False)
        self.loss.softcap = softcap
        if weight is not None:
            self.loss.weight = <const void *><uintptr_t>weight.ctypes.data


def run_shard_loss(int dtype, e, records, block_max, *arguments):
    """Write the records of losses; returns whether all soft labels are valid. arguments: those of _ShardLoss."""
    cdef _ShardLoss c = _ShardLoss(*arguments)
    cdef const cpu.csm_view *powers = c.b.take(5, e, True, True)
    cdef int64_t *words = _words(records)
    cdef double *maxima = <double *>_doubles(block_max)
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_shard_losses(<cpu.csm_array_type>dtype, &c.b.shape, &c.b.view[0], powers, words, maxima, &c.o,
                                      &c.loss)
    if status == cpu.CSM_BAD_LABEL:
        return False
    _raise(status)
    return True


def run_shard_squares(int dtype, records, block_max, squares, *arguments):
    """Write the sums of the squares of gradients."""
    cdef _ShardLoss c = _ShardLoss(*arguments)
    cdef const int64_t *words = _words(records)
    cdef const double *maxima = _doubles(block_max)
    cdef int64_t *to = _words(squares)
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_shard_squares(<cpu.csm_array_type>dtype, &c.b.shape, &c.b.view[0], words, maxima, to, &c.o,
                                       &c.loss)
    _raise(status)


def run_shard_lost(int dtype, records, lost, *arguments):
    """Mark rows that hold a class whose gradient is lost (1), or may hold one in any shard (2); whether any does."""
    cdef _ShardLoss c = _ShardLoss(*arguments)
    cdef const int64_t *words = _words(records)
    cdef int64_t *to = _words(lost)
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_shard_lost(<cpu.csm_array_type>dtype, &c.b.shape, &c.b.view[0], words, to, &c.o, &c.loss)
    _raise(status)
    cdef size_t i, count = lost.size
    for i in range(count):
        if to[i]:
            return True
    return False


def finish_shard_loss(int dtype, bint from_e, records, block_max, loss, gradient, squares, *arguments):
    """Write the losses of rows, unless None, and the gradient of their sum / divisor, unless None."""
    cdef _ShardLoss c = _ShardLoss(*arguments)
    cdef const cpu.csm_view *to = c.b.take(5, gradient, True, True)
    cdef const int64_t *words = NULL if records is None else _words(records)
    cdef const double *maxima = _doubles(block_max)
    cdef double *losses = <double *>_doubles(loss)
    cdef cpu.csm_status status
    if squares is not None:
        c.o.squares = _words(squares)
    with nogil:
        status = cpu.csm_finish_losses(<cpu.csm_array_type>dtype, &c.b.shape, &c.b.view[0], from_e, words, maxima,
                                       losses, to, &c.o, &c.loss)
    _raise(status)


def shard_weights(int dtype, weight):
    """The sum of the class weights of a shard, in the compute dtype, as SUM_WORDS words: an array('q')."""
    words = _frombuffer(bytearray(8 * cpu.CSM_SUM_WORDS), "q")
    cdef int64_t *to = _words(words)
    cdef const void *w = <const void *><uintptr_t>weight.ctypes.data
    cpu.csm_shard_weights(<cpu.csm_array_type>dtype, w, len(weight), to)
    return words


def tree_sum(values):
    """The sum of contiguous doubles in the tree in which the core adds the losses of rows."""
    cdef const double *from_ = _doubles(values)
    return csm_tree_sum(from_, values.size)


def sum_totals(words, totals):
    """Write the numbers that sums of SUM_WORDS words are."""
    cdef const int64_t *from_ = _words(words)
    cdef double *to = <double *>_doubles(totals)
    cdef size_t i, count = totals.size
    for i in range(count):
        to[i] = cpu.csm_sum_total(from_ + i * <size_t>cpu.CSM_SUM_WORDS)


def merge_sums(into, other):
    """Merge sums of SUM_WORDS words each."""
    cpu.csm_sums_merge(_words(into), _words(other), into.size // cpu.CSM_SUM_WORDS)


def clear_records(records):
    """Make records, words last, those of no element."""
    cdef size_t words = records.shape[-1]
    if words:
        cpu.csm_records_clear(_words(records), records.size // words, words)


cdef _refuse_damaged(size_t rows, size_t bad):
    if bad < rows:
        raise ValueError(f"records are damaged: that of row {bad}, counted in C order, cannot be the sum of a shard")


def check_records(records):
    """Refuse records, words last, that no shard has made."""
    cdef size_t words = records.shape[-1], rows = records.size // words
    _refuse_damaged(rows, csm_records_check(_words(records), rows, words))


def merge_records(into, other):
    """Merge records, words last, after a check of the other ones."""
    cdef size_t words = into.shape[-1], rows = into.size // words
    check_records(other)
    cdef int64_t *a = _words(into)
    cdef const int64_t *b = _words(other)
    with nogil:
        cpu.csm_records_merge(a, b, rows, words)


def merge_gathered(gathered, size_t first, size_t words):
    """Merge the records that each row of contiguous words has from `first` on into those of row 0, after a check."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(gathered, &buffer, PyBUF_STRIDED_RO)
    cdef size_t ranks = buffer.shape[0], rows = (buffer.shape[1] - first) // words, rank, bad = rows
    cdef char *own = <char *>buffer.buf + 8 * first
    cdef const int64_t *other
    with nogil:
        for rank in range(ranks):
            other = <const int64_t *>(own + <Py_ssize_t>rank * buffer.strides[0])
            bad = csm_records_check(other, rows, words)
            if bad < rows:
                break
            if rank:
                cpu.csm_records_merge(<int64_t *>own, other, rows, words)
    PyBuffer_Release(&buffer)
    _refuse_damaged(rows, bad)


def all_below(labels, int64_t n):
    """Whether contiguous labels are all numbers from 0 to n - 1."""
    cdef const int64_t *label = _words(labels)
    cdef size_t i, count = labels.size
    for i in range(count):
        if not 0 <= label[i] < n:
            return False
    return True


def find_bad_owner(records, labels):
    """The first row, in C order, whose label from 0 on has another number of owners than 1; -1: none."""
    cdef size_t words = records.shape[-1], i, count = labels.size
    cdef const int64_t *record = _words(records)
    cdef const int64_t *label = _words(labels)
    for i in range(count):
        if label[i] >= 0 and record[i * words + cpu.CSM_LABEL_WORDS - 1] != 1:
            return <Py_ssize_t>i
    return -1


def fold_records(records, row_max):
    """Make row_max the maximum of each record."""
    cdef size_t words = records.shape[-1]
    cpu.csm_records_fold(_words(records), _doubles(row_max), records.size // words, words)


def raise_records(records, highest):
    """Bring the exact sums of records to the given highest bins, of which each record has record_sums(words)."""
    cdef size_t words = records.shape[-1]
    cpu.csm_records_raise(_words(records), _words(highest), records.size // words, words)


def record_sums(size_t words):
    """The number of exact sums of a record."""
    return cpu.csm_records_sums(words)


def find_second_round(int kind, int dtype, records, double temperature, temperatures, row_max):
    """Set row_max to the maxima of rows that need the second round, else NaN; return how many need it."""
    cdef size_t words = records.shape[-1]
    return cpu.csm_records_second_round(<cpu.csm_shard_kind>kind, <cpu.csm_array_type>dtype, _words(records),
                                        records.size // words, words, temperature, _doubles(temperatures),
                                        <double *>_doubles(row_max))


cdef class _SampleShard:
    # the arguments that the stages of drawing over shards share; parameters are None or have a float64 for each row
    cdef _Buffers b
    cdef csm_sample_shard s
    cdef cpu.csm_sample_options o

    def __init__(self, x, row_max, size_t classes, size_t offset, temperature, min_p, last, last_class, num_threads):
        self.b = _Buffers()
        self.s.classes = classes
        self.s.offset = offset
        self.s.row_max = _doubles(row_max)
        self.s.last = _doubles(last)
        self.s.last_class = NULL if last_class is None else _words(last_class)
        self.o = cpu.csm_default_sample_options()
        self.o.threads = _threads(num_threads)
        self.o.interrupt = _check_signals
        self.b.take(0, x, True, False)
        self.o.temperature = self.b.take(1, temperature, False, False)
        self.o.min_p = self.b.take(2, min_p, False, False)

    cdef void run(self, int dtype, size_t draws, const cpu.csm_view *uniforms, const cpu.csm_view *indices) except *:
        cdef cpu.csm_status status
        with nogil:
            status = csm_run_sample_shard(dtype, csm_current_table(), &self.b.shape, &self.b.view[0], draws, uniforms,
                                          indices, &self.o, &self.s)
        _raise(status)


def run_sample_masses(int dtype, masses, sums, *arguments):
    """Write the masses of the blocks of a shard and, unless None, the records of their sums.

    arguments: those of _SampleShard; all row_max are finite.
    """
    cdef _SampleShard c = _SampleShard(*arguments)
    c.s.stage = CSM_SAMPLE_STAGE_MASSES
    c.s.masses = <double *>_doubles(masses)
    c.s.sums = NULL if sums is None else _words(sums)
    c.run(dtype, 1, NULL, NULL)


def run_sample_nucleus(int dtype, top_p, sums, kept, *arguments):
    """Find how many of the largest logits of rows, in falling order, top_p keeps: kept has two int64 a row.

    The first is 0 if they are more than these; the second tells whether a whole row is drawn from 64 of them if these
    suffice. sums are records of whole rows.
    """
    cdef _SampleShard c = _SampleShard(*arguments)
    c.s.stage = CSM_SAMPLE_STAGE_NUCLEUS
    c.s.sums = _words(sums)
    c.s.kept = _words(kept)
    c.o.top_p = c.b.take(3, top_p, False, False)
    c.run(dtype, 1, NULL, NULL)


def run_sample_draws(int dtype, masses, uniforms, indices, *arguments):
    """Write the classes of a shard that the uniform numbers draw, -1 for those of other shards.

    masses are those of all blocks of the rows. Numbers in rising order are fast.
    """
    cdef _SampleShard c = _SampleShard(*arguments)
    c.s.stage = CSM_SAMPLE_STAGE_DRAWS
    c.s.masses = <double *>_doubles(masses)
    cdef const cpu.csm_view *numbers = c.b.take(3, uniforms, True, False)
    cdef const cpu.csm_view *to = c.b.take(4, indices, True, True)
    c.run(dtype, uniforms.shape[-1], numbers, to)
