"""How much of one GPU does tlray use? Its own loops beside plain PyTorch and timm, in the same process.

    python -m benchmarks.gpu [--today PATH] [--out FILE] [--tiny] [--only PART ...]

Neither Ray nor network; under six minutes on an H200 with 16 cores. `--today`: a checkout of an earlier version, whose
default speed is measured too. `--tiny`: sizes that end on a CPU, to see that all of it runs. Every part prints rows as
it ends; the last line is one JSON object with what docs/results/gpu.md shows.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu_parts import bare, limits, ours
from benchmarks.gpu_parts.work import NUM_CLASSES, make_jpegs, scratch
from tlray.process.device import given_device, start_seconds

ROOT = Path(__file__).parent.parent
FIT = ROOT / "benchmarks" / "programs" / "gpu_fit.py"
DEFAULT_BATCH = 32  # of a trial


@dataclass(frozen=True)
class Sizes:
    models: tuple[str, ...] = ("resnet50", "vit_b_16", "efficientnet_b0")
    steps: tuple[tuple[int, int], ...] = ((32, 60), (256, 16))  # batch, and steps of an epoch
    backbone: str = "resnet50"
    blocks: int = 3
    images: int = 6144
    partial_batch: int = 256
    heads: int = 256
    features: tuple[int, int] = (8192, 2048)
    limit_images: int = 4096


TINY = Sizes(
    models=("resnet18",),
    steps=((4, 3),),
    backbone="resnet18",
    blocks=2,
    images=96,
    partial_batch=8,
    heads=4,
    features=(256, 512),
    limit_images=32,
)


@dataclass
class Run:
    """What has been found, and what it was found on."""

    device: torch.device
    sizes: Sizes
    today: Path | None
    found: dict[str, float] = field(default_factory=dict)  # the last line
    rows: list[dict[str, object]] = field(default_factory=list)

    def row(self, part: str, what: str, ours: float, limit: float | None = None, unit: str = "images/s") -> float:
        """One line of the table -> ours over the limit."""
        share = ours / limit if limit else float("nan")
        shown = f"{limit:12,.1f} {share:7.2f}" if limit else ""
        print(f"{part:12s} {what:52s} {ours:12,.1f} {shown} {unit}", flush=True)
        self.rows.append({"part": part, "what": what, "tlray": ours, "limit": limit, "unit": unit})
        return share


def full_part(run: Run) -> None:
    """All blocks train on noise, at the defaults, beside the bare bfloat16 loop."""
    at_default: list[float] = []
    stalls: list[float] = []
    for name in run.sizes.models:
        for batch, steps in run.sizes.steps:
            limit = bare.full_speed(name, batch, steps, run.device)
            trained = ours.full(name, batch, steps, run.device)
            share = run.row("full", f"{name}, batch {batch}, default", trained.speed, limit)
            run.found[f"full_{name}_{batch}"] = round(trained.speed, 1)
            if batch == run.sizes.steps[0][0]:
                at_default.append(share)
            else:
                run.row("full", f"{name}: stall by checkpoints, of its epochs", 100 * trained.stall, unit="%")
                stalls.append(trained.stall)
    run.found["full_vs_bare"] = round(min(at_default), 3)
    run.found["checkpoint_stall"] = round(max(stalls, default=0.0), 4)
    name, (batch, steps) = run.sizes.models[0], run.sizes.steps[-1]
    run.row("full", f"{name}, batch {batch}, timm's own loop", bare.timm_speed(name, batch, steps, run.device))
    exact = ours.full(name, batch, steps, run.device, deterministic=True)
    run.row("full", f"{name}, batch {batch}, deterministic: true", exact.speed)


def today_part(run: Run) -> None:
    """The defaults of an earlier checkout and of this one, each in a process of its own."""
    if run.today is None:
        return
    gains: list[float] = []
    batch, steps = run.sizes.steps[0]
    for name in run.sizes.models[:2]:
        before, now = (_fit_speed(path, name, batch, steps) for path in (run.today, ROOT))
        gains.append(run.row("today", f"{name}, batch {batch}: now, and before", now, before))
    run.found["default_vs_today"] = round(min(gains), 2)


def _fit_speed(checkout: Path, name: str, batch: int, steps: int) -> float:
    path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, str(FIT), name, str(batch), str(steps)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(json.loads(ended.stdout.splitlines()[-1])["images_per_second"])


def heads_part(run: Run) -> None:
    """Stacked heads on features that the device holds, beside a graph of the same arithmetic."""
    generator = torch.Generator(device=run.device).manual_seed(0)
    features = torch.randn(run.sizes.features, generator=generator, device=run.device)
    labels = torch.randint(0, NUM_CLASSES, (len(features),), generator=generator, device=run.device)
    limit = bare.heads_speed(run.sizes.heads, features, labels, NUM_CLASSES, DEFAULT_BATCH)
    speed = ours.heads_speed(run.sizes.backbone, run.sizes.heads, features, labels, DEFAULT_BATCH)
    share = run.row("heads", f"{run.sizes.heads} heads, batch {DEFAULT_BATCH}, {len(features)} images", speed, limit)
    run.found["heads_vs_graph"] = round(share, 3)


def pass_part(run: Run) -> None:
    """JPEGs through a frozen prefix, then trials on what it stored."""
    sizes = run.sizes
    with scratch() as folder:
        make_jpegs(folder / "images", sizes.images)
        passed = ours.activation_pass(sizes.backbone, folder / "images", folder / "runs", sizes.blocks, run.device)
        planned = passed.planned
        some = list(planned.manifest.split("train")[: sizes.limit_images])
        backbone = planned.config.chosen_backbones[0]
        preprocessing = ours.preprocessing_of(backbone)
        decode = limits.decode_speed(some, preprocessing)
        for threads in (8, os.cpu_count() or 1):
            speed = limits.threads_speed(some[: len(some) // 2], preprocessing, threads)
            run.row("pass", f"decoding alone, {threads} threads of one process", speed)
        forward = limits.forward_speed(backbone, (0, sizes.blocks), run.device)
        run.row("pass", "decoding alone, a process on every core", decode)
        run.row("pass", "the frozen forward alone", forward)
        share = run.row("pass", f"{sizes.backbone}, two cuts", passed.speed, min(decode, forward))
        run.found["activation_pass_vs_forward_or_decode"] = round(share, 3)
        run.found["estimate_pass"] = round(passed.speed / passed.estimated, 3)
        _stored_rows(run, passed)


def _stored_rows(run: Run, passed: ours.Passed) -> None:
    sizes = run.sizes
    trained, streams, expected = ours.stored_trial(passed, "partial", sizes.partial_batch, run.device)
    run.found["estimate_partial"] = round(trained.speed / expected, 3)
    values = [torch.cat(parts).to(run.device) for parts in zip(*(b.inputs for b in streams.train(1)), strict=True)]
    labels = torch.cat([batch.labels for batch in streams.train(1)]).to(run.device)
    limit = bare.partial_speed(sizes.backbone, sizes.blocks, sizes.partial_batch, values, labels, run.device)
    what = f"last {sizes.blocks} blocks of {sizes.backbone}, batch {sizes.partial_batch}"
    run.found["partial_vs_resident"] = round(run.row("partial", what, trained.speed, limit), 3)
    probe, _, expected = ours.stored_trial(passed, "linear_probe", DEFAULT_BATCH, run.device)
    run.found["estimate_probe"] = round(probe.speed / expected, 3)
    batch, steps = sizes.steps[0]
    live = ours.live_probe(sizes.backbone, batch, steps, run.device)
    share = run.row("probe", f"{sizes.backbone}, batch {batch}: on features, and live", probe.speed, live.speed)
    run.found["probe_vs_live"] = round(share, 1)


def estimate_part(run: Run) -> None:
    name, batch = run.sizes.models[0], run.sizes.steps[0][0]
    expected = ours.expected_full(name, batch)
    actual = run.found.get(f"full_{name}_{batch}")
    if actual is not None:
        run.found["estimate_full"] = round(actual / expected, 3)


PARTS: dict[str, Callable[[Run], None]] = {
    "heads": heads_part,
    "pass": pass_part,
    "full": full_part,
    "estimate": estimate_part,
    "today": today_part,
}


def describe(device: torch.device) -> str:
    """Device, driver, versions, command."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    driver = ""
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    packages = ", ".join(f"{package} {_version(package)}" for package in ("torch", "torchvision", "timm"))
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    return (
        f"{command}\n{name}, driver {driver}, CUDA {torch.version.cuda}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {packages}"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--today", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args()
    run = Run(given_device(), TINY if given.tiny else Sizes(), given.today)
    began = time.perf_counter()
    print(describe(run.device), flush=True)
    print(f"CUDA's start {start_seconds(run.device):.1f} s", flush=True)
    failed = []
    for name in given.only:
        started = time.perf_counter()
        try:
            PARTS[name](run)
        except Exception:  # the other parts are worth having
            traceback.print_exc()
            failed.append(name)
        print(f"-- {name}: {time.perf_counter() - started:.0f} s", flush=True)
    last = {
        "device": describe(run.device),
        "seconds": round(time.perf_counter() - began),
        "failed": failed,
        **run.found,
    }
    if given.out is not None:
        given.out.write_text(json.dumps({**last, "rows": run.rows}, indent=1))
    print(json.dumps(last))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
