"""Scheduled retraining: when a challenger is promoted, and what the next sweep begins with."""

from pydantic import Field, model_validator

from tlray.config.section import Flag, Number, Section, Whole
from tlray.config.training import BackboneConfig, Recipe, StrategyConfig


class WarmStart(Section):
    """One trial in full, which is tried before all others."""

    backbone: BackboneConfig
    strategy: StrategyConfig
    training: Recipe = Recipe()


class RetrainConfig(Section):
    """When `tlray retrain` promotes its challenger, and whom it tells."""

    confidence: Number = Field(
        0.95, ge=0.5, lt=1, description="with which the challenger must be better (McNemar's exact test, one-sided)"
    )
    max_class_drop: Number = Field(0.05, ge=0, le=1, description="largest fall of a class's recall that is accepted")
    min_class_images: Whole = Field(
        20,
        ge=1,
        le=10**9,
        description="test images from which a class is judged by itself; smaller ones are judged together",
    )
    min_test_images: Whole = Field(50, ge=1, le=10**9, description="test images without which nothing is promoted")
    warm_start: Flag = Field(True, description="the champion's own configuration is the first trial")
    drift_images: Whole = Field(
        1000, ge=10, le=10**6, description="new, and old, images at most whose features are compared"
    )
    webhook: str | None = Field(
        None,
        exclude=True,  # it may hold a token: run folders keep the configuration without it
        repr=False,
        description="http(s) URL that the outcome is posted to; by default TLRAY_WEBHOOK of the environment, or none",
    )
    webhook_timeout: Number = Field(10, gt=0, le=3600, description="seconds that one attempt of the webhook may take")

    @model_validator(mode="after")
    def webhook_is_a_url(self) -> "RetrainConfig":
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ValueError("webhook is not an http:// or https:// URL")
        return self
