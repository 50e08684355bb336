"""Training one trial: plain PyTorch, no Ray."""
