"""A model as ONNX and as a torch.export program, and the proof that they compute what the model computes.

    write_formats(model, images, folder)                  # model.onnx, model.pt2
    agreement = check_formats(model, images, folder, rebuilt)

Both take images (B, 3, H, W) float32, normalised, with any B, and give logits (B, C) float32.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from tlray.errors import TlrayError
from tlray.runs.bundle_sums import ONNX, PROGRAM, WEIGHTS

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
# float32 kernels of different runtimes add in different orders: measured differences of the families in the tests are
# below 1e-5 of the largest logit.
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-4
LARGEST_ONNX_BYTES = 1_800_000_000  # protobuf ends at 2 GiB; larger weights go to model.onnx.data
CHATTY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class Agreement(BaseModel):
    """Largest difference of each format's logits from the model's, over sample images in batches of two sizes."""

    model_config = ConfigDict(frozen=True)

    num_images: int
    largest_logit: float
    allowed_difference: float
    max_abs_difference: dict[str, float]  # by file name


def allowed_difference(logits: torch.Tensor) -> float:
    """How far a format's logits may be from the model's: absolute, or relative to the largest where that is above 1."""
    return max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * float(logits.abs().max()))


def write_formats(model: nn.Module, images: torch.Tensor, folder: Path, name: str) -> None:
    """Write model.pt2 and model.onnx; images (B, 3, H, W) float32 normalised, traced with; `name` is for errors."""
    import onnx

    if len(images) == 1:  # a dimension of size 1 is taken for a constant
        images = torch.cat([images, images])
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    try:
        with _quiet(), torch.no_grad():
            program = _trace(model, images)
            written = io.BytesIO()  # torch's own writer aborts the process where a file system is full
            torch.export.save(program, written)
            (folder / PROGRAM).write_bytes(written.getbuffer())
            torch.onnx.export(
                _trace_written_out(model, images) or program,
                f=folder / ONNX,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=size > LARGEST_ONNX_BYTES,
                verbose=False,
            )
    except Exception as error:  # the exporters raise almost any type; the architecture is what cannot be exported
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TlrayError(f"{name} cannot be exported to {PROGRAM} and {ONNX}: {reason}") from error
    _name_batch_dimension(folder / ONNX)
    onnx.checker.check_model(folder / ONNX, full_check=True)


def check_formats(
    model: nn.Module, images: torch.Tensor, folder: Path, rebuilt: Callable[[torch.Tensor], torch.Tensor]
) -> Agreement:
    """Compare every format with `model` on images (B, 3, H, W) float32 normalised, all at once and the first alone.

    `rebuilt` computes logits with what was read back from model.safetensors. TlrayError when one is off.
    """
    formats = {WEIGHTS: rebuilt, ONNX: onnx_logits(folder / ONNX), PROGRAM: program_logits(folder / PROGRAM)}
    differences = dict.fromkeys(formats, 0.0)
    with torch.no_grad():
        expected = model(images)
        for name, compute in formats.items():
            for batch, logits in ((images, expected), (images[:1], expected[:1])):
                difference = float((compute(batch) - logits).abs().max())
                differences[name] = max(differences[name], difference)
    allowed = allowed_difference(expected)
    off = [f"{name} by {difference:.2g}" for name, difference in differences.items() if not difference <= allowed]
    if off:
        raise TlrayError(
            f"the exported formats do not compute what the model computes: logits are off in {', '.join(off)} "
            f"where {allowed:.2g} is allowed; nothing was published"
        )
    return Agreement(
        num_images=len(images),
        largest_logit=float(expected.abs().max()),
        allowed_difference=allowed,
        max_abs_difference=differences,
    )


def onnx_logits(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The ONNX file as a function from images (B, 3, H, W) float32 normalised to logits (B, C) float32, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def program_logits(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The torch.export program as the same function."""
    with _quiet():
        module = torch.export.load(path).module()
    return lambda images: module(images)


def _trace(model: nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim(BATCH)},))


def _trace_written_out(model: nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram | None:
    """The model traced with attention written out; None where it has none that timm has fused.

    Fused attention with a mask (BEiT) fails in the ONNX exporter's decomposition, and ONNX Runtime fuses by itself.
    """
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False) is True]
    if not fused:
        return None
    try:
        for module in fused:
            module.fused_attn = False
        return _trace(model, images)
    finally:
        for module in fused:
            module.fused_attn = True


def _name_batch_dimension(path: Path) -> None:
    """Call the batch dimension "batch" wherever it occurs; the exporter names it after an internal symbol."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert symbol, "the batch dimension is fixed"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == symbol:
                dimension.dim_param = BATCH
    path.write_bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings and log lines: they are about their own workings, and the result is checked."""
    levels = {name: logging.getLogger(name).level for name in CHATTY_LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
