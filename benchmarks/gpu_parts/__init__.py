"""What benchmarks/gpu.py times: parts of tlray, and the plain PyTorch that each is compared with."""
