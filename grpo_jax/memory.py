"""How much memory a process has needed, as far as its devices and its system tell."""

import resource
import sys


def peak_memory() -> tuple[float, str]:
    """Most bytes that were in use at a time, and of what: "device" (the fullest one), where the backend says so.

    Else "process": the main memory of this process.
    """
    jax = sys.modules.get("jax")  # not imported for this: what only looks at the files of a run has no devices
    stats = [device.memory_stats() or {} for device in jax.local_devices()] if jax else []
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    if peaks:
        return float(max(peaks)), "device"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024), "process"
