"""How trials are drawn and scheduled, on which machines, under which budget and at what price."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tlray.config.section import MOST_ENTRIES, MOST_EPOCHS, MOST_RESOURCES, MOST_TRIALS, Number, Section, Whole


class SweepConfig(Section):
    """How trials are drawn, scheduled and given resources; names and meanings are Ray Tune's."""

    num_samples: Whole = Field(1, ge=1, le=MOST_TRIALS)
    scheduler: Literal["asha", "fifo"] = "asha"
    grace_period: Annotated[Whole, Field(ge=1, le=MOST_EPOCHS)] | Literal["auto"] = Field(
        "auto",
        description="epochs before ASHA may stop a trial; auto: a third of the trial's own, not counting warm-up and "
        "the epochs before the last thaw",
    )
    reduction_factor: Number = Field(3, gt=1, le=1000)
    max_concurrent_trials: Whole | None = Field(
        None, ge=1, le=MOST_TRIALS, description="by default as many as the cluster holds"
    )
    max_failures: Whole = Field(2, ge=0, le=1000, description="times a trial is restarted from its last checkpoint")
    trainer: Literal["auto", "ray_train"] = Field("auto", description="auto: in the Tune actor where one worker does")
    workers_per_trial: Whole = Field(1, ge=1, le=10_000)
    cpus_per_worker: Number = Field(1, gt=0, le=10_000)
    gpus_per_worker: Annotated[Number, Field(ge=0, le=1000)] | Literal["auto"] | None = Field(
        None,
        description="by default 1 where the cluster has GPUs, else 0; auto: the share of a GPU whose memory the trial "
        "needs, by the plan",
    )
    resources_per_worker: dict[str, Annotated[Number, Field(gt=0, le=MOST_RESOURCES)]] = Field(
        default_factory=dict,
        max_length=MOST_ENTRIES,
        description="further resources of Ray's, by name: accelerator_type:A100, or your own",
    )

    @model_validator(mode="after")
    def resources_have_one_name(self) -> "SweepConfig":
        for name, field in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
            if name in self.resources_per_worker:
                raise ValueError(f"resources_per_worker has {name}, which {field} says")
        return self

    @model_validator(mode="after")
    def workers_that_train_together_have_whole_gpus(self) -> "SweepConfig":
        gpus = self.gpus_per_worker
        if self.workers_per_trial > 1 and (gpus == "auto" or (gpus is not None and 0 < gpus < 1)):
            raise ValueError(
                f"gpus_per_worker is {gpus} with workers_per_trial {self.workers_per_trial}: "
                "workers that train together need whole GPUs"
            )
        return self


class NodeTypeConfig(Section):
    """Nodes of one kind that an autoscaler may start."""

    cpus: Number = Field(ge=0, le=10_000)
    gpus: Number = Field(0, ge=0, le=1000)
    resources: dict[str, Annotated[Number, Field(ge=0, le=MOST_RESOURCES)]] = Field(
        default_factory=dict, max_length=MOST_ENTRIES, description="further resources, by name"
    )
    max_workers: Whole = Field(ge=1, le=100_000, description="so many of them at most")


class ClusterConfig(Section):
    """The cluster that a run waits for. Trials and tasks are asked for by what it can become, so that it grows."""

    node_types: tuple[NodeTypeConfig, ...] = Field(
        (),
        max_length=MOST_ENTRIES,
        description="what the autoscaler may start; by default read from where Ray keeps its configuration",
    )
    wait_minutes: Number = Field(
        20, ge=0, le=10_080, description="for the first node that holds a trial, before the run gives up"
    )


class BudgetConfig(Section):
    """What a run may take at most; it ends cleanly with the best so far."""

    hours: Number | None = Field(
        None, gt=0, le=87_600, description="by the clock, from the start of the command to DONE, without interruptions"
    )
    cost: Number | None = Field(None, gt=0, le=1e12, description="in the currency of prices; needs prices")
    trials: Whole | None = Field(None, ge=1, le=MOST_TRIALS, description="beside the baseline")


class PricesConfig(Section):
    """What the machines of the cluster cost, to say what a run will."""

    per_hour: dict[str, Annotated[Number, Field(ge=0, le=1e9)]] = Field(
        min_length=1, max_length=MOST_ENTRIES, description="price of each instance type"
    )
    instances: dict[str, Annotated[Number, Field(ge=0, le=1e6)]] = Field(
        default_factory=dict,
        max_length=MOST_ENTRIES,
        description="how many of each type work on the run; by default one, of the only type",
    )

    @model_validator(mode="after")
    def every_instance_has_a_price(self) -> "PricesConfig":
        for name in self.instances:
            if name not in self.per_hour:
                raise ValueError(f"instances.{name} has no price; per_hour has {', '.join(self.per_hour)}")
        if not self.instances and len(self.per_hour) > 1:
            raise ValueError("per_hour has several types: say in instances how many of each work on the run")
        return self

    def cost_of(self, seconds: float) -> float:
        """What all instances together cost in that time."""
        instances = self.instances or dict.fromkeys(self.per_hour, 1.0)
        return sum(number * self.per_hour[name] for name, number in instances.items()) * seconds / 3600
