# The call of g-softmax, whose arrays are all C-contiguous and of float64. Included by binding.pyx.

def run_geometric(int task, similarities, group, x, dy, y, excess, gap, num_threads):
    """Compute a task of GEOMETRIC_TASKS for the rows of x; the members of csm_geometric say what each array is."""
    cdef _Contiguous arrays = _Contiguous()
    cdef csm_geometric call
    cdef cpu.csm_status status
    call.rows, call.classes = x.shape
    call.groups, call.pitch = similarities.shape
    call.similarities = <const double *>arrays.read(similarities)
    call.group = <const int32_t *>arrays.read(group)
    call.x = <const double *>arrays.read(x)
    call.dy = <const double *>arrays.read(dy)
    call.y = <double *>arrays.write(y)
    call.excess = <double *>arrays.write(excess)
    call.gap = <double *>arrays.write(gap)
    call.threads = _threads(num_threads)
    call.interrupt = _check_signals
    with nogil:
        status = csm_run_geometric(<csm_geometric_task>task, csm_current_table(), &call)
    _raise(status)
