"""How many images a run pushed through frozen prefixes, and which trial's row says so.

    write_charges(run_uri, plan.activations, [trial.trial_id for trial in trials], store)

Of the trials that share a backbone's activations, the first is charged with all that the run computed for them, so that
the sum of `prefix_images_computed` over a run's rows is what was really computed.
"""

from collections import defaultdict
from collections.abc import Sequence

from tlray import storage
from tlray.activations.keys import ActivationKey
from tlray.activations.planned import ActivationSource
from tlray.activations.store import ActivationStore
from tlray.storage.sealed import read_document, write_document


def shard_mark(run_uri: str) -> str:
    """What shards are marked with that were computed for a run."""
    return run_uri.rpartition("/")[2]


def write_charges(
    run_uri: str, sources: Sequence[ActivationSource], trial_ids: Sequence[str], store: ActivationStore
) -> None:
    """Counted from the shards that carry the run's mark: a run resumed many times still counts every image once.

    `trial_ids`: those that have a row or will have one, in the run's order; each source is read by one of them.
    """
    by_backbone: dict[tuple[str, int], list[ActivationSource]] = defaultdict(list)
    for source in sources:
        if source.materialise:
            by_backbone[source.backbone.model_dump_json(), source.seed].append(source)
    charged: dict[str, int] = {}
    for readable in by_backbone.values():
        forwards: dict[tuple[str, int, str], int] = {}  # several cuts of one forward have a shard each, of one id
        keys = {ActivationKey(**fields) for source in readable for fields in source.keys}
        for key in keys:
            for entry in store.index(key).entries:
                if entry.run == shard_mark(run_uri):
                    forwards[key.augmentation, key.view, entry.id] = entry.rows
        readers = {trial_id for source in readable for trial_id in source.trials}
        charged[next(trial_id for trial_id in trial_ids if trial_id in readers)] = sum(forwards.values())
    write_document(_charges_uri(run_uri), {"images": charged})


def load_charges(run_uri: str) -> dict[str, int]:
    """Images by trial id; empty before the activation pass has ended; DamagedError."""
    try:
        document = read_document(_charges_uri(run_uri), "remove it, and `tlray resume` counts again")
    except storage.NotFoundError:
        return {}
    images: dict[str, int] = document["images"]
    return images


def _charges_uri(run_uri: str) -> str:
    return storage.join(run_uri, "activations.json")
