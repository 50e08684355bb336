"""Export bundles: a trained model as a folder that predicts without tlray's run, hub or cluster.

export_bundle(...)              # writes one; see bundle.py
model = load("runs/.../exports/1-resnet50"); model(["a.jpg", "b.jpg"])
"""

from tlray.export.bundle import export_bundle
from tlray.export.model import Model, Prediction, load

__all__ = ["Model", "Prediction", "export_bundle", "load"]
