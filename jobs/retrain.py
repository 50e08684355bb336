"""A retraining as a Ray job: nothing where nothing has changed (exit code 3), else a sweep and a judged challenger.

ray job submit --working-dir . --entrypoint-num-cpus 0 -- python jobs/retrain.py --config configs/images.yaml
"""

from tlray.cli.job import config_job

if __name__ == "__main__":
    config_job("retrain", __doc__)
