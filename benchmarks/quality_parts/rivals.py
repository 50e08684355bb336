"""Who takes part: the program of each rival and the cells that it fills. Raise a version where its results change."""

from dataclasses import dataclass

from benchmarks.quality_parts.weights import BACKBONES

PEERS, OWN, AUTOGLUON = "peers", "own", "autogluon"  # whose Python runs a program


@dataclass(frozen=True)
class Program:
    """One of benchmarks/programs."""

    module: str
    rivals: tuple[str, ...]  # the cells that one run of it fills
    python: str = OWN
    needs: str = ""  # a statement that works in that Python where the program can
    backbones: int = len(BACKBONES)  # how many, those first that logistic regression likes best
    version: int = 1


LOGISTIC = Program("quality_logistic", ("logistic", "logistic_mean"), needs="import sklearn")
PROGRAMS = (
    LOGISTIC,
    Program("quality_timm", ("timm",), backbones=2),
    Program("quality_fastai", ("fastai", "fastai_tta"), PEERS, "import fastai.vision.all", backbones=2),
    Program("quality_autogluon", ("autogluon",), AUTOGLUON, "import autogluon.multimodal", backbones=3),
)
LABELS = {
    "tlray": "**tlray, defaults**",
    "tlray_ensemble": "**tlray, its ensemble**",
    "logistic": "logistic regression, best backbone",
    "logistic_mean": "mean of its probabilities over the backbones",
    "fastai": "fastai `fine_tune(10)`",
    "fastai_tta": "the same with TTA",
    "timm": "timm-style, 12 epochs",
    "autogluon": "AutoGluon MultiModal",
}
