"""Where every object of an output lies, relative to the output."""

import re
from dataclasses import dataclass

_PART = re.compile(r"part-(\d{5,})(?:-r(\d+))?(?:-p(\d+))?\.parquet")


@dataclass(frozen=True, order=True)
class PartName:
    """``part-SSSSS[-rK][-pJ].parquet``: shard, round of retries, and part of a shard too large for one object."""

    shard: int
    round: int = 0
    part: int = 0

    @classmethod
    def parse(cls, key: str) -> "PartName | None":
        """The name in the last component of ``key``; None when it is not one of ours."""
        match = _PART.fullmatch(key.rpartition("/")[2])
        return cls(*(int(g or 0) for g in match.groups())) if match else None

    def __str__(self) -> str:
        tail = (f"-r{self.round}" if self.round else "") + (f"-p{self.part}" if self.part else "")
        return f"part-{self.shard:05d}{tail}.parquet"


@dataclass(frozen=True)
class Keys:
    """Where the objects of one dataset lie, relative to the output."""

    dataset: str

    def features(self, label: str) -> str:
        return f"features/dataset={self.dataset}/model={label}"

    def outcomes(self, label: str) -> str:
        return f"outcomes/dataset={self.dataset}/model={label}"

    @property
    def own(self) -> str:
        return f"_featlib/{self.dataset}"

    @property
    def plan(self) -> str:
        return f"{self.own}/plan"

    @property
    def stage(self) -> str:
        return f"{self.own}/stage"

    def stage_shard(self, shard: int) -> str:
        return f"{self.stage}/{shard:05d}"

    @property
    def units(self) -> str:
        return f"{self.own}/units"

    @property
    def drivers(self) -> str:
        return f"{self.own}/drivers"

    @property
    def runs(self) -> str:
        return f"{self.own}/runs"

    def doubts(self, label: str) -> str:
        return f"{self.own}/doubt/{label}"

    def doubt(self, label: str, shard: int) -> str:
        return f"{self.doubts(label)}/{shard:05d}"

    def model(self, label: str) -> str:
        return f"{self.own}/models/{label}.json"
