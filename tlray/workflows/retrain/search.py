"""What a retraining sweeps over: the configuration, with the champion's own trial first."""

from tlray.config import RunConfig, WarmStart
from tlray.runs.champion import Held


def search_config(config: RunConfig, champion: Held | None) -> RunConfig:
    """The configuration of the sweep: with an export, without the webhook, and with the champion's trial first."""
    from tlray.distributed.on_cluster import select_on_cluster

    config = select_on_cluster(config)
    start = champion.champion.start if champion is not None else None
    if config.retrain.warm_start and start is not None and _may_use(config, start):
        config = config.model_copy(update={"warm_start": start})
    return config.model_copy(
        update={
            "export": config.export.model_copy(update={"top_k": max(1, config.export.top_k)}),
            "retrain": config.retrain.model_copy(update={"webhook": None}),
        }
    )


def _may_use(config: RunConfig, start: WarmStart) -> bool:
    """Whether the configuration still allows the champion's backbone: what was taken out of it stays out."""
    from tlray.catalogue import resolve_id

    same = [backbone for backbone in config.chosen_backbones if resolve_id(backbone.id) == start.backbone.id]
    weightless = start.strategy.strategy == "scratch"  # its trial had its weights taken away
    return any(
        start.backbone.model_copy(
            update={"id": backbone.id, "weights": backbone.weights if weightless else start.backbone.weights}
        )
        == backbone
        for backbone in same
    )
