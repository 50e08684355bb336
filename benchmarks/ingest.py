"""What does it cost to bring JPEGs to batches of 224 px? tlray, the loaders that are in use, and the decoder alone.

    python -m benchmarks.ingest [--rounds 5] [--images 1000] [--peers PYTHON]

Small photos of 500x375 and large ones of 4000x3000, each program in a fresh process, on the same files and cores, two
threads or worker processes each, the programs in turn in every round. CPU is that of the whole process tree over some
passes, after one that is not counted (see programs/ingest_pass.py); a server's is not in it. tlray *loose* reads and
decodes every image in every pass, as a first epoch does; *kept* finds its decoded pixels on the disk, as later ones do.
What tlray does once before, making the manifest (which reads and checks every image), is shown apart. The error is the
mean absolute difference to Pillow's bilinear result, in grey levels of 255; others resize in ways of their own.

WebDataset, MosaicML Streaming and SPDL are the extra `bench`; SPDL wants the libraries of FFmpeg 4 to 9 too. Streaming
asks for an older numpy than tlray's tests run with, so --peers takes the Python of an environment where they are. One
that is not there is said to be missing.

The last line is one JSON object, ratios of CPU time, medians over the rounds: small_vs_decoder (bare decoder / loose
files on disk), small_vs_imagefolder, small_vs_read_images, large_vs_pillow and large_vs_torchvision (decoders alone),
epoch2_vs_imagefolder, epoch2_vs_materialize; and `all`, what every program costs. A missing program's are null.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.ingest_work import Inputs
from benchmarks.machine import describe
from tests.s3server import chosen_server, running_s3_server

NUM_LARGE = 16
LARGEST_ERROR = {"small": 0.1, "large": 1.0}  # of tlray, grey levels
RATIOS = {
    "small_vs_decoder": ("decoder", "tlray, loose files"),
    "small_vs_imagefolder": ("ImageFolder", "tlray, loose files"),
    "small_vs_read_images": ("Ray read_images", "tlray, loose files"),
    "large_vs_pillow": ("large, Pillow", "large, decoder"),
    "large_vs_torchvision": ("large, torchvision", "large, decoder"),
    "epoch2_vs_imagefolder": ("ImageFolder", "tlray, kept pixels"),
    "epoch2_vs_materialize": ("Ray materialize", "tlray, kept pixels"),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """One of benchmarks/programs and what it is to do."""

    module: str  # ingest_MODULE
    images: str = "small"
    passes: int = 1  # as many as take long enough to be counted in hundredths of a second
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    needs: str = ""  # a statement that works in the Python of the peers, where the program can
    is_tlray: bool = False


@dataclasses.dataclass(frozen=True)
class Cost:
    cpu_ms: float  # an image
    wall_ms: float


def programs(inputs: Inputs, s3_location: str) -> tuple[dict[str, Program], dict[str, float]]:
    """All of them, by label; and the CPU milliseconds an image that each of tlray's manifests took."""
    folder = inputs.folder
    sources = {
        "loose files": inputs.source("loose", str(inputs.photos["small"]), prepare=False),
        "S3, loose": inputs.source("s3", s3_location, prepare=False),
        "shards": inputs.source("shards", str(inputs.photos["small"]), prepare=True),
        "S3, shards": inputs.source("s3-shards", s3_location, prepare=True),
        "large files": inputs.source("large", str(inputs.photos["large"]), prepare=False),
    }

    def ours(name: str, **fields: Any) -> Program:
        source = sources[name]
        settings = {"data": source.data.model_dump(mode="json"), "manifest": source.manifest, "memory_cache_mb": 0}
        kept = {"kept_pixels": fields.pop("kept_pixels", None)}
        return Program("tlray", settings=settings | kept, is_tlray=True, **fields)

    found = {
        "decoder": Program("decoder", settings={"decoder": "tlray"}, is_tlray=True),
        **{f"tlray, {name}": ours(name) for name in sources if name != "large files"},
        "tlray, kept pixels": ours("loose files", kept_pixels=str(folder / "pixels"), passes=100),
        "ImageFolder": Program("imagefolder"),
        "WebDataset": Program("webdataset", settings={"folder": str(folder / "tars")}, needs="import webdataset"),
        "Streaming": Program("streaming", settings={"folder": str(folder / "mds")}, needs="import streaming"),
        "SPDL": Program("spdl", needs="import spdl.io.utils; spdl.io.utils.get_ffmpeg_versions()"),
        "Ray read_images": Program("ray", settings={"materialize": False}),
        "Ray materialize": Program("ray", settings={"materialize": True}, passes=10),
        "large, decoder": Program("decoder", "large", settings={"decoder": "tlray"}, passes=3, is_tlray=True),
        "large, tlray": ours("large files", images="large", passes=3),
        "large, Pillow": Program("decoder", "large", settings={"decoder": "pillow"}),
        "large, torchvision": Program("decoder", "large", settings={"decoder": "torchvision"}, passes=3),
    }
    return found, {name: source.manifest_cpu_ms for name, source in sources.items()}


class Runs:
    """Runs the programs, and remembers what they cost and how good their pixels are."""

    def __init__(self, inputs: Inputs, peers: str) -> None:
        self._inputs, self._peers = inputs, peers
        self.costs: dict[str, list[Cost]] = defaultdict(list)
        self.errors: dict[str, float] = {}

    def run(self, label: str, program: Program) -> None:
        """RuntimeError with the program's output when it fails or, if it is tlray, when its pixels are wrong."""
        sample = self._inputs.folder / "sample.npy"
        work = {
            "images": str(self._inputs.photos[program.images]),
            "num_images": self._inputs.num_images[program.images],
            "passes": program.passes,
            "sample": "" if label in self.errors else str(sample),
            "settings": program.settings,
        }
        path = self._inputs.folder / "work.json"
        path.write_text(json.dumps(work))
        python = self._peers if program.needs else sys.executable
        command = [python, "-m", f"benchmarks.programs.ingest_{program.module}", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{label} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
        cost = json.loads(done.stdout.strip().splitlines()[-1])
        self.costs[label].append(Cost(**cost))
        if label not in self.errors:
            self.errors[label] = error = self._inputs.error(program.images, sample)
            if program.is_tlray and error > LARGEST_ERROR[program.images]:
                raise RuntimeError(f"{label}: pixels differ by {error:.3f}, more than {LARGEST_ERROR[program.images]}")

    def ratio(self, peer: str, ours: str) -> float | None:
        """Median over the rounds; None where a program is missing."""
        pairs = zip(self.costs[peer], self.costs[ours], strict=bool(self.costs[peer] and self.costs[ours]))
        ratios = [its.cpu_ms / mine.cpu_ms for its, mine in pairs]
        return statistics.median(ratios) if ratios else None

    def median(self, label: str) -> Cost:
        costs = self.costs[label]
        return Cost(*(statistics.median(getattr(cost, name) for cost in costs) for name in ("cpu_ms", "wall_ms")))


def missing_peers(python: str, wanted: dict[str, Program]) -> dict[str, str]:
    """Programs that cannot run with that Python, by label, and what it says."""
    missing = {}
    for label, program in wanted.items():
        if program.needs:
            tried = subprocess.run([python, "-c", program.needs], capture_output=True, text=True, check=False)
            if tried.returncode != 0:
                missing[label] = tried.stderr.strip().splitlines()[-1]
    return missing


def print_table(runs: Runs, wanted: dict[str, Program], missing: dict[str, str]) -> dict[str, Any]:
    """-> the same as a dictionary"""
    outcome: dict[str, Any] = {}
    print(f"{'':24}{'CPU ms':>9}{'lowest':>9}{'highest':>9}{'images/s':>10}{'error':>8}")
    for label in wanted:
        if label in missing:
            print(f"{label:24} missing (extra `bench`, see --peers): {missing[label]:.150}")
            outcome[label] = None
            continue
        cost, error = runs.median(label), runs.errors[label]
        every = [one.cpu_ms for one in runs.costs[label]]
        print(
            f"{label:24}{cost.cpu_ms:9.3f}{min(every):9.3f}{max(every):9.3f}{1000 / cost.wall_ms:10.1f}{error:8.3f}",
        )
        outcome[label] = {
            "cpu_ms": round(cost.cpu_ms, 4),
            "images_per_second": round(1000 / cost.wall_ms, 1),
            "error": round(error, 3),
        }
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000, help="small photos")
    parser.add_argument("--large", type=int, default=NUM_LARGE, help="photos of 12 megapixels")
    parser.add_argument("--peers", default=sys.executable, help="Python that has the extra `bench`")
    parser.add_argument("--only", default="", help="programs whose label contains one of these, comma-separated")
    options = parser.parse_args()
    print(describe())
    print(", ".join(f"{name} {version(name)}" for name in ("pillow", "simplejpeg", "numpy")))
    print(f"S3 server: {chosen_server()[1]}")
    # a short path: sockets of the server lie in it
    with tempfile.TemporaryDirectory(prefix="tlray-") as name, tempfile.TemporaryDirectory(prefix="s3-") as server:
        inputs = Inputs(Path(name), options.images, options.large)
        print(inputs.description, flush=True)
        with running_s3_server(Path(server)) as s3:
            os.environ.update(s3.environment)
            wanted, manifests = programs(inputs, inputs.upload())
            names = options.only.split(",")
            wanted = {label: program for label, program in wanted.items() if any(name in label for name in names)}
            missing = missing_peers(options.peers, wanted)
            runs = Runs(inputs, options.peers)
            for number in range(options.rounds):
                for label, program in wanted.items():
                    if label not in missing:
                        runs.run(label, program)
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        outcome = print_table(runs, wanted, missing)
    shown = ", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in manifests.items())
    print(f"the manifest before, CPU ms an image: {shown}")
    ratios = {name: runs.ratio(*pair) for name, pair in RATIOS.items()}
    rounded = {name: None if ratio is None else round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps(rounded | {"all": outcome}))


if __name__ == "__main__":
    main()
