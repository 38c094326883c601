"""Linear-time scans of state-space layers: readable references, and what is trained and exported."""
