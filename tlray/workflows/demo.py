"""`tlray demo`: a run on synthetic images that needs nothing but this machine, then a prediction with its best model.

The configuration stands here because the installed package has no configs/ folder; configs/demo.yaml is the same
one as a file, which a test compares.
"""

from typing import Any

from rich.console import Console

from tlray import storage
from tlray.config import RunConfig
from tlray.inference.predict import evaluate, predict
from tlray.runs.prepare import load_run
from tlray.workflows.conclude import Outcome
from tlray.workflows.run import run

NUM_PREDICTIONS = 5


def demo_config(location: str) -> RunConfig:
    """All five strategies on a tiny pre-trained ResNet beside the same network from scratch; runs below `location`."""
    data = storage.join(location, "demo-data")
    network: dict[str, Any] = {"id": "timm/test_resnet", "input_size": 64}
    return RunConfig.model_validate(
        {
            "name": "demo",
            "storage": location,
            "data": {"synthetic": {"location": data}},
            "backbones": [{**network, "weights": storage.join(data, "test_resnet.safetensors")}],
            "strategies": [
                "linear_probe",
                {"strategy": "partial", "trainable_blocks": 2},
                "gradual",
                "full",
                "scratch",
            ],
            "training": {"epochs": 8, "batch_size": 32, "warmup_epochs": 0.5, "augmentation": "light"},
            "search_space": {"lr": {"grid": [0.001, 0.003]}},
            "baseline": {"backbone": {**network, "weights": "none"}, "training": {"lr": 0.003}},
            "sweep": {"scheduler": "fifo"},
        }
    )


def run_demo(config: RunConfig, run_uri: str, console: Console) -> Outcome:
    """The run, then its best model: scored again from its files alone, and asked about a few test images."""
    console.print("making the demo's images and pre-training its backbone (once, about a minute)", highlight=False)
    outcome = run(config, run_uri, console)
    champion = next(row for row in outcome.leaderboard.rows if not row.is_baseline)
    test = load_run(run_uri).config.data.test
    assert test is not None, "the demo names its test images"
    evaluation = evaluate(outcome.exports[0], test)
    console.print(
        f"{outcome.exports[0]} scores {evaluation.accuracy:.4f} on the {evaluation.num_images} test images; "
        f"the leaderboard says {champion.test_accuracy:.4f}",
        highlight=False,
    )
    files = [info.uri for info in storage.list_files(test)]
    for prediction in predict(outcome.exports[0], files[:: max(1, len(files) // NUM_PREDICTIONS)][:NUM_PREDICTIONS]):
        console.print(
            f"  {prediction.uri}: {prediction.label} ({prediction.confidence:.2f})", highlight=False, markup=False
        )
    return outcome
