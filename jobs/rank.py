"""The backbones scored before a sweep, as a Ray job; the first and the last line of its log name the run folder.

ray job submit --working-dir . --entrypoint-num-cpus 0 -- python jobs/rank.py --config configs/demo.yaml
"""

from tlray.cli.job import config_job

if __name__ == "__main__":
    config_job("rank", __doc__)
