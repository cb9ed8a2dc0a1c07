"""The second job: features of frames or clips become one vector a video."""

from featlib.aggregation.job import aggregate

__all__ = ["aggregate"]
