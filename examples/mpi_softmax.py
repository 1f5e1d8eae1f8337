"""
Softmax over the processes of MPI
=================================

Each process holds some of the classes of all rows, as in tensor parallelism.  The loss and the gradient are those of
one process in every bit, however many processes there are; sums in float32, as usual, differ a little each time.
Needs: `pip install csoftmax matplotlib mpi4py`.  MPI itself comes from the system or from `pip install mpich`; run this
file with `mpiexec -n 4 python examples/mpi_softmax.py`.
"""

# %%
# The logits of 64 rows of 50,257 classes, the size of GPT-2's vocabulary, and their labels.  In a program each process
# would compute its own classes only.
try:
    import matplotlib.pyplot as plt
    import numpy as np
    from mpi4py import MPI

    import csoftmax
    from csoftmax import distributed
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install csoftmax matplotlib mpi4py") from None

ROWS, CLASSES = 64, 50_257
rng = np.random.default_rng(0)
logits = 4 * rng.normal(size=(ROWS, CLASSES)).astype(np.float32)
labels = rng.integers(0, CLASSES, ROWS)
expected = csoftmax.cross_entropy_with_grad(logits, labels, reduction="none")


# %%
# The usual way: all-reduces of the maximum, of the sum of exponentials and of the label's logit, in float32.
def loss_in_float32(comm, shard, first):
    largest, total, own = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32), np.zeros(ROWS, np.float32)
    comm.Allreduce(shard.max(axis=1), largest, op=MPI.MAX)
    comm.Allreduce(np.exp(shard - largest[:, None]).sum(axis=1), total, op=MPI.SUM)
    (here,) = np.nonzero((labels >= first) & (labels < first + shard.shape[1]))
    own[here] = shard[here, labels[here] - first]
    label = np.empty_like(own)
    comm.Allreduce(own, label, op=MPI.SUM)
    return np.log(total) + largest - label


# %%
# Both for 1, 2, ... of the processes: how many rows have another loss than with one?  `split` divides the classes at
# multiples of 4096, where nothing but 128 bytes a row and process travel.
world, differ = MPI.COMM_WORLD, {"csoftmax": [], "sums in float32": []}
alone = loss_in_float32(MPI.COMM_SELF, logits, 0)
counts = range(1, world.size + 1)
for count in counts:
    comm = world.Split(0 if world.rank < count else MPI.UNDEFINED, world.rank)
    if comm == MPI.COMM_NULL:
        continue
    begin, end = distributed.split(CLASSES, count)[comm.rank : comm.rank + 2]
    shard = np.ascontiguousarray(logits[:, begin:end])
    loss, grad = distributed.cross_entropy_with_grad(shard, labels, group=comm, reduction="none")
    is_equal = comm.allreduce(bool((grad == expected.grad[:, begin:end]).all()), op=MPI.LAND)
    differ["csoftmax"].append(np.count_nonzero(loss != expected.loss))
    differ["sums in float32"].append(np.count_nonzero(loss_in_float32(comm, shard, begin) != alone))
    if comm.rank == 0:
        found = ", ".join(f"{name} {rows[-1]}" for name, rows in differ.items())
        print(f"{count} processes: rows whose loss differs: {found}; gradients of csoftmax equal: {is_equal}")
    comm.Free()

# %%
# Rank 0 draws how many losses depend on the number of processes.
if world.rank == 0:
    plt.style.use("csoftmax.style")
    figure, axes = plt.subplots()
    for name, rows in differ.items():
        axes.plot(counts, rows, "o-", label=name)
    axes.set_title("Losses that are not those of one process")
    axes.set(xlabel="processes", ylabel=f"rows of {ROWS}", xticks=counts)
    axes.legend()
    plt.show()
