"""Does batch prediction keep up with the bare forward, and does a kill in the middle cost or double an image?

    python -m benchmarks.predict_scale [--images 20000] [--part speed | kill]        # eight minutes on two cores

Small photos: JPEGs of 160 pixels, some 9 KB, cut out of the shared ones.

*speed*: torchvision's MobileNetV2 with its ImageNet weights and 1000 classes at its own 224 pixels. It is the lightest
backbone in common use: with a heavier one, what surrounds the forward weighs less. `tlray predict --output` from the
start of its process to its end (Ray, workers, importing torch, listing, writing) between measurements of the bare
forward on preloaded batches; see programs/bare_forward.py. The forward limit is the fastest of eight: the model as it
was exported and with its BatchNorms folded, by 4 and by 16 images, one forward with all threads and one a core.

*kill*: a light network (mobilenetv2_035 at 96 pixels, 10 classes), every process killed (SIGKILL) when a third of the
images are there, then the same command again.

The last line is one JSON object: forward_over_predict (images/s of the fastest bare forward over those of the
prediction), plain_forward_over_predict (of the model as it was exported), predict_over_forward_cpu (CPU seconds an
image), images_per_second; images_missing and images_doubled after the kill, parts_computed_again of those that were
there.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.machine import describe, shared_folder
from benchmarks.process_tree import Usage, run_measured

ID, WEIGHTS = "torchvision/mobilenet_v2", "mobilenet_v2.safetensors"
LIGHT_ID, LIGHT_WEIGHTS, LIGHT_SIZE = "timm/mobilenetv2_035", "mobilenetv2_035.safetensors", 96
PIXELS, QUALITY = 160, 88
IMAGES_PER_FOLDER = 1000
POLL_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--part", choices=["speed", "kill"])
    parser.add_argument("--folder", help="where to keep the images for the next time")
    options = parser.parse_args()
    print(describe())
    shared = shared_folder()
    outcome: dict[str, float] = {"images": options.images}
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as name:
        folder = Path(options.folder or name)
        if not (folder / "images").exists():
            write_images(shared, folder / "images", options.images)
        if options.part != "kill":
            outcome |= measure_speed(shared, folder, Path(name) / "speed", options.images)
        if options.part != "speed":
            outcome |= measure_kill(shared, folder, Path(name) / "kill", options.images)
    print(json.dumps(outcome))


def write_export(shared: Path, destination: Path, config: Any, classes: Sequence[str]) -> str:
    """What a run would export of a backbone with the weights it starts with."""
    import torch

    from tlray.data.decode import decode
    from tlray.data.transforms import eval_transform
    from tlray.export import export_bundle
    from tlray.models.backbone import build_backbone

    backbone = build_backbone(config, len(classes))
    photos = [torch.from_numpy(decode(path.read_bytes())).permute(2, 0, 1) for path in photos_in(shared)[:4]]
    return export_bundle(
        model=backbone.model.eval(),
        backbone=config,
        classes=classes,
        preprocessing=backbone.preprocessing,
        strategy="full",
        params={},
        metrics=made_up_metrics(),
        data_summary={name: dict.fromkeys(classes, 1) for name in ("train", "val", "test")},
        samples=torch.stack([eval_transform(photo, backbone.preprocessing) for photo in photos]),
        destination=str(destination),
    )


def made_up_metrics() -> dict[str, Any]:
    """What a leaderboard's row says, for the model card alone."""
    scores = ("accuracy", "top5_accuracy", "macro_f1")
    numbers = ("gain", "gain_low", "gain_high", "num_params", "num_trainable_params", "seed")
    row: dict[str, Any] = {f"{split}_{score}": 0.0 for split in ("val", "test") for score in scores}
    return row | dict.fromkeys(numbers, 0) | {"trial_id": "benchmark", "rank": 1, "epochs": 1, "best_epoch": 1}


def photos_in(shared: Path) -> list[Path]:
    return sorted((shared / "data/hymenoptera").glob("*/*/*.jpg"))


def write_images(shared: Path, folder: Path, count: int) -> None:
    """Different square cuts of the photos."""
    photos = [Image.open(path).convert("RGB") for path in photos_in(shared)[:100]]
    draw = random.Random(0)
    for number in range(count):
        photo = photos[number % len(photos)]
        side = draw.randint(min(photo.size) // 2, min(photo.size))
        left, top = draw.randint(0, photo.width - side), draw.randint(0, photo.height - side)
        path = folder / f"{number // IMAGES_PER_FOLDER:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cut = photo.resize((PIXELS, PIXELS), Image.Resampling.BILINEAR, (left, top, left + side, top + side), 1.0)
        cut.save(path, quality=QUALITY)


def measure_speed(shared: Path, folder: Path, output: Path, count: int) -> dict[str, float]:
    from tlray.config import BackboneConfig
    from tlray.models.backbone import load_classifier

    config = BackboneConfig(id=ID, weights=f"{shared}/weights/{WEIGHTS}")
    export = write_export(shared, output.with_name("export"), config, load_classifier(ID, config.weights)[2])
    forwards = [bare_forward(export, folder)]
    usage = run_measured(prediction(export, folder, output))
    forwards.append(bare_forward(export, folder))
    speed = count / usage.wall_seconds
    best = {
        name: max((one[name] for one in forwards), key=lambda found: found["images_per_second"])
        for name in ("plain", "folded")
    }
    for name, found in best.items():
        print(f"{name + ' forward':18} {found['images_per_second']:8.1f} images/s", end="")
        print(f" {1000 * found['cpu_seconds_per_image']:8.2f} ms CPU an image")
    cpu = usage.cpu_seconds / count
    print(
        f"{'predict':18} {speed:8.1f} images/s {1000 * cpu:8.2f} ms CPU an image, {usage.wall_seconds:.1f} s",
        flush=True,
    )
    _print_processes(usage)
    limit = max(best.values(), key=lambda found: found["images_per_second"])
    return {
        "forward_over_predict": round(limit["images_per_second"] / speed, 3),
        "plain_forward_over_predict": round(best["plain"]["images_per_second"] / speed, 3),
        "predict_over_forward_cpu": round(cpu / limit["cpu_seconds_per_image"], 3),
        "images_per_second": round(speed, 1),
        "predict_seconds": round(usage.wall_seconds, 1),
    }


def _print_processes(usage: Usage) -> None:
    for name, seconds in sorted(usage.cpu_by_name.items(), key=lambda one: -one[1])[:4]:
        print(f"  {name[:40]:40} {seconds:8.1f} s CPU, {usage.peak_bytes.get(name, 0) / 1e6:6.0f} MB at most")


def bare_forward(export: str, folder: Path) -> dict[str, dict[str, float]]:
    program = [sys.executable, "-m", "benchmarks.programs.bare_forward", export, str(folder / "images")]
    return json.loads(run_measured(program).last_line)


def prediction(export: str, folder: Path, output: Path) -> list[str]:
    arguments = [export, str(folder / "images"), "--output", str(output), "--json"]
    return [sys.executable, "-m", "tlray.cli", "predict", *arguments]


def measure_kill(shared: Path, folder: Path, output: Path, count: int) -> dict[str, float]:
    from tlray.config import BackboneConfig

    config = BackboneConfig(id=LIGHT_ID, weights=f"{shared}/weights/{LIGHT_WEIGHTS}", input_size=LIGHT_SIZE)
    command = prediction(write_export(shared, output.with_name("light"), config, tuple("abcdefghij")), folder, output)
    done = output / "predictions"
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while sum(pq.read_metadata(path).num_rows for path in done.glob("*.parquet")) < count / 3:
            assert killed.poll() is None, "the prediction ended before it could be killed"
            time.sleep(POLL_SECONDS)
        tree = [killed, *psutil.Process(killed.pid).children(recursive=True)]
        for process in tree:
            process.kill()
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("*.parquet")}
    known = sum(pq.read_metadata(done / name).num_rows for name in before)
    print(
        f"killed {len(tree)} processes after {time.perf_counter() - started:.1f} s: {known} images are there",
        flush=True,
    )
    usage = run_measured(command)
    summary = json.loads(usage.last_line)
    uris = [uri for path in done.glob("*.parquet") for uri in pq.read_table(path, columns=["uri"])["uri"].to_pylist()]
    listed = {str(path) for path in (folder / "images").glob("*/*.jpg")}
    print(f"started again: {summary['images_computed']} images in {usage.wall_seconds:.1f} s")
    return {
        "killed_with_images": known,
        "images_missing": len(listed - set(uris)),
        "images_doubled": len(uris) - len(set(uris)),
        "parts_computed_again": sum((done / name).stat().st_mtime_ns != when for name, when in before.items()),
        "images_computed_after_kill": summary["images_computed"],
    }


if __name__ == "__main__":
    main()
