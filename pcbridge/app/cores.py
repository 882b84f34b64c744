"""How many processor cores there are for this process."""

import os


def num_cores() -> int:
    """Those that the system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
