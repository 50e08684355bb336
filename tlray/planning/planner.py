"""The plan is made: images listed, every backbone built once with its weights, frozen work measured. Trains nothing.

    planned = plan_run(config, machines)     # InputError for what is wrong with the user's input; writes no run folder
    planned, manifest = plan_ranking(config)        # the same for the features that backbones are ranked on

Checks go from the cheap to the dear: storage, images, every backbone with its weights, every freeze strategy on it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from tlray import storage
from tlray.activations.decision import plan_sources, within
from tlray.activations.location import measure_room, measure_speed, open_store
from tlray.activations.planned import ActivationSource
from tlray.catalogue import resolve_id
from tlray.catalogue.acceptance import check_licences
from tlray.catalogue.select import select_backbones
from tlray.config import BackboneConfig, RunConfig, TrialConfig
from tlray.config.search_space import list_trials
from tlray.data.manifest import Manifest
from tlray.data.prepared import prepare_manifest, with_preparation
from tlray.models.backbone import Backbone, build_backbone
from tlray.models.freeze import freeze
from tlray.planning.demo_data import make_demo_data
from tlray.planning.first_look import check_batch_sizes
from tlray.planning.footprint import gpu_share, trial_footprint
from tlray.planning.precision import with_chosen_precision
from tlray.planning.speed.steps import this_machine
from tlray.planning.speed.trials import TimedTrial, time_trials, trial_cost, trials_that_pay
from tlray.process.device import given_device, gpu_bytes
from tlray.ranking.advice import advise, facts_of
from tlray.ranking.result import Ranking, wants_shortlist
from tlray.ranking.subset import choose_subset
from tlray.runs.budget.choice import beyond_budget
from tlray.runs.budget.estimate import estimate_run
from tlray.runs.budget.machines import Machines
from tlray.runs.features import features_config
from tlray.runs.plan import Plan, PlannedRun, PlannedTrial
from tlray.runs.prepare import with_absolute_locations
from tlray.runs.stopping import words_on_stopping
from tlray.training.loop import thaw_plan
from tlray.training.solved_probe import as_they_can_be_found


def plan_run(
    config: RunConfig,
    machines: Machines | None = None,
    manifest: Manifest | None = None,
    ranking: Ranking | None = None,
) -> PlannedRun:
    """All that a run would do, without a run folder.

    `machines` work on it, by default this one; `manifest`: of the same data, where it has been made; `ranking`: what
    was found of the backbones, for the advice.
    """
    config = _checked(config)
    manifest = manifest or prepare_manifest(config.data)
    notes: list[str] = []
    if wants_shortlist(config):
        notes.append(
            f"ranking.shortlist {config.ranking.shortlist}: a run ranks the {len(config.chosen_backbones)} backbones "
            "first and trains the best of them; this plan has all"
        )
    if config.strategies == "auto":
        labels = manifest.split("train").labels
        advice = advise(facts_of(labels, len(manifest.classes), ranking.similarity if ranking is not None else None))
        config = config.model_copy(update={"strategies": advice.strategies})
        notes.append(advice.reason)
    trials = tuple(list_trials(config))
    plan = make_plan(config, manifest, trials, machines or this_machine(config))
    return PlannedRun(config, manifest, trials, plan.model_copy(update={"notes": (*notes, *plan.notes)}))


def plan_ranking(config: RunConfig, machines: Machines | None = None) -> tuple[PlannedRun, Manifest]:
    """A linear probe of each backbone on a subset of the training images, and the manifest of all images."""
    config = features_config(_checked(config))
    manifest = prepare_manifest(config.data)
    subset = choose_subset(manifest, config.ranking.images)
    trials = tuple(list_trials(config))
    return PlannedRun(
        config, subset, trials, make_plan(config, subset, trials, machines or this_machine(config))
    ), manifest


def plan_features(config: RunConfig) -> PlannedRun:
    """A linear probe of each backbone on all images, whose features `tlray features` writes."""
    return plan_run(features_config(select_backbones(config)))


def _checked(config: RunConfig) -> RunConfig:
    """The configuration resolved, with all checked that can be without images."""
    config = select_backbones(config)
    check_licences(config)
    storage.check_writable(storage.absolute(config.storage))
    if config.activations.location is not None:
        storage.check_writable(storage.absolute(config.activations.location))
    check_batch_sizes(config)
    first = () if config.warm_start is None else (config.warm_start.backbone,)
    for backbone in (config.baseline.backbone, *first, *config.chosen_backbones):
        resolve_id(backbone.id)
    return _resolved(config)


def make_plan(config: RunConfig, manifest: Manifest, trials: Sequence[TrialConfig], machines: Machines) -> Plan:
    """Builds every backbone once with its weights and tries every strategy on it, so that a mistake shows here."""
    num_images = {split: len(manifest.split(split)) for split in ("train", "val", "test")}
    planned: dict[str, PlannedTrial] = {}
    found: list[ActivationSource] = []
    timed: dict[str, TimedTrial] = {}
    as_found: dict[str, TrialConfig] = {}
    notes: list[str] = []
    store = open_store(config)
    speed = measure_speed(store.uri)
    for config_key in dict.fromkeys(trial.backbone.model_dump_json() for trial in trials):
        backbone = build_backbone(
            BackboneConfig.model_validate_json(config_key), len(manifest.classes), seed=config.seed
        )
        notes += backbone.notes
        same = [trial for trial in trials if trial.backbone.model_dump_json() == config_key]
        same, unsolved = as_they_can_be_found(same, backbone, num_images["train"])
        notes += unsolved
        as_found |= {trial.trial_id: trial for trial in same}
        planned |= {trial.trial_id: _planned(config, trial, backbone, num_images) for trial in same}
        sources = plan_sources(config, manifest, backbone, same, store, speed, num_threads=machines.pass_threads)
        timed |= time_trials(config, manifest, backbone, same, sources)  # last: it trains the model
        found += sources
    sources = within(found, measure_room(config, store))
    if config.sweep.gpus_per_worker == "auto":
        planned = {trial_id: _with_share(trial, timed[trial_id]) for trial_id, trial in planned.items()}
        machines = machines.sharing([trial.gpu_share for trial in planned.values()])
    shares = {trial_id: trial.gpu_share for trial_id, trial in planned.items() if trial.gpu_share < 1}
    trials = [as_found[trial.trial_id] for trial in trials]
    costs = [trial_cost(config, trial, timed[trial.trial_id], sources, speed.gather, num_images) for trial in trials]
    dropped = beyond_budget(config, trials, costs, sources, machines)
    return Plan(
        name=config.name,
        num_classes=len(manifest.classes),
        num_images=num_images,
        num_bad_images=len(manifest.bad),
        trials=tuple(planned[cost.trial_id].model_copy(update={"seconds": cost.seconds}) for cost in costs),
        total_epochs=sum(trial.epochs for trial in planned.values()),
        total_image_passes=sum(trial.image_passes for trial in planned.values()),
        activations=tuple(sources),
        estimate=estimate_run(sources, costs, dropped, machines, config.export, config.prices),
        notes=(*notes, *_words_on_shares(shares), *words_on_stopping(config.sweep, trials)),
        warnings=manifest.warnings,
    )


def _planned(config: RunConfig, trial: TrialConfig, backbone: Backbone, num_images: dict[str, int]) -> PlannedTrial:
    share = 1.0
    if config.sweep.gpus_per_worker == "auto":
        share = gpu_share(trial_footprint(trial, backbone).memory_bytes, gpu_bytes())
    most = thaw_plan(backbone, trial).most
    freeze(backbone, most)
    parameters = list(backbone.model.parameters())
    return PlannedTrial(
        trial_id=trial.trial_id,
        backbone=trial.backbone.id,
        weights=trial.backbone.weights,
        strategy=trial.strategy.label,
        params=trial.params,
        epochs=trial.epochs,
        num_params=sum(p.numel() for p in parameters),
        num_trainable_params=sum(p.numel() for p in parameters if p.requires_grad),
        num_blocks=len(backbone.blocks),
        trainable_blocks=most,
        input_size=backbone.preprocessing.input_size,
        image_passes=trial.epochs * (num_images["train"] + num_images["val"]) + num_images["test"],
        gpu_share=share,
    )


def _with_share(trial: PlannedTrial, timed: TimedTrial) -> PlannedTrial:
    """The share of a GPU by memory, or by what it computes where that is more."""
    return trial.model_copy(update={"gpu_share": max(trial.gpu_share, 1 / trials_that_pay(timed))})


def _words_on_shares(shares: Mapping[str, float]) -> tuple[str, ...]:
    """One line on the trials that share a GPU, for the plan."""
    if not shares:
        return ()
    each = ", ".join(f"{count} trials {share:g}" for share, count in sorted(Counter(shares.values()).items()))
    return (f"sweep.gpus_per_worker auto: of a GPU, by the memory and the time of it that they need, {each}",)


def _resolved(config: RunConfig) -> RunConfig:
    """Full backbone ids, absolute locations, the precision; the demo's images and weights made if it is the demo."""
    config = with_absolute_locations(config)
    data = config.data
    if data.synthetic is not None:
        made = make_demo_data(data.synthetic)
        data = data.model_copy(update={"synthetic": None, "train": made.train, "val": made.val, "test": made.test})
    data = with_preparation(data)
    baseline = config.baseline.model_copy(update={"backbone": _with_full_id(config.baseline.backbone)})
    backbones = tuple(_with_full_id(backbone) for backbone in config.chosen_backbones)
    first = config.warm_start
    if first is not None:
        first = first.model_copy(update={"backbone": _with_full_id(first.backbone)})
    config = config.model_copy(update={"data": data, "backbones": backbones, "baseline": baseline, "warm_start": first})
    return with_chosen_precision(config, given_device(config.sweep.gpus_per_worker))


def _with_full_id(backbone: BackboneConfig) -> BackboneConfig:
    return backbone.model_copy(update={"id": resolve_id(backbone.id)})
