"""What is made of trials after a sweep, as values: temperatures, and the ensemble's own row beside the others."""

from pydantic import BaseModel, ConfigDict


class Calibration(BaseModel):
    """A temperature and what it does on the test split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float  # fitted on the validation split; the model's logits are divided by it
    num_val_images: int
    ece_before: float  # expected calibration error on the test split, fraction in [0, 1]
    ece_after: float
    loss_before: float  # on the test split, nats per image
    loss_after: float


class RefitRow(BaseModel):
    """The winner trained once more on the training and validation images, for the epochs that the choice found.

    It has no validation scores, as it has seen those images: it is chosen by the winner's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial_id: str  # the winner's
    epochs: int
    images_seen: int  # every epoch counted
    test_accuracy: float
    test_top5_accuracy: float | None
    test_macro_f1: float | None
    gain: float | None  # as an ensemble's
    gain_low: float | None
    gain_high: float | None
    gain_over_best: float  # over the winner as it was chosen
    gain_over_best_low: float
    gain_over_best_high: float
    seconds: float
    calibration: Calibration | None  # with the winner's temperature

    @property
    def title(self) -> str:
        return f"refit of {self.trial_id}"


class EnsembleMember(BaseModel):
    """One of the models whose probabilities are averaged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial_id: str
    backbone: str
    strategy: str
    weight: float  # its part of the mean; all of them add up to 1
    temperature: float  # by which its own logits are divided before


class EnsembleRow(BaseModel):
    """The mean of some trials' probabilities, chosen by validation log loss; fractions in [0, 1], losses in nats.

    It has no rank: an image costs as many forwards as there are members. The validation scores are those by which the
    members were chosen; the test images took no part in the choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: tuple[EnsembleMember, ...]  # largest weight first
    num_candidates: int  # trials that it was chosen from
    val_accuracy: float
    val_loss: float
    val_top5_accuracy: float
    val_macro_f1: float
    test_accuracy: float
    test_loss: float
    test_top5_accuracy: float
    test_macro_f1: float
    gain: float | None  # test accuracy minus the baseline's, with its interval; None without a baseline's score
    gain_low: float | None
    gain_high: float | None
    gain_over_best: float  # minus that of the best single trial, likewise
    gain_over_best_low: float
    gain_over_best_high: float
    num_params: int | None  # of all members together
    seconds: float  # that their training took together
    calibration: Calibration

    @property
    def title(self) -> str:
        return f"ensemble of {len(self.members)}"
