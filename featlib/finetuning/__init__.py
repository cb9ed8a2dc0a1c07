"""A network is trained further, end to end, on labelled videos and images."""

from featlib.finetuning.job import finetune
from featlib.finetuning.result import FinetuneResult

__all__ = ["FinetuneResult", "finetune"]
