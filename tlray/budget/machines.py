"""What works on a run, as far as its duration depends on it. No torch here."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

USUAL_PROCESS = 10.0  # seconds until a process has imported torch, where nobody looked at the clock
CPUS_FOR_A_GPU = 16.0  # of a task beside the trials; decoding is what a GPU waits for
CPUS_WITHOUT_A_GPU = 4.0


class Machines(BaseModel):
    """How much goes on at once. A *pass task* computes a chunk of activations or trains a group of linear probes."""

    model_config = ConfigDict(frozen=True)

    concurrent_trials: int
    process_seconds: float = USUAL_PROCESS  # until a new process has imported torch
    pass_tasks: int = 1  # at once
    pass_threads: int = 1  # of each, which decode, and compute where there is no GPU
    on_gpus: bool = False  # each pass task has one, and decodes while it computes
    idle_cores: bool = False  # beside each worker of a trial there is a core for the threads that read its images


def cpus_of_a_pass_task(nodes: Iterable[tuple[float, float]], *, on_gpus: bool) -> float:
    """`nodes`: (CPUs, GPUs) of each kind. One task for each GPU, with its share of the CPUs; else one for every few.

    Several threads in one process share one copy of the model and pay once for importing torch.
    """
    if on_gpus:
        return max(1.0, min([CPUS_FOR_A_GPU, *(cpus // gpus for cpus, gpus in nodes)]))
    return max(1.0, min([CPUS_WITHOUT_A_GPU, *(cpus for cpus, _ in nodes)]))
