"""Whether the configuration accepts, by name, the licences that bind whoever uses its backbones."""

from tlray.catalogue.ids import resolve_id, split_id
from tlray.catalogue.libraries import library
from tlray.catalogue.licences import binds
from tlray.config import BackboneConfig, RunConfig
from tlray.errors import ConfigError

OF_CODE = ("agpl", "gpl")  # these bind with random weights too: it is the library's code that is under them


def licence_of(backbone: BackboneConfig) -> str | None:
    """The licence that using `backbone` is under, as its library states it; of its code where no weights are loaded."""
    model = split_id(resolve_id(backbone.id))
    licence = library(model.library).facts(model.name, model.tag).get("licence")
    if backbone.weights == "pretrained" or (licence or "").lower().startswith(OF_CODE):
        return licence
    return None


def check_licences(config: RunConfig) -> None:
    """ConfigError unless every licence that binds is named in `accept_licences`."""
    accepted = {licence.lower() for licence in config.accept_licences}
    for backbone in (config.baseline.backbone, *config.chosen_backbones):
        licence = licence_of(backbone)
        if binds(licence) and str(licence).lower() not in accepted:
            raise ConfigError(
                f"backbone {backbone.id} is under the licence {licence}, which binds you: read it, and accept it with "
                f"accept_licences: [{licence}], or choose another backbone"
            )
