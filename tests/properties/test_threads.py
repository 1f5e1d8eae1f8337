"""Threads: functions may be called from many at once, release the GIL and use the number of threads that was set."""

import asyncio
import contextvars
import gc
import inspect
import itertools
import os
import platform
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import threadpoolctl
from helpers import assert_same_results, every_record, run_python

import csoftmax
from csoftmax._cpu import binding
from csoftmax._runtime import threads as _threads

SYSTEM_CALLS = {  # of Linux
    "x86_64": {"SECCOMP": 317, "SETAFFINITY": 203},
    "aarch64": {"SECCOMP": 277, "SETAFFINITY": 122},
}


@every_record("threads")
def test_many_python_threads_get_the_same_bits(record, seven_threads):
    cases = []
    for shape, threads in (((50, 40), None), ((200, 300), 3), ((2, 50_000), 2)):
        options = {"num_threads": threads} if threads and record.accepts("num_threads") else {}
        for seed in range(3):
            sample = record.sample(shape, "float32", seed)
            cases.append((sample, options, record.compute(sample, **options)))

    def compute(i):
        sample, options, expected = cases[i % len(cases)]
        assert_same_results(record.compute(sample, **options), expected)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(compute, range(90)))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_affinity_is_left_as_it_is():
    """Workers that wake on the caller's CPU leave it; afterwards every thread may run where it could before."""
    code = """if True:
        import os, sys, time, numpy as np, csoftmax
        x = np.random.default_rng(0).standard_normal((64, 2000)).astype(np.float32)
        expected = csoftmax.softmax(x, num_threads=1).tobytes()

        def masks():
            return {name: os.sched_getaffinity(int(name)) for name in os.listdir("/proc/self/task")}

        all_cpus = os.sched_getaffinity(0)
        for cpus in (all_cpus, {min(all_cpus)}, set(sorted(all_cpus)[:2]), all_cpus):
            for thread in masks():
                os.sched_setaffinity(int(thread), cpus)
            for pause in 20 * [0, 0.02]:
                time.sleep(pause)
                assert csoftmax.softmax(x).tobytes() == expected
                assert all(mask == cpus for mask in masks().values()), (cpus, masks())
        assert len(masks()) >= 2
    """
    # No more threads than CPUs: where threads must share a CPU anyway, no worker leaves its own.
    run_python(code, CSOFTMAX_NUM_THREADS="2", OMP_NUM_THREADS=None)


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in SYSTEM_CALLS, reason="numbers of calls")
def test_a_system_call_filter_of_later_is_respected():
    """A filter that ends the process for a change of affinity is installed after workers have been moved."""
    code = """if True:
        import ctypes, struct, time, numpy as np, csoftmax
        x = np.random.default_rng(0).standard_normal((64, 2000)).astype(np.float32)
        expected = csoftmax.softmax(x, num_threads=1).tobytes()

        def compute():
            for pause in 20 * [0, 0.02]:
                time.sleep(pause)
                assert csoftmax.softmax(x).tobytes() == expected

        compute()
        # load the number of the call; is it the one? then end the process, else allow
        filter = b"".join(struct.pack("HBBI", *line) for line in (
            (0x20, 0, 0, 0), (0x15, 0, 1, SETAFFINITY), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7FFF0000)))
        memory = ctypes.create_string_buffer(filter)
        program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(memory)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges, which a filter requires
        assert libc.syscall(SECCOMP, 1, 1, program) == 0, ctypes.get_errno()  # for all threads
        compute()
    """
    for name, number in SYSTEM_CALLS[platform.machine()].items():
        code = code.replace(name, str(number))
    run_python(code, CSOFTMAX_NUM_THREADS="2", OMP_NUM_THREADS=None)


@every_record("threads")
def test_the_gil_is_released(record):
    """Another thread makes progress inside one call; with the GIL held it could only do so between two of them."""
    if not record.accepts("num_threads"):
        pytest.skip("computed by NumPy and SciPy")
    # losses of sampled classes read few of them: they get more rows, for a call of some milliseconds
    rows, classes = (20_000, 300) if record.family == "sampled" else (64, 30_000)
    sample = record.sample((rows, classes))
    ticks, running = [0], threading.Event()

    def tick():
        running.set()
        while running.is_set():
            ticks[0] += 1
            time.sleep(0.0001)

    other = threading.Thread(target=tick)
    other.start()
    running.wait()
    begin, progress, calls = time.perf_counter(), 0, 0
    while progress < 3 and time.perf_counter() - begin < 10:
        before = ticks[0]
        record.call(sample, num_threads=1)
        progress, calls = max(progress, ticks[0] - before), calls + 1
        if calls % 200 == 0:  # a call may be too short for three ticks
            rows *= 2
            sample = record.sample((rows, classes))
    running.clear()
    other.join()
    assert progress >= 3


def test_set_num_threads(seven_threads):
    assert csoftmax.get_num_threads() == 7
    csoftmax.set_num_threads(3)
    assert csoftmax.get_num_threads() == 3
    csoftmax.set_num_threads(100)
    assert csoftmax.get_num_threads() == 7  # the machine's limit
    csoftmax.set_num_threads(2)
    csoftmax.set_num_threads(None)
    assert csoftmax.get_num_threads() == 7


def test_set_num_threads_holds_for_all_threads(seven_threads):
    csoftmax.set_num_threads(2)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(csoftmax.get_num_threads).result() == 2


def test_the_context_nests_and_restores(seven_threads):
    csoftmax.set_num_threads(5)
    with csoftmax.threads(2):
        assert csoftmax.get_num_threads() == 2
        with csoftmax.threads(4):
            assert csoftmax.get_num_threads() == 4
            csoftmax.set_num_threads(6)
            assert csoftmax.get_num_threads() == 4
        assert csoftmax.get_num_threads() == 2
    assert csoftmax.get_num_threads() == 6
    with pytest.raises(KeyError), csoftmax.threads(1):
        raise KeyError
    assert csoftmax.get_num_threads() == 6


def test_the_context_is_local_to_its_thread(seven_threads):
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def other():
        with csoftmax.threads(3):
            seen.append(csoftmax.get_num_threads())
            entered.set()
            leave.wait()
        seen.append(csoftmax.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    with csoftmax.threads(2):
        entered.wait()
        assert csoftmax.get_num_threads() == 2
    assert csoftmax.get_num_threads() == 7
    leave.set()
    thread.join()
    assert seen == [3, 7]


def bounded(n):
    """Yield the number of threads inside a block."""
    with csoftmax.threads(n):
        yield csoftmax.get_num_threads()


def test_the_context_is_local_to_its_task(seven_threads):
    """In asyncio, whatever the order in which tasks enter and leave."""

    async def enter(n, begin, end):
        await asyncio.sleep(begin)
        with csoftmax.threads(n):
            await asyncio.sleep(end - begin)
            inside = csoftmax.get_num_threads()
        return inside, csoftmax.get_num_threads()

    async def look():
        seen = set()
        for _ in range(20):
            seen.add(csoftmax.get_num_threads())
            await asyncio.sleep(0.005)
        return seen

    async def all_of_them():
        return await asyncio.gather(enter(1, 0, 0.05), enter(2, 0.02, 0.08), enter(3, 0.03, 0.04), look())

    assert asyncio.run(all_of_them()) == [(1, 7), (2, 7), (3, 7), {7}]
    assert csoftmax.get_num_threads() == 7
    assert binding.thread_bounds() == 0


def test_tasks_and_threads_inherit_the_context(seven_threads):
    """As they inherit every context variable: at their start."""

    async def look(event):
        await event.wait()
        return csoftmax.get_num_threads()

    async def start():
        event = asyncio.Event()
        with csoftmax.threads(2):
            task = asyncio.create_task(look(event))
            seen = await asyncio.to_thread(csoftmax.get_num_threads)
        event.set()
        return seen, await task, csoftmax.get_num_threads()

    assert asyncio.run(start()) == (2, 2, 7)
    with csoftmax.threads(3):
        copied = contextvars.copy_context()
        assert copied.run(csoftmax.get_num_threads) == 3
        assert contextvars.Context().run(csoftmax.get_num_threads) == 7
    assert csoftmax.get_num_threads() == 7
    assert copied.run(csoftmax.get_num_threads) == 3
    csoftmax.set_num_threads(4)  # of the process, in every context that is in no block
    assert contextvars.copy_context().run(csoftmax.get_num_threads) == 4
    assert copied.run(csoftmax.get_num_threads) == 3
    del copied
    assert binding.thread_bounds() == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_blocks_may_be_left_in_any_order(seven_threads, order):
    """As generators of one context leave them."""
    generators = [bounded(n) for n in (1, 2, 3)]
    assert [next(generator) for generator in generators] == [1, 2, 3]
    left = {0: 1, 1: 2, 2: 3}
    for i in order:
        generators[i].close()
        del left[i]
        assert csoftmax.get_num_threads() == (left[max(left)] if left else 7)
    assert binding.thread_bounds() == 0


def test_a_block_left_in_another_context(seven_threads):
    """By another thread, in a copied context, or by the event loop, which closes generators of a loop that was left."""
    generator = bounded(1)
    next(generator)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(generator.close).result()
    assert csoftmax.get_num_threads() == 7

    generator = bounded(1)
    contextvars.copy_context().run(next, generator)
    assert csoftmax.get_num_threads() == 7
    generator.close()
    assert csoftmax.get_num_threads() == 7

    async def enter():
        with csoftmax.threads(1):
            yield csoftmax.get_num_threads()

    async def iterate():
        async for seen in enter():
            assert seen == 1
            break
        gc.collect()
        await asyncio.sleep(0.01)
        return csoftmax.get_num_threads()

    assert asyncio.run(iterate()) == 7
    with csoftmax.threads(2):  # drops what is void
        assert csoftmax.get_num_threads() == 2
    assert binding.thread_bounds() == 0


@every_record("threads")
def test_contexts_do_not_change_bits(record, seven_threads):
    if "reproducibility" in record.exempt:
        pytest.skip(record.exempt["reproducibility"])
    sample = record.sample((300, 333), "float64")
    expected = record.compute(sample)
    for n in (1, 2, 7):
        with csoftmax.threads(n):
            assert_same_results(record.compute(sample), expected)


def test_small_calls_start_no_threads():
    done = run_python("""
import os, numpy as np, csoftmax
csoftmax.softmax(np.ones((10, 10)), num_threads=4)
before = len(os.listdir("/proc/self/task"))
csoftmax.softmax(np.ones((100, 100)), num_threads=4)
assert len(os.listdir("/proc/self/task")) == before
csoftmax.softmax(np.ones((1000, 1000)), num_threads=4)
print(len(os.listdir("/proc/self/task")) - before)
""", CSOFTMAX_NUM_THREADS="4", OPENBLAS_NUM_THREADS="1")  # fmt: skip
    assert int(done.stdout) == (3 if binding.OPENMP else 0)


def test_process_wide_openmp_settings_are_left_alone(c_library):
    if not binding.OPENMP:
        pytest.skip("no OpenMP")
    done = run_python("""
import ctypes, numpy as np, csoftmax
omp = ctypes.CDLL(csoftmax.show_config("dicts")["openmp"]["libraries"][0])
before = omp.omp_get_max_threads(), omp.omp_get_dynamic(), omp.omp_get_max_active_levels()
csoftmax.set_num_threads(1)
csoftmax.softmax(np.ones((1000, 1000)), num_threads=2)
assert (omp.omp_get_max_threads(), omp.omp_get_dynamic(), omp.omp_get_max_active_levels()) == before
print("done")
""")
    assert done.stdout.strip() == "done"


def test_what_bounds_the_threads():
    decides, bounds = _threads.reason()
    assert bounds[decides] == min(bounds.values()) >= 1


def test_the_bound_that_decides(seven_threads, monkeypatch):
    """`info` reports the bound that decides now, not the one at import."""
    monkeypatch.setattr(_threads, "_bounds", {"CPU affinity": 7})
    assert _threads.reason() == ("CPU affinity", {"CPU affinity": 7})
    csoftmax.set_num_threads(3)
    assert _threads.reason() == ("set_num_threads", {"CPU affinity": 7, "set_num_threads": 3})
    with csoftmax.threads(5):
        assert _threads.reason() == ("csoftmax.threads", {"CPU affinity": 7, "csoftmax.threads": 5})
        assert csoftmax.show_config("dicts")["threads"]["used"] == 5
    assert _threads.reason()[0] == "set_num_threads"
    csoftmax.set_num_threads(None)
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        decides, bounds = _threads.reason()
        assert decides == "omp_set_num_threads or threadpoolctl"
        assert bounds[decides] == csoftmax.get_num_threads() == 1


def test_two_openmp_runtimes(monkeypatch):
    """They are found by their files, and show_config warns."""
    from csoftmax._runtime import config as _config

    assert csoftmax.show_config("dicts")["openmp"]["warning"] is None or len(_config.openmp_libraries()) > 1
    maps = "7f00-7f01 r-xp 00000000 08:01 1 /a/lib{}\n"
    names = "gomp.so.1", "gomp-a34b3233.so.1.0.0", "iomp5.so", "gompute.so", "m.so.6"
    text = "".join(map(maps.format, names))
    monkeypatch.setattr(_config.Path, "read_text", lambda self: text)
    assert _config.openmp_libraries() == ["/a/libgomp-a34b3233.so.1.0.0", "/a/libgomp.so.1", "/a/libiomp5.so"]
    assert "two OpenMP runtimes are loaded" in csoftmax.show_config("dicts")["openmp"]["warning"]
    monkeypatch.setattr(_config, "openmp_libraries", lambda: ["/a/libgomp.so.1"])
    assert csoftmax.show_config("dicts")["openmp"]["warning"] is None


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "max 100000"}, "0::/\n", None),
        ({"a/b/cpu.max": "150000 100000"}, "0::/a/b\n", 2),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, "0::/a/b\n", 3),
        ({"a/cpu.max": "50000 100000"}, "0::/a\n", 1),
        ({"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/x\n", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/y\n", None),
        ({}, "0::/gone\n", None),
        ({"cpu.max": "garbage"}, "0::/\n", None),
    ],
)
def test_cgroup_quota(tmp_path, files, membership, expected):
    for name, content in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "membership").write_text(membership)
    assert _threads.cgroup_quota(tmp_path / "root", tmp_path / "membership") == expected


@every_record("threads")
def test_every_function_takes_num_threads(record):
    parameters = inspect.signature(record.function()).parameters
    if record.name in ("check_labels", "to_csr"):  # which NumPy and SciPy compute
        assert "num_threads" not in parameters
    else:
        assert parameters["num_threads"].default is None


NO_THREADS = """
import os, resource, sys, numpy as np, csoftmax
before = {before}
x = np.random.default_rng(0).standard_normal((1000, 1000), dtype="f4")
expected = csoftmax.softmax(x, num_threads=1).tobytes()


def others(threads):
    csoftmax.topk(x, 5, num_threads=threads)
    csoftmax.sample(x, rng=0, num_threads=threads)
    csoftmax.entmax(x, 1.5, num_threads=threads)


others(1)  # loads modules that another user may not be allowed to read
if before:  # of fewer threads than later calls could use
    csoftmax.softmax(x, num_threads=2)
if "{limit}" == "NPROC":
    if os.getuid() == 0:  # root has no such limit
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
else:
    size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + {room}, size + {room}))
for i in range(20):
    assert csoftmax.softmax(x, out=x if i == 19 else np.empty_like(x), num_threads=4).tobytes() == expected
others(4)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("limit", ["NPROC", "AS"])
@pytest.mark.parametrize("before", [False, True])
def test_where_no_thread_can_be_made_calls_are_serial(limit, before):
    """Nothing is printed, nothing ends the process, and the bits are the same."""
    code = NO_THREADS.format(limit=limit, before=before, room=40 << 20)
    done = run_python(code, CSOFTMAX_NUM_THREADS="4", OPENBLAS_NUM_THREADS="1")
    assert (done.stdout.strip(), done.stderr) == ("done", "")


BUSY = """
import os, statistics, subprocess, sys, time
import numpy as np, csoftmax
load = "x = 1\\nwhile True: x = x * 3 % 1000003"
others = [subprocess.Popen([sys.executable, "-c", load]) for _ in range(2 * os.cpu_count())]
try:
    x = np.random.default_rng(0).standard_normal((128, 1000), dtype="f4")
    seconds = {1: [], 4: []}
    for threads in 50 * [1, 4]:
        for _ in range(40):
            begin = time.perf_counter()
            csoftmax.softmax(x, num_threads=threads)
            seconds[threads].append(time.perf_counter() - begin)
finally:
    for other in others:
        other.kill()
print(statistics.median(seconds[4][200:]) / statistics.median(seconds[1][200:]))
"""


def test_calls_on_a_busy_machine():
    """Threads that get no CPU are not waited for. The promise is 1.5 (asv_bench/busy.py); tested is 3."""
    assert float(run_python(BUSY, CSOFTMAX_NUM_THREADS="4").stdout) < 3
