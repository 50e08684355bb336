"""One trial without Ray, on a machine that has none."""

import os
import subprocess
import sys
from pathlib import Path

from tlray.runs.board import load_leaderboard

REPOSITORY = Path(__file__).resolve().parents[2]


def train_local(image_folder: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "no-ray" / "ray").mkdir(parents=True, exist_ok=True)
    (tmp_path / "no-ray" / "ray" / "__init__.py").write_text("raise ImportError('this machine has no Ray')\n")
    network = "{id: timm/test_resnet, weights: none, input_size: 32}"
    return subprocess.run(
        [
            *(sys.executable, "jobs/train_local.py", "--config", "configs/smoke.yaml", *arguments),
            *(f"storage={tmp_path}/runs", "data.synthetic=null", f"data.train={image_folder}"),
            *(f"backbones=[{network}]", f"baseline.backbone={network}", "training.batch_size=8"),
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'no-ray'}{os.pathsep}{REPOSITORY}"},
        timeout=240,
        check=False,
    )


def test_a_trial_trains_ranks_and_exports_where_ray_cannot_be_imported(image_folder: Path, tmp_path: Path) -> None:
    done = train_local(image_folder, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == lines[-1]
    run_uri = lines[0].removeprefix("run folder: ")
    assert len(load_leaderboard(run_uri).rows) == 2
    assert list(Path(run_uri).glob("exports/*/SHA256SUMS"))


def test_a_trial_that_does_not_exist_is_refused_with_those_that_do(image_folder: Path, tmp_path: Path) -> None:
    refused = train_local(image_folder, tmp_path, "--trial", "no-such-trial")
    assert refused.returncode == 2
    assert "001-test_resnet-linear_probe" in refused.stderr
