"""Where a run reads and writes: storage, images, weights, and how S3 is reached."""

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tlray import storage
from tlray.catalogue import resolve_id, split_id
from tlray.catalogue.libraries import timm, torchvision
from tlray.config import RunConfig
from tlray.data.manifest import make_manifest
from tlray.data.sources import open_source, read_image
from tlray.errors import InputError, StorageError
from tlray.models.weights.kinds import check_kind
from tlray.planning.doctor.check import Check, Status, gib

HEAD_TIMEOUT_SECONDS = 5
READ_BYTES = 256 * 2**20  # of images, up to which a check reads them all; planning does in any case
UNKNOWN_BYTES = 2**20  # what an image counts whose size is not listed


@dataclass(frozen=True)
class HubFile:
    """Where a library keeps downloaded weights, and where it downloads them from."""

    path: Path
    is_cached: bool
    url: str


def check_storage(config: RunConfig) -> Iterator[Check]:
    """Whether the places that a run writes to can be written."""
    places = {"storage": config.storage}
    if config.activations.location is not None:
        places["activations.location"] = config.activations.location
    if config.data.synthetic is not None:
        places["data.synthetic.location"] = config.data.synthetic.location
    for name, place in places.items():
        uri = storage.absolute(place)
        try:
            storage.check_writable(uri)
        except InputError as error:
            yield Check(name, "problem", str(error))
        else:
            yield Check(name, "ok", f"{uri} can be written, read and deleted from")


def check_images(config: RunConfig) -> Iterator[Check]:
    """What each location of images is, and whether its first image can be read."""
    for name in ("train", "val", "test"):
        place = getattr(config.data, name)
        if place is None:
            continue
        uri = storage.absolute(place)
        try:
            source = open_source(f"data.{name}", uri, config.data)
            first = next(entry for entry in source.entries() if not entry.reason)
            num_bytes = len(read_image(first.uri, first.version, config.data.columns.image))
        except InputError as error:
            yield Check(f"data.{name}", "problem", str(error).removeprefix(f"data.{name}: "))
        except StopIteration:
            yield Check(f"data.{name}", "problem", f"{uri} is {source.description}; none of its images can be used")
        else:
            yield Check(f"data.{name}", "ok", f"{uri} is {source.description}; {first.uri} read ({num_bytes} bytes)")


def check_contents(config: RunConfig) -> Iterator[Check]:
    """Which images are in two splits or classes, where all of them can be read in seconds."""
    data = config.data
    locations = {f"data.{name}": getattr(data, name) for name in ("train", "val", "test")}
    given = {field: uri for field, uri in locations.items() if uri is not None}
    if data.train is None or any(storage.is_remote(uri) for uri in given.values()):
        return
    try:
        sizes = (entry.num_bytes for field, uri in given.items() for entry in open_source(field, uri, data).entries())
        if sum(size if size >= 0 else UNKNOWN_BYTES for size in sizes) > READ_BYTES:
            return
        manifest = make_manifest(data)
    except InputError as error:
        yield Check("images", "problem", str(error))
        return
    for warning in manifest.warnings:
        yield Check("images", "warning", warning, "give each image one split and one class")
    if not manifest.warnings:
        yield Check("images", "ok", f"{len(manifest.images)} images, each in one split and one class")


def check_weights(config: RunConfig) -> Iterator[Check]:
    """Whether the weights of every backbone are here, or where they would come from."""
    made_first = config.data.synthetic
    for id_, weights in dict.fromkeys((backbone.id, backbone.weights) for backbone in config.chosen_backbones):
        if weights == "none":
            yield _weights_check(id_, "ok", "random weights, none are needed")
        elif weights == "pretrained":
            yield _check_hub_weights(id_)
        elif made_first is not None and storage.absolute(weights).startswith(storage.absolute(made_first.location)):
            yield _weights_check(id_, "ok", f"{weights} is made with the synthetic images on first use")
        else:
            yield _check_weights_file(id_, storage.absolute(weights))


def check_s3(config: RunConfig) -> Iterator[Check]:
    """Endpoint, region and the source of the credentials, where anything is on S3. Never the credentials."""
    data = config.data
    weights = (backbone.weights for backbone in config.chosen_backbones)
    if not any(storage.is_remote(uri) for uri in (config.storage, data.train, data.val, data.test, *weights) if uri):
        return
    try:
        access = storage.describe_access()
    except StorageError as error:
        yield Check("S3", "problem", str(error), "look at AWS_PROFILE and AWS_ENDPOINT_URL")
        return
    where = f"endpoint {access.endpoint}, region {access.region or 'not set'}"
    if access.credentials is None:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the node a role"
        yield Check("S3", "problem", f"{where}, no credentials", remedy)
    else:
        yield Check("S3", "ok", f"{where}, credentials from {access.credentials}")


def hub_file(id_: str) -> HubFile | None:
    """The file that the library loads for an id's pre-trained weights; BackboneError when there is no such id.

    None for a library that does not say which file it would load.
    """
    import torch

    model = split_id(resolve_id(id_))
    if model.library == "torchvision":
        return _url_file(torchvision.weights_entry(model.name, model.tag).url, Path(torch.hub.get_dir()))
    if model.library != "timm":
        return None
    config = timm.config(model.name, model.tag)
    repository = config.get("hf_hub_id")
    if not repository:
        return _url_file(config["url"], Path(torch.hub.get_dir()))
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    names = [config["hf_hub_filename"]] if config.get("hf_hub_filename") else ["model.safetensors", "pytorch_model.bin"]
    cached = [path for name in names if isinstance(path := try_to_load_from_cache(repository, name), str)]
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    return HubFile(Path(cached[0]) if cached else folder, bool(cached), hf_hub_url(repository, names[0]))


def _url_file(url: str, hub_folder: Path) -> HubFile:
    path = hub_folder / "checkpoints" / url.rpartition("/")[2]
    return HubFile(path, path.is_file(), url)


def _weights_check(id_: str, status: Status, finding: str, remedy: str = "") -> Check:
    return Check("weights", status, f"{id_}: {finding}", remedy)


def _check_hub_weights(id_: str) -> Check:
    try:
        file = hub_file(id_)
    except InputError as error:
        return Check("weights", "problem", str(error))
    if file is None:
        finding = f"{split_id(resolve_id(id_)).library} does not say where it keeps the weights"
        return _weights_check(id_, "warning", finding, "build the model once on each node, or give `weights:` a file")
    if file.is_cached:
        return _weights_check(id_, "ok", f"in the cache at {file.path}")
    try:
        num_bytes = download_size(file.url)
    except OSError as error:
        reason = getattr(error, "reason", error)
        return _weights_check(
            id_,
            "warning",
            f"not in the cache at {file.path}, will be downloaded; but {file.url} does not answer here ({reason})",
            "give the nodes network, or give `weights:` a .safetensors or .pth file on disk or s3://",
        )
    finding = f"not in the cache at {file.path}, will be downloaded: {gib(num_bytes)} from {file.url}"
    return _weights_check(id_, "ok", finding)


def download_size(url: str) -> int:
    """Bytes at `url` (0 where the server does not say), asked for without downloading; OSError when it fails."""
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request, timeout=HEAD_TIMEOUT_SECONDS) as response:
        return int(response.headers.get("Content-Length", 0))


def _check_weights_file(id_: str, uri: str) -> Check:
    try:
        if storage.exists(uri):
            with storage.local_copy(uri) as path:
                check_kind(uri, path)
            return _weights_check(id_, "ok", f"{uri} is there, and what its name promises")
    except InputError as error:
        return Check("weights", "problem", str(error))
    remedy = "give a .safetensors or .pth file, `pretrained` or `none`"
    return _weights_check(id_, "problem", f"{uri} does not exist", remedy)
