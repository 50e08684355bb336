"""The device that this process may use, and how it computes there: the one place that looks at the hardware.

    device = given_device()                             # the GPU that this process was given, else the CPU
    with arithmetic(device, chosen_precision("auto", device), deterministic=False):
        ...                                             # inside autocast(device, precision) for a forward

A process of Ray's sees every GPU of its node, also where it reserved none: `withhold_gpus` keeps its hands off them.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

CPU = torch.device("cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Precision = Literal["float32", "bfloat16", "float16"]
BFLOAT16_SINCE = (8, 0)  # CUDA's compute capability; older GPUs emulate it, slower than float32
FLOAT16_SINCE = (7, 0)  # with tensor cores
NUM_WARM = 2  # passes that are not counted
NUM_PASSES = 5
LONG_PASS = 1.0  # seconds of the passes that count; one that takes this long is enough
# Read when a process first multiplies matrices on a GPU, so that it stands before: what determinism needs of cuBLAS.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_withheld = False


def withhold_gpus(withheld: bool) -> None:
    """Whether this process has to leave GPUs alone from now on, for it was given none."""
    global _withheld
    _withheld = withheld


def given_device(gpus_per_worker: float | str | None = None) -> torch.device:
    """The GPU that this process may use, or the CPU: where there is none, none was given, or the user wants none."""
    if _withheld or gpus_per_worker == 0 or not torch.cuda.is_available():
        return CPU
    return torch.device("cuda")


def num_gpus() -> int:
    """Those that this process may use."""
    return torch.cuda.device_count() if given_device().type == "cuda" else 0


def gpu_bytes() -> int:
    """Memory of the GPU that this process may use; 0 without one."""
    return torch.cuda.get_device_properties(0).total_memory if given_device().type == "cuda" else 0


def wait(device: torch.device) -> None:
    """Until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def chosen_precision(wanted: str, device: torch.device) -> Precision:
    """What "auto" means there: bfloat16 on GPUs that have it, float16 on those that have only that, else float32.

    float32 on CPUs: autocast makes few of them faster, and results on them are to stay what they were.
    """
    if wanted == "auto":
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        if capability >= BFLOAT16_SINCE:
            return "bfloat16"
        return "float16" if capability >= FLOAT16_SINCE else "float32"
    assert wanted in PRECISIONS, wanted
    return wanted  # type: ignore[return-value]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "float32")


@contextmanager
def arithmetic(device: torch.device, precision: str, *, deterministic: bool = False) -> Iterator[None]:
    """How a GPU computes inside of the block: what stays float32 beside a lower precision multiplies in TF32.

    `deterministic`: the same bits in every run, by the algorithms that give them and without TF32; an operation that
    has none raises RuntimeError. A process trains one trial after the other, so all is put back at the end.
    """
    if device.type != "cuda" and not deterministic:
        yield
        return
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )
    try:
        if deterministic:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
            torch.use_deterministic_algorithms(True)
        elif precision != "float32":
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before[1:3]
        torch.use_deterministic_algorithms(before[3])


def fastest(work: Callable[[], object], device: torch.device, in_a_row: int = 1) -> float:
    """Seconds of one call of `work`, warm: the least over some passes of `in_a_row` calls each.

    The first pass prepares kernels, on a GPU for seconds, and is never counted; any may wait for other work on the
    machine, which several short ones show. Of passes that take long even when they are warm one counts.
    """
    passes: list[float] = []
    for number in range(NUM_WARM + NUM_PASSES):
        wait(device)
        started = time.perf_counter()
        for _ in range(in_a_row):
            work()
        wait(device)
        seconds = time.perf_counter() - started
        if number >= NUM_WARM or (number > 0 and seconds > LONG_PASS):
            passes.append(seconds)
        if sum(passes) > LONG_PASS:
            break
    return min(passes) / in_a_row


def start_seconds(device: torch.device) -> float:
    """What the first work of a process on the device takes beyond the work: CUDA's and cuDNN's start; 0 on a CPU.

    A process pays it once; here too, so that a second call finds nothing.
    """
    if device.type != "cuda":
        return 0.0
    started = time.perf_counter()
    layer = torch.nn.Conv2d(3, 8, 3, device=device)
    layer(torch.randn(2, 3, 32, 32, device=device)).sum().backward()
    torch.mm(torch.randn(64, 64, device=device), torch.randn(64, 64, device=device))
    wait(device)
    return time.perf_counter() - started
