"""Plays rounds in a setting: finds the reference that a kind compares with, or makes it, and keeps what failed."""

import random
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.chaos.compare import Differences, compare_champions, compare_predictions, compare_sweeps
from tests.chaos.kinds import KINDS
from tests.chaos.places import Place
from tests.chaos.reference import Reference, make_reference
from tests.chaos.rounds import Round, Verdict
from tests.chaos.setting import Setting, sweep_on
from tests.chaos.state import read_state
from tests.chaos.sweep import Flow, predict_flow, retrain_flow

COMPARE: dict[str, Callable[[Path, Path, Path], Differences]] = {
    "sweep": compare_sweeps,
    "retrain": compare_champions,
    "predict": compare_predictions,
}
S3_SNAPSHOT_SECONDS = 3.0  # between two: reading a bucket takes a while


class Stage:
    """Everything that rounds share; a reference is made when the first round needs it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._reference = cache(self._make_reference)

    def play(self, seed: int, number: int, name: str) -> Verdict:
        kind = KINDS[name]
        flow, place, reference = self._reference(kind.flow, "s3" if kind.ray == "s3" else "shared")
        verdict = Verdict(seed, number, name)
        started = time.monotonic()
        rng = random.Random(f"{seed}/{number}")
        round = Round(self._setting, verdict, rng, flow, place, kind.ray, reference, COMPARE[kind.flow])
        kind.disturb(round)
        verdict.seconds = time.monotonic() - started
        if verdict.complaints:
            kept = self._setting.folder / "failed" / f"{seed}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self._setting.live, kept)
        return verdict

    def _make_reference(self, flow_name: str, ray: str) -> tuple[Flow, Place, Reference]:
        setting = self._setting
        place: Place = setting.bucket if ray == "s3" else setting.local_place
        every = S3_SNAPSHOT_SECONDS if ray == "s3" else 0.0
        flow = sweep_on(setting, place, ray)
        if flow_name == "retrain":
            flow = retrain_flow(Path(flow.first[1]))
        elif flow_name == "predict":
            run = read_state(self._reference("sweep", ray)[2].final).run
            assert run is not None
            bundle = next((run / "exports").iterdir())
            flow = predict_flow(bundle, setting.images, f"{place.uri}/output")
        return flow, place, make_reference(setting, flow, place, ray, every=every)
