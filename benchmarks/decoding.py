"""What decoding and resizing to 224 costs: tlray's decoder, and others that are in use, on the same bytes.

    python -m benchmarks.decoding [--repeats 5]

Small: photos of the shared hymenoptera set of 500x375 or close to it. Large: 4000x3000, made here with the spectrum of
photos. Each way decodes and resizes the short side to 224. CPU time of this process, torch and OpenCV on one thread,
the ways in turn, the median of the repeats: torchvision's varies by a third with whether the 36 MB of an image are
fresh from the kernel. The error is the mean absolute difference to Pillow, in grey levels of 255.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.v2 import functional as F

from benchmarks.machine import describe, shared_folder
from tlray.catalogue import Preprocessing
from tlray.data.decode import check, decode
from tlray.data.transforms import eval_transform, needed_size

SIZE = 224
NUM_SMALL, NUM_LARGE = 60, 3
LARGE = (3000, 4000)
PREPROCESSING = Preprocessing(
    input_size=(SIZE, SIZE), resize=SIZE, crop_mode="center", interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
)
# In 136 mid-sized photos of the shared sets, amplitude falls with frequency^1.39 (median; tenths 1.08 and 1.61) and
# grey levels spread by 55 (median)
SLOPE, SPREAD = 1.4, 55
Way = Callable[[bytes], np.ndarray]


def made_photo(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8 noise with the spectrum of photos, and colours that go together as theirs do."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).astype(np.float32)
    lens = np.exp(-((frequency / 0.35) ** 2))
    amplitude = lens * (frequency + 2 / max(height, width)) ** -SLOPE
    planes = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * random.random(frequency.shape, dtype=np.float32)).astype(np.complex64)
        plane = np.fft.irfft2(amplitude * phases, s=(height, width))
        planes.append(plane / plane.std())
    light, *colours = planes
    channels = [light, light + 0.35 * colours[0], light + 0.35 * colours[1]]
    return (128 + SPREAD * np.stack(channels, axis=-1)).clip(0, 255).astype(np.uint8)


def as_jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def with_tlray(data: bytes) -> np.ndarray:
    return _eval(decode(data, needed_size(_in_manifest(data), PREPROCESSING, "none")))


@cache
def _in_manifest(data: bytes) -> tuple[int, int]:
    """Known before an image is read for training, so it costs nothing here."""
    return check(data)


def with_tlray_whole(data: bytes) -> np.ndarray:
    return _eval(decode(data))


def with_pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return _crop(np.asarray(image.resize(_short_side(image.size), Image.Resampling.BILINEAR)))


def with_pillow_draft(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    size = _short_side(image.size)
    image.draft("RGB", size)
    return _crop(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)))


def with_torchvision(data: bytes) -> np.ndarray:
    image = F.resize(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)), [SIZE], antialias=True)
    return _crop(image.permute(1, 2, 0).numpy())


def with_opencv(data: bytes) -> np.ndarray:
    """The flag that OpenCV has for large images; its way of shrinking is not the filter that the others use."""
    import cv2

    height, width = _in_manifest(data)
    by = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
    flag = next((by[scale] for scale in by if min(height, width) >= scale * SIZE), cv2.IMREAD_COLOR)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    image = cv2.resize(image, _short_side(image.shape[1::-1]), interpolation=cv2.INTER_AREA)
    return _crop(image[..., ::-1])


def _eval(pixels: np.ndarray) -> np.ndarray:
    return eval_transform(torch.from_numpy(pixels).permute(2, 0, 1), PREPROCESSING).permute(1, 2, 0).numpy()


def _short_side(size: Sequence[int]) -> tuple[int, int]:
    """Width, height -> the same with a short side of 224."""
    width, height = size
    return (SIZE, int(SIZE * height / width)) if width < height else (int(SIZE * width / height), SIZE)


def _crop(pixels: np.ndarray) -> np.ndarray:
    top, left = (round((side - SIZE) / 2) for side in pixels.shape[:2])
    return pixels[top : top + SIZE, left : left + SIZE]


def measure(ways: dict[str, Way], images: list[bytes], repeats: int) -> dict[str, float]:
    """CPU milliseconds an image: each image goes through every way before the next one does."""
    spent = {name: np.zeros((repeats, len(images))) for name in ways}
    for repeat in range(repeats):
        order = [*ways][repeat % len(ways) :] + [*ways][: repeat % len(ways)]  # the first finds the caches cold
        for index, data in enumerate(images):
            for name in order:
                started = time.process_time_ns()
                ways[name](data)
                spent[name][repeat, index] = (time.process_time_ns() - started) / 1e6
    return {name: float(np.median(milliseconds, axis=0).mean()) for name, milliseconds in spent.items()}


def error(way: Way, images: list[bytes]) -> float:
    differences = [np.abs(way(data).astype(int) - with_pillow(data).astype(int)).mean() for data in images]
    return float(np.mean(differences))


def small_photos() -> list[bytes]:
    found = []
    for path in sorted((shared_folder() / "data/hymenoptera").glob("*/*/*.jpg")):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            if max(image.size) == 500 and min(image.size) in range(325, 380) and image.mode == "RGB":
                found.append(data)
    return found[:NUM_SMALL]


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of decoding and resizing to 224")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    ways: dict[str, Way] = {
        "tlray": with_tlray,
        "tlray, whole": with_tlray_whole,
        "pillow": with_pillow,
        "pillow draft": with_pillow_draft,
        "torchvision": with_torchvision,
        "check alone": lambda data: np.array(check(data)),
    }
    try:
        import cv2

        cv2.setNumThreads(1)
        ways["opencv reduced"] = with_opencv
    except ImportError:
        print("OpenCV is not installed: left out")
    print(describe())
    print(", ".join(f"{name} {version(name)}" for name in ("pillow", "simplejpeg", "numpy")))
    sets = {"small": small_photos(), "large": [as_jpeg(made_photo(*LARGE, seed)) for seed in range(NUM_LARGE)]}
    costs = {name: measure(ways, images, repeats) for name, images in sets.items()}
    compared = {name: way for name, way in ways.items() if name != "check alone"}
    errors = {name: {way: error(compared[way], images) for way in compared} for name, images in sets.items()}
    for name, images in sets.items():
        print(f"\n{name}: {len(images)} images of {np.mean([len(data) for data in images]) / 1e6:.2f} MB")
        print(f"{'':18}{'ms of CPU':>10}{'images/s':>10}{'error':>8}")
        for way, milliseconds in costs[name].items():
            shown = f"{errors[name][way]:8.3f}" if way in compared else ""
            print(f"{way:18}{milliseconds:10.3f}{1000 / milliseconds:10.1f}{shown}")
    outcome = {
        "large_vs_pillow": costs["large"]["pillow"] / costs["large"]["tlray"],
        "large_vs_torchvision": costs["large"]["torchvision"] / costs["large"]["tlray"],
        "small_vs_pillow": costs["small"]["pillow"] / costs["small"]["tlray"],
        "large_error": errors["large"]["tlray"],
        "small_error": errors["small"]["tlray"],
    }
    print(json.dumps({key: round(value, 4) for key, value in outcome.items()}))


if __name__ == "__main__":
    main()
