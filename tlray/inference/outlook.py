"""What a batch prediction has to do: which images there are, and which of them an output holds already.

locations, output = open_output(["s3://bucket/images"], "s3://bucket/predictions")
outlook = look_ahead("s3://bucket/run", ["s3://bucket/images"], "s3://bucket/predictions")     # changes nothing
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tlray import storage
from tlray.data.inputs import stream_inputs
from tlray.errors import InputError
from tlray.inference.output import PredictionOutput, PredictionSpec
from tlray.inference.parts import Listing, write_parts
from tlray.process.scratch import temporary_folder


@dataclass(frozen=True)
class Outstanding:
    """What an output lacks of a listing, and has too much."""

    missing: tuple[int, ...]  # numbers of parts
    gone: frozenset[str]  # names of parts there of images that have changed or are no longer listed
    num_done: int  # images


@dataclass(frozen=True)
class Outlook:
    """What a prediction would do."""

    output: str
    model: str
    model_version: str
    num_images: int
    num_parts: int
    images_to_compute: int
    parts_to_compute: int
    parts_to_remove: int


def open_output(images: Sequence[str], output_uri: str) -> tuple[tuple[str, ...], PredictionOutput]:
    """Absolute locations, and the folder; InputError where its files would be taken for images."""
    locations = tuple(storage.absolute(uri) for uri in images)
    output = PredictionOutput(storage.absolute(output_uri))
    for location in locations:
        if storage.join(output.uri, "").startswith(storage.join(location, "")):
            raise InputError(f"--output {output.uri} lies below the images in {location}: give one beside them")
    return locations, output


def outstanding(listing: Listing, there: set[str]) -> Outstanding:
    """`there`: names of the parts that are done."""
    missing = tuple(number for number, name in enumerate(listing.names) if name not in there)
    num_done = listing.num_images - sum(listing.sizes[number] for number in missing)
    return Outstanding(missing, frozenset(there - set(listing.names)), num_done)


def look_ahead(model_ref: str, images: Sequence[str], output_uri: str) -> Outlook:
    """List the images and compare them with the output; errors as the prediction itself has them before it begins."""
    from tlray.inference.classify import find_model

    locations, output = open_output(images, output_uri)
    model = find_model(storage.absolute(model_ref))
    with temporary_folder("listing") as folder:
        listing = write_parts(stream_inputs(locations), folder / "images.parquet")
    output.check(PredictionSpec(model=model, images=locations))
    left = outstanding(listing, output.parts_there())
    return Outlook(
        output=output.uri,
        model=model.uri,
        model_version=model.version,
        num_images=listing.num_images,
        num_parts=len(listing.names),
        images_to_compute=listing.num_images - left.num_done,
        parts_to_compute=len(left.missing),
        parts_to_remove=len(left.gone),
    )
