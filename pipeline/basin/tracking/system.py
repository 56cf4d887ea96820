"""What a stage took of its machine, under names that MLflow's pages show as system metrics."""

import resource
import sys

MIB = 2**20
RSS = 1 if sys.platform == "darwin" else 1024  # bytes that ru_maxrss counts in


def taken() -> dict[str, float]:
    """Seconds of processor time and peak memory of this process; of the GPU, where it computed on one, the peak that torch allocated."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {"system/cpu_seconds": used.ru_utime + used.ru_stime, "system/peak_memory_megabytes": used.ru_maxrss * RSS / MIB}
    torch = sys.modules.get("torch")  # not imported for this
    if torch and torch.cuda.is_initialized():
        found["system/gpu_peak_memory_megabytes"] = torch.cuda.max_memory_allocated() / MIB
    return found
