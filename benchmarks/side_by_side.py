"""How much work do several processes get done at once on this machine, in units of what one does alone?

    measure_capacity(4)[3]      # of three at once; 2.0 on two whole cores, less where they share a core

The work is training steps of MobileNetV2 on one thread each, which start together behind a barrier.
"""

import multiprocessing
import statistics
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import torch
import torchvision

STEPS = 12
PATIENCE_SECONDS = 300.0  # for a process to start and to answer


def measure_capacity(most: int) -> list[float]:
    """Of 0, 1, ... `most` processes."""
    seconds = [_seconds(processes) for processes in range(1, most + 1)]
    return [0.0, *(processes * seconds[0] / each for processes, each in enumerate(seconds, start=1))]


def _seconds(processes: int) -> float:
    """That each of so many takes for its steps, on average."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    started = [context.Process(target=_work, args=(barrier, answers)) for _ in range(processes)]
    for process in started:
        process.start()
    found = [answers.get(timeout=PATIENCE_SECONDS) for _ in started]
    for process in started:
        process.join()
    return statistics.mean(found)


def _work(barrier: Barrier, answers: "Queue[float]") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2()
    images, labels = torch.rand(16, 3, 96, 96), torch.zeros(16, dtype=torch.long)

    def step() -> None:
        torch.nn.functional.cross_entropy(model(images), labels).backward()

    step()
    barrier.wait(PATIENCE_SECONDS)
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    answers.put(time.perf_counter() - started)
