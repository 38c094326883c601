"""VideoSSM and its kin on the block of Wan2.1: config, network, scans and memory, checkpoints, deployment."""
