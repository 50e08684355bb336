"""A plan without trials, for tests of what is made beside it."""

from typing import Any

from tlray.runs.plan import Plan


def empty_plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {"name": "x", "num_classes": 2, "num_images": {}, "num_bad_images": 0, "trials": ()}
    return Plan(**{**fields, "total_epochs": 0, "total_image_passes": 0, **changes})
