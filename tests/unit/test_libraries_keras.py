"""Weights files against Keras itself, where it is installed; the published layout is in test_libraries_own.py."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tlray.catalogue.libraries.architectures.keras_resnet import DEPTHS, KerasResNetV2
from tlray.catalogue.libraries.architectures.keras_weights import architecture_of, resnet_v2_state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras on numpy 2
@pytest.mark.parametrize("name", DEPTHS)
def test_a_file_that_keras_wrote_gives_the_logits_of_keras(name: str, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs the extra keras")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="needs Keras, which is no dependency")
    logging.getLogger("absl").setLevel(logging.ERROR)
    build = {"resnet50v2": "ResNet50V2", "resnet101v2": "ResNet101V2", "resnet152v2": "ResNet152V2"}[name]
    theirs = getattr(keras.applications, build)(weights=None, classifier_activation=None)
    draw = np.random.default_rng(0)
    for weight in theirs.weights:
        if weight.path.endswith(("moving_mean", "beta", "bias")):
            weight.assign(draw.normal(0, 0.3, weight.shape))
        elif weight.path.endswith(("moving_variance", "gamma")):
            weight.assign(draw.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(draw.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape))
    theirs.save(tmp_path / "model.h5")
    state = resnet_v2_state(tmp_path / "model.h5")
    assert architecture_of(state) == name
    ours = KerasResNetV2(DEPTHS[name], num_classes=1000).eval()
    ours.load_state_dict(ours.state_dict() | state)
    images = draw.normal(size=(2, 224, 224, 3)).astype("float32")
    expected = theirs.predict(images, verbose=0)
    with torch.no_grad():
        logits = ours(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
