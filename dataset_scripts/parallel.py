"""Many independent tasks by one process, by several, or by a dask cluster; as many wait as keep the workers busy."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from modeling_pcbridge.errors import CalculationError, require
from modeling_pcbridge.extras import require_extra

_TASKS_PER_THREAD = 4
# Of glibc: memory that is freed stays for the next tensor. Dask's workers give it back by default, and then spend a
# third of their time on getting it again, page by page.
_KEEP_MEMORY = {
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**30,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**31,
}


class WorkerDiedError(CalculationError):
    """What came of a task whose worker process died, and died again when dask gave the task to others."""

    def __init__(self):
        super().__init__("the worker process died (out of memory, or the program crashed)")


def results_of(
    function: Callable, tasks: Iterable[tuple], workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple[tuple, Any]]:
    """Each task with the result of `function(*task)`: in order by one worker, as they come by several.

    `tasks` is read as the workers need it, so it may be a stream of any length. A `WorkerDiedError` may stand in place
    of a result; other errors of the function are raised.

    Args:
        function: of a module, because workers import it by name.
        workers: processes on this machine, one thread each.
        scheduler: address of a running dask scheduler, in place of `workers`.

    Raises:
        InputError: no worker, or several without the extra `cluster`.
        OSError: there is no scheduler at that address.
    """
    require(workers >= 1, "workers", "at least 1", workers)
    if workers == 1 and scheduler is None:
        yield from ((task, function(*task)) for task in tasks)
        return
    require_extra("cluster", "distributed", "more than one worker")
    import dask
    from distributed import Client, KilledWorker, as_completed

    own_cluster = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with dask.config.set(_KEEP_MEMORY), Client(scheduler) if scheduler else Client(**own_cluster) as client:
        waiting, completed = iter(tasks), as_completed()
        running: dict[Any, tuple] = {}

        def submit() -> None:
            """Fill up; the workers of a scheduler come and go."""
            most = _TASKS_PER_THREAD * max(sum(client.nthreads().values()), 1)
            for task in islice(waiting, max(most - len(running), 0)):
                future = client.submit(function, *task, pure=False)
                running[future] = task
                completed.add(future)

        submit()
        for future in completed:
            task = running.pop(future)
            try:
                result: Any = future.result()
            except KilledWorker:  # dask has tried it on several workers
                result = WorkerDiedError()
            yield task, result
            submit()
