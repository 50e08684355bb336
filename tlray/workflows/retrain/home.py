"""Whose champion a person means: `<storage>/<name>`, by any of the places that belong to it. No torch here.

home = home_of("birds.yaml")
"""

from tlray import storage
from tlray.config import RunConfig
from tlray.errors import InputError

DEFAULT_STORAGE: str = RunConfig.model_fields["storage"].default


def home_of(target: str) -> str:
    """`<storage>/<name>` that a person means: by a YAML file, champion.json, its folder, a run, an export or a name.

    InputError where there is nothing of the kind.
    """
    if target.endswith((".yaml", ".yml")):
        from tlray.config.file import parse_config

        config = parse_config(storage.read_text(target), source=target)
        return storage.join(storage.absolute(config.storage), config.name)
    location = storage.absolute(target)
    named = storage.join(storage.absolute(DEFAULT_STORAGE), target)
    for home in (location, location.rpartition("/")[0], location.rsplit("/", 3)[0], named):
        if storage.exists(storage.join(home, "champion.json")):
            return home
    raise InputError(f"{target}: there is no champion.json at it, above it, or in {named}")
