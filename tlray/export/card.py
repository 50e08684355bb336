"""MODEL_CARD.md of an export bundle: what the model is, what it learned from, how good it is, how to use it.

Every statement is computed from the run; nothing is claimed about images that the run has not seen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tlray.catalogue import facts_of
from tlray.export.files import BundleConfig
from tlray.export.formats import Agreement
from tlray.process.printable import code, markdown
from tlray.runs.bundle_sums import CARD

FEW_TEST_IMAGES = 1000  # below, the sampling error of an accuracy is worth a sentence
IMBALANCE = 3  # largest class over smallest, from which on the card mentions it


def write_card(
    folder: Path,
    config: BundleConfig,
    metrics: Mapping[str, Any],
    data_summary: Mapping[str, Mapping[str, int]],
    agreement: Agreement,
    warnings: Sequence[str] = (),
) -> None:
    """Write MODEL_CARD.md into `folder`; arguments as in `export_bundle`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"percent": _percent, "points": _points, "cell": markdown, "code": code}
    text = environment.get_template("model_card.md.j2").render(
        config=config,
        preprocessing=config.image_preprocessing,
        border=[round(255 * value) for value in config.image_preprocessing.mean],
        metrics=metrics,
        counts=data_summary,
        totals={split: sum(by_class.values()) for split, by_class in data_summary.items()},
        agreement=agreement,
        warnings=warnings,
        licence=_licences(config),
        limits=_limits(config, metrics, data_summary),
        calibration=metrics.get("calibration"),
        refit=metrics.get("refit"),
        tta=metrics.get("tta"),
        shown_params={key: value for key, value in config.params.items() if value is not None},
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _licences(config: BundleConfig) -> str:
    """That of each network's weights, once."""
    if config.backbone is not None:
        return weights_licence(config.backbone.id, config.initial_weights)
    sentences = (weights_licence(member.backbone.id, member.initial_weights) for member in config.members)
    return " ".join(dict.fromkeys(sentences))


def weights_licence(backbone_id: str, weights: str) -> str:
    """What the library's metadata says about the licence of the weights that training began with, as a sentence."""
    if weights == "none":
        return "Training began with random weights; no pre-trained weights are part of this model."
    if weights != "pretrained":
        return (
            f"Training began with the file {code(weights)}, which states no licence; "
            "the terms under which it was obtained apply."
        )
    facts = facts_of(backbone_id)
    if facts.licence is None:
        return f"{facts.library} states no licence for the pre-trained weights of {backbone_id}; see their publication."
    terms = f" ({facts.note})" if facts.licence_binds and facts.note else ""
    return f"{facts.library} gives the licence of the pre-trained weights as: {facts.licence}.{terms}"


def _limits(
    config: BundleConfig, metrics: Mapping[str, Any], data_summary: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """Sentences about what the numbers of images allow to be said."""
    limits = [
        f"It knows {len(config.classes)} classes. An image of anything else is given one of them too, "
        "and its probability may be high.",
        "Its accuracy was measured on images from the same collection as those it was trained on; "
        "on images taken in another way it is unknown.",
    ]
    train, test = data_summary["train"], data_summary["test"]
    num_test = sum(test.values())
    if num_test < FEW_TEST_IMAGES:
        accuracy = metrics["test_accuracy"]
        error = 1.96 * (accuracy * (1 - accuracy) / num_test) ** 0.5
        limits.append(
            f"The test split has {num_test} images: the sampling error of its accuracy "
            f"is about ±{100 * error:.1f} points (95 %, normal approximation)."
        )
    fewest, most = min(train, key=lambda name: train[name]), max(train, key=lambda name: train[name])
    if train[most] >= IMBALANCE * train[fewest]:
        limits.append(
            f"The classes are unbalanced: {train[most]} training images of {code(most)}, {train[fewest]} of "
            f"{code(fewest)}; the macro-F1 above weighs them equally."
        )
    return limits


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def _points(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:+.2f}"
