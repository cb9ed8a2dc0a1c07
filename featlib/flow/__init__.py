"""Dense optical flow between frames: sources by name, estimators, and weights."""
