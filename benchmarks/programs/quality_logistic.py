"""scikit-learn's LogisticRegressionCV on standardised pooled features of each backbone: the best one, and their mean.

    python -m benchmarks.programs.quality_logistic job.json

C and the backbone are chosen by the accuracy of a stratified 5-fold cross-validation over train and val, and the last
fit trains on both. `logistic_mean` averages the probabilities of all backbones.
"""

import json
import sys

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torchvision.transforms import Normalize

from benchmarks.quality_parts.backbones import crop, load_body, read_job
from benchmarks.quality_parts.batches import Images, outputs_of

STRENGTHS = np.logspace(-4, 2, 7)
NUM_FOLDS = 5
MOST_ITERATIONS = 1000


def main(path: str) -> None:
    job = read_job(path)
    labelled, test = (Images(job["images"], splits, crop()) for splits in (("train", "val"), ("test",)))
    decoded = [torch.stack([pixels for pixels, _ in images]) for images in (labelled, test)]
    candidates, probabilities = [], []
    for name in job["backbones"]:
        body, facts = load_body(name, job["weights"])
        model = nn.Sequential(Normalize(facts.mean, facts.std), body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        features, test_features = (outputs_of(model, pixels) for pixels in decoded)
        head = LogisticRegressionCV(
            Cs=STRENGTHS,
            l1_ratios=(0.0,),
            cv=StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=job["seed"]),
            scoring="accuracy",
            max_iter=MOST_ITERATIONS,
            use_legacy_attributes=False,
        )
        fitted = make_pipeline(StandardScaler(), head).fit(features, labelled.labels)
        found = fitted.predict_proba(test_features)
        score = float(head.scores_.mean(axis=0).max())
        probabilities.append(found)
        candidates.append({"backbone": name, "C": float(head.C_), "score": score, "test": accuracy(found, test.labels)})
    best = max(range(len(candidates)), key=lambda place: candidates[place]["score"])
    mean = np.mean(probabilities, axis=0)
    cells = {
        "logistic": {"chosen": candidates[best]["backbone"], "predictions": probabilities[best].argmax(1).tolist()},
        "logistic_mean": {"chosen": "the mean of all", "predictions": mean.argmax(1).tolist()},
    }
    print(json.dumps({name: {**cell, "candidates": candidates} for name, cell in cells.items()}))


def accuracy(probabilities: np.ndarray, labels: list[int]) -> float:
    return float((probabilities.argmax(1) == np.array(labels)).mean())


if __name__ == "__main__":
    main(sys.argv[1])
