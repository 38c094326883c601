"""The models that are exported, a folder a family; what they share: scans, the demo world, deployments."""
