"""AutoGluon MultiModal fine-tunes a timm backbone, from the same weights as everyone.

    python -m benchmarks.programs.quality_autogluon job.json

At its defaults but for the batch, which is 128 images, more than some sets have. It trains on train with val as tuning
data, which also choose the backbone. The timm that it asks for has no SqueezeNet and, up to 1.0.3, no MobileNetV1: the
next one of three that logistic regression likes takes the place, if there is one.
The environment of `--autogluon` has autogluon.multimodal.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from autogluon.multimodal import MultiModalPredictor
from safetensors.torch import load_file
from timm.models import register_model

from benchmarks.quality_parts.backbones import read_job
from benchmarks.quality_parts.batches import score
from benchmarks.quality_parts.sets import listing
from benchmarks.quality_parts.weights import BACKBONES, INPUT_SIZE

ARCHITECTURES = {
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenetv1_100": "mobilenetv1_100",
    "mobilenetv2_035": "mobilenetv2_035_same",
}
NUM_BACKBONES = 2
FEW, BATCH, SMALL_BATCH = 128, 32, 8  # of fewer images than FEW, batches are small


@register_model
def mobilenetv2_035_same(pretrained: bool = False, **options: object) -> torch.nn.Module:
    """AutoGluon hands no options to timm, so this one has a name of its own."""
    return timm.create_model(
        "mobilenetv2_035", pretrained=pretrained, **BACKBONES["mobilenetv2_035"].options, **options
    )


def main(path: str) -> None:
    job = read_job(path)
    names = [name for name in job["backbones"] if timm.is_model(ARCHITECTURES.get(name, ""))][:NUM_BACKBONES]
    trained = [train(job, name) for name in names]
    best = max(trained, key=lambda one: one["score"])
    candidates = [{**one, "predictions": None} for one in trained]
    cell = {"chosen": best["backbone"], "predictions": best["predictions"], "candidates": candidates}
    print(json.dumps({"autogluon": cell}))


def train(job: dict, name: str) -> dict:
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as folder:
        predictor = MultiModalPredictor(label="label", eval_metric="accuracy", path=f"{folder}/model", verbosity=0)
        predictor.fit(
            table(job, "train"),
            tuning_data=table(job, "val"),
            seed=job["seed"],
            hyperparameters={
                "model.names": ["timm_image"],
                "model.timm_image.checkpoint_name": write_checkpoint(Path(folder) / "weights", job, name),
                "model.timm_image.image_size": INPUT_SIZE,
                "env.batch_size": BATCH if len(listing(job["images"], "train")[0]) >= FEW else SMALL_BATCH,
                "env.num_gpus": 0,
                "env.accelerator": "cpu",
                "env.precision": "32",
            },
        )
        of_val, of_test = (predictor.predict_proba(table(job, split), as_pandas=True) for split in ("val", "test"))
    classes = listing(job["images"], "train")[2]
    predictions = of_test[classes].to_numpy().argmax(1)
    logits = np.log(of_val[classes].to_numpy().clip(1e-12))
    return {
        "backbone": name,
        "score": score(logits, listing(job["images"], "val")[1]),
        "test": float((predictions == listing(job["images"], "test")[1]).mean()),
        "predictions": predictions.tolist(),
    }


def table(job: dict, split: str) -> pd.DataFrame:
    files, labels, classes = listing(job["images"], split)
    return pd.DataFrame({"image": [str(file) for file in files], "label": [classes[label] for label in labels]})


def write_checkpoint(folder: Path, job: dict, name: str) -> str:
    """A folder as AutoGluon reads local weights from; torchvision's MobileNetV2 has timm's tensors in timm's order."""
    model = timm.create_model(ARCHITECTURES[name], pretrained=False, num_classes=0)
    stored = load_file(job["weights"] / f"{name}.safetensors")
    named = {key: value.float() for key, value in stored.items() if not key.startswith("classifier.")}
    if BACKBONES[name].id.startswith("torchvision/"):
        named = in_the_order_of(model, named)
    model.load_state_dict({**model.state_dict(), **named})
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    facts = {
        "architecture": ARCHITECTURES[name],
        "num_features": model.num_features,
        "num_classes": 0,
        "input_size": [3, INPUT_SIZE, INPUT_SIZE],
        "mean": [0.5, 0.5, 0.5],  # as the weights of all three say
        "std": [0.5, 0.5, 0.5],
    }
    (folder / "config.json").write_text(json.dumps(facts))
    return str(folder)


def in_the_order_of(model: torch.nn.Module, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's tensors under timm's names."""
    from torchvision.models import mobilenet_v2

    theirs = [key for key in mobilenet_v2(weights=None).state_dict() if not key.startswith("classifier.")]
    names = zip(model.state_dict(), theirs, strict=True)
    return {ours: stored[key] for ours, key in names if key in stored}


if __name__ == "__main__":
    main(sys.argv[1])
