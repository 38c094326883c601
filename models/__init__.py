"""The model in PyTorch: configs, the network, its scans and memory, checkpoints, and the reference rollout."""
