"""The models that are exported, a folder a family, and what they share: scans, the demo world, the words of a deployment."""
