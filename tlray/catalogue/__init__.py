"""The catalogue of pre-trained backbones: ids, published facts, preprocessing, filters.

    resolve_id("resnet10t")            -> "timm/resnet10t"
    list_models("torchvision/resnet*") -> facts of every match
    default_preprocessing("torchvision/mobilenet_v2")

An id is `library/name` or `library/name.tag`; without a tag it means the library's default weights. libraries/ reads a
library's own metadata. Facts that no library publishes stand in facts.json beside this file, with their source.
"""

from tlray.catalogue.facts import ModelFacts
from tlray.catalogue.ids import ModelId, default_preprocessing, is_library, known_tags, resolve_id, split_id
from tlray.catalogue.listing import all_models, facts_of
from tlray.catalogue.preprocessing import CropMode, Interpolation, Preprocessing
from tlray.catalogue.query import list_models

__all__ = [
    "CropMode",
    "Interpolation",
    "ModelFacts",
    "ModelId",
    "Preprocessing",
    "all_models",
    "default_preprocessing",
    "facts_of",
    "is_library",
    "known_tags",
    "list_models",
    "resolve_id",
    "split_id",
]
