"""Networks that no library of backbones has in the form that tlray needs; they import torch, and are imported late."""
