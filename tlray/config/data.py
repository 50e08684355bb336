"""The images, and what frozen blocks compute of them: where both lie and how they are read and kept."""

from typing import Literal

from pydantic import Field, model_validator

from tlray.config.section import MOST_ENTRIES, MOST_GB, MOST_SEED, Flag, Location, Number, Section, Whole


class SyntheticConfig(Section):
    """The demo's images and the backbone pre-trained on another task, made at `location` on first use."""

    location: Location
    seed: Whole = Field(0, ge=0, le=MOST_SEED)


class ColumnsConfig(Section):
    """Names of the columns of CSV and Parquet files; `label` also in the .json of WebDataset samples."""

    uri: str = Field(
        "uri", min_length=1, description="where an image lies; relative to the file's own folder, or anywhere"
    )
    label: str = Field("label", min_length=1, description="its class: strings or whole numbers")
    split: str | None = Field(
        None, min_length=1, description="train, val or test; by default the column `split` where there is one"
    )
    image: str = Field("image", min_length=1, description="the image's bytes, in Parquet files that hold them")


class DataConfig(Section):
    """Labelled images on local disk or s3://: class folders, a CSV or Parquet file, WebDataset shards."""

    train: Location | None = None
    val: Location | None = Field(None, description="by default val_fraction of train")
    test: Location | None = Field(None, description="by default test_fraction of train")
    val_fraction: Number = Field(0.15, gt=0, lt=1)
    test_fraction: Number = Field(0.15, gt=0, lt=1)
    split_seed: Whole = Field(
        0, ge=0, le=MOST_SEED, description="decides, with an image's contents, its split; seed does not"
    )
    format: Literal["auto", "folder", "csv", "parquet", "webdataset", "zip"] = Field(
        "auto", description="how images and labels are stored; auto: what lies at each location"
    )
    columns: ColumnsConfig = ColumnsConfig()
    exclude: tuple[str, ...] = Field(
        (), max_length=MOST_ENTRIES, description="glob patterns of paths, relative to the folder, to leave out"
    )
    max_bad_fraction: Number = Field(0.05, ge=0, le=1, description="unreadable images tolerated before the run fails")
    max_leaked_fraction: Number = Field(
        0.01, ge=0, le=1, description="of val or test, images that are in train (of test: in val) too, tolerated"
    )
    synthetic: SyntheticConfig | None = None
    num_threads: Whole = Field(2, ge=1, le=1024, description="threads per worker that read and decode images")
    stream: Literal["threads", "ray_data"] = Field(
        "threads", description="who decodes: each worker's own threads, or Ray Data's tasks on any node"
    )
    stream_cpus: Number = Field(1, gt=0, le=1024, description="CPUs that Ray Data decodes with for each trial")
    memory_cache_mb: Whole = Field(512, ge=0, le=10**8, description="decoded images kept per worker process, in MiB")
    prepare: Literal["auto", "always", "never"] = Field(
        "auto", description="copy the images once into large shards; auto: those on S3, and inside Parquet files"
    )
    prepared: Location | None = Field(None, description="where the shards are kept; by default STORAGE/images")
    prepared_max_gb: Number | None = Field(
        None, gt=0, le=MOST_GB, description="size of all data sets' shards; the oldest go first"
    )
    max_side: Whole | None = Field(
        None, ge=32, le=65_535, description="shards keep larger images as JPEGs of that short side"
    )
    cache: Location = Field("~/.cache/tlray/images", description="shards and decoded pixels on each node's disk")
    cache_max_gb: Number | None = Field(None, gt=0, le=MOST_GB, description="size of the copies of shards on each node")
    pixels_max_gb: Number = Field(
        10, ge=0, le=MOST_GB, description="decoded images on each node's disk, where memory does not hold them; 0: none"
    )

    @model_validator(mode="after")
    def has_a_source(self) -> "DataConfig":
        if (self.train is None) == (self.synthetic is None):
            raise ValueError("give data.train (a folder or s3:// prefix), or data.synthetic for the demo's images")
        if self.val is None and self.test is None and self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing to train on")
        return self


class ActivationsConfig(Section):
    """What frozen blocks compute of the images: where it is kept, how precisely, and when it is worth it."""

    location: Location | None = Field(None, description="the store, shared by all runs; by default STORAGE/activations")
    cache: Location = Field("~/.cache/tlray/activations", description="copies of a remote store on each node's disk")
    max_gb: Number | None = Field(
        None, gt=0, le=MOST_GB, description="size of the store; what was not used for longest goes first"
    )
    cache_max_gb: Number | None = Field(None, gt=0, le=MOST_GB, description="size of the copies on each node")
    dtype: Literal["float16", "float32"] = Field("float16", description="how activations are stored")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="how frozen blocks compute; auto: as training.precision chooses"
    )
    materialise: Literal["auto", "always", "never"] = Field("auto", description="auto: where the plan finds it cheaper")
    fuse_probes: Flag = Field(True, description="linear probes of one backbone train together, as one batched head")
    images_per_shard: Whole = Field(512, ge=1, le=10**6, description="computed and kept together; what a kill can cost")
