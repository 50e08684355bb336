"""Every image's feature vectors as Parquet files, as a Ray job; the first and last line of its log name the run folder.

ray job submit --working-dir . --entrypoint-num-cpus 0 -- python jobs/features.py --config configs/demo.yaml
"""

from tlray.cli.job import config_job

if __name__ == "__main__":
    config_job("features", __doc__)
