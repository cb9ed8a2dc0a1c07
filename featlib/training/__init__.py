"""Heads on features: what ``featlib train`` does without touching pixels."""

from featlib.training.job import train
from featlib.training.report import TrainSummary

__all__ = ["TrainSummary", "train"]
