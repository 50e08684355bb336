"""A configuration whose backbones are a query -> one that lists them.

config = select_backbones(config)      # config.chosen_backbones can be read from here on
"""

import sys
from collections.abc import Iterator, Sequence

from tlray.catalogue.facts import ModelFacts
from tlray.catalogue.latency import device_name, milliseconds
from tlray.catalogue.libraries import is_installed
from tlray.catalogue.listing import all_models
from tlray.catalogue.query import ordered, select
from tlray.config import BackboneConfig, RunConfig
from tlray.config.query import BackboneQuery
from tlray.errors import ConfigError


def select_backbones(config: RunConfig) -> RunConfig:
    """`config` with its query answered: the best by `sort`, at most `limit`; unchanged where it lists ids already.

    Left out without a word: what is not installed, what tlray cannot train, and weights whose licence binds and is not
    in `accept_licences`. ConfigError when nothing is left. The query's shortlist becomes `ranking.shortlist`.
    """
    query = config.backbones
    if not isinstance(query, BackboneQuery):
        return config
    found = select(all_models(), query)
    accepted = {licence.lower() for licence in config.accept_licences}
    usable = [facts for facts in found if _can_be_used(facts, accepted)]
    if not usable:
        raise ConfigError(_nothing(query, found, accepted))
    if query.max_latency_ms is not None:
        usable = list(_fast_enough(usable, query))
        if not usable:
            raise ConfigError(
                f"backbones.max_latency_ms {query.max_latency_ms:g}: none of the models that pass the other filters is "
                f"that fast on {device_name()} with a batch of {query.batch_size}; allow more, or a smaller max_gflops"
            )
    chosen = ordered(usable, query.sort)[: query.limit]
    backbones = tuple(
        BackboneConfig(id=facts.id, weights="pretrained" if facts.weights else "none") for facts in chosen
    )
    update = {"backbones": backbones}
    if query.shortlist is not None:
        ranking = config.ranking.model_copy(update={"shortlist": query.shortlist})
        return config.model_copy(update={**update, "ranking": ranking})
    return config.model_copy(update=update)


def _can_be_used(facts: ModelFacts, accepted: set[str]) -> bool:
    return facts.usable and is_installed(facts.library) and _is_accepted(facts, accepted)


def _is_accepted(facts: ModelFacts, accepted: set[str]) -> bool:
    return not facts.licence_binds or str(facts.licence).lower() in accepted


def _nothing(query: BackboneQuery, found: Sequence[ModelFacts], accepted: set[str]) -> str:
    given = ", ".join(f"{key} {value}" for key, value in query.model_dump(exclude_defaults=True).items())
    if not found:
        return f"backbones: no model of the catalogue has {given}; `tlray models` shows what there is"
    licences = sorted({str(facts.licence) for facts in found if not _is_accepted(facts, accepted)})
    extras = sorted({f"tlray[{facts.extra}]" for facts in found if facts.extra and not is_installed(facts.library)})
    remedies = [f"accept_licences: [{', '.join(licences)}]"] if licences else []
    remedies += [f"pip install '{extra}'" for extra in extras]
    return f"backbones: {len(found)} models have {given}, but none of them can be used here; " + (
        " or ".join(remedies) or f"{found[0].id} {found[0].note}"
    )


def _fast_enough(models: Sequence[ModelFacts], query: BackboneQuery) -> Iterator[ModelFacts]:
    """Those that are, measured from the smallest to the largest; a line on stderr for each says how far it is."""
    assert query.max_latency_ms is not None
    times: dict[tuple[str, int | None], float] = {}  # weights of one architecture and size take the same time
    for facts in ordered(models, "gflops"):
        key = facts.arch, facts.input_size
        if key not in times:
            assert facts.input_size is not None
            times[key] = milliseconds(
                facts.library, facts.name, facts.tag, size=facts.input_size, batch_size=query.batch_size
            )
            print(
                f"latency of {facts.arch}: {times[key]:.1f} ms for {query.batch_size} x {facts.input_size} px on "
                f"{device_name()} ({len(times)} of {len({(one.arch, one.input_size) for one in models})})",
                file=sys.stderr,
                flush=True,
            )
        if times[key] <= query.max_latency_ms:
            yield facts
