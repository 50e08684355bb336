"""fastai's `fine_tune(10)` at its defaults, with and without its test-time augmentation.

    python -m benchmarks.programs.quality_fastai job.json

The head is fastai's own on the backbone's map (`create_head`), the rate 0.002, augmentation `aug_transforms`. It trains
on train; val chooses the backbone. The extra `bench` has fastai.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    ImageBlock,
    IndexSplitter,
    Learner,
    Normalize,
    Resize,
    accuracy,
    apply_init,
    aug_transforms,
    create_head,
    default_split,
    nn,
    set_seed,
)

from benchmarks.quality_parts.backbones import load_body, read_job
from benchmarks.quality_parts.batches import score
from benchmarks.quality_parts.sets import listing
from benchmarks.quality_parts.weights import INPUT_SIZE, RESIZE

EPOCHS = 10
FEW, BATCH, SMALL_BATCH = 128, 32, 8  # of fewer images than FEW, batches are small


def main(path: str) -> None:
    warnings.simplefilter("ignore")
    job = read_job(path)
    trained = [fine_tune(job, name) for name in job["backbones"]]
    cells = {}
    for rival in ("fastai", "fastai_tta"):
        best = max(trained, key=lambda one: one[rival]["score"])
        candidates = [{"backbone": one["backbone"], **one[rival], "predictions": None} for one in trained]
        cells[rival] = {"chosen": best["backbone"], "predictions": best[rival]["predictions"], "candidates": candidates}
    print(json.dumps(cells))


def fine_tune(job: dict, name: str) -> dict:
    """What one backbone comes to, with and without test-time augmentation."""
    set_seed(job["seed"], reproducible=True)
    train, _, classes = listing(job["images"], "train")
    (val, val_labels, _), (test, test_labels, _) = (listing(job["images"], split) for split in ("val", "test"))
    body, facts = load_body(name, job["weights"])
    loaders = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=classes)),
        get_y=lambda file: Path(file).parent.name,
        splitter=IndexSplitter(range(len(train), len(train) + len(val))),
        item_tfms=Resize(RESIZE),
        batch_tfms=[*aug_transforms(size=INPUT_SIZE, min_scale=0.75), Normalize.from_stats(facts.mean, facts.std)],
    ).dataloaders([*train, *val], bs=BATCH if len(train) >= FEW else SMALL_BATCH, device=torch.device("cpu"))
    head = create_head(facts.channels, len(classes))
    apply_init(head, nn.init.kaiming_normal_)
    learner = Learner(loaders, nn.Sequential(body, head), splitter=default_split, metrics=accuracy)
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(EPOCHS)
        answers = {}
        for rival, predict in (("fastai", learner.get_preds), ("fastai_tta", learner.tta)):
            of_val = predict(dl=loaders.test_dl(val))[0].clamp_min(1e-12).log().numpy()
            of_test = predict(dl=loaders.test_dl(test))[0].numpy()
            answers[rival] = {
                "score": score(of_val, val_labels),
                "test": float((of_test.argmax(1) == test_labels).mean()),
                "predictions": of_test.argmax(1).tolist(),
            }
    return {"backbone": name, **answers}


if __name__ == "__main__":
    main(sys.argv[1])
