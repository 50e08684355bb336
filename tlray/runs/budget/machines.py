"""What works on a run, as far as its duration depends on it. No torch here."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

USUAL_PROCESS = 10.0  # seconds until a process has imported torch, where nobody looked at the clock
CPUS_FOR_A_GPU = 16.0  # of a task beside the trials; decoding is what a GPU waits for
CPUS_WITHOUT_A_GPU = 4.0
MOST_ON_A_GPU = 8  # trials; more only share its arithmetic


class Machines(BaseModel):
    """How much goes on at once. A *pass task* computes a chunk of activations or trains a group of linear probes."""

    model_config = ConfigDict(frozen=True)

    concurrent_trials: int
    process_seconds: float = USUAL_PROCESS  # until a new process has imported torch
    pass_tasks: int = 1  # at once
    pass_threads: int = 1  # of each, which decode, and compute where there is no GPU
    on_gpus: bool = False  # each pass task has one, and decodes while it computes
    idle_cores: bool = False  # beside each worker of a trial there is a core for the threads that read its images
    gpus: float = 0.0  # that trials have, all together
    most_trials: int = 1  # at once, however little of a GPU each of them takes
    load: float = 1.0  # what a second of computing takes, beside whatever else the machine does
    device_seconds: float = 0.0  # of a new process, for CUDA and its libraries before the first step

    def sharing(self, shares: Sequence[float]) -> "Machines":
        """Where each trial takes its share of a GPU."""
        if not self.on_gpus or not shares:
            return self
        at_once = int(self.gpus * len(shares) / sum(shares))
        return self.model_copy(update={"concurrent_trials": max(1, min(self.most_trials, at_once))})

    @property
    def start_seconds(self) -> float:
        """Until a new process makes its first step."""
        return self.process_seconds + self.device_seconds


def cpus_of_a_pass_task(nodes: Iterable[tuple[float, float]], *, on_gpus: bool) -> float:
    """`nodes`: (CPUs, GPUs) of each kind. One task for each GPU, with its share of the CPUs; else one for every few.

    Several threads in one process share one copy of the model and pay once for importing torch.
    """
    if on_gpus:
        return max(1.0, min([CPUS_FOR_A_GPU, *(cpus // gpus for cpus, gpus in nodes)]))
    return max(1.0, min([CPUS_WITHOUT_A_GPU, *(cpus for cpus, _ in nodes)]))
