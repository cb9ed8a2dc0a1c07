"""From the rows of one video to what is written of it: pooled, or through a trained head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from featlib.aggregation.rows import Video
from featlib.aggregation.sources import Source
from featlib.config import AggregateConfig, Fuse, Pool
from featlib.errors import ConfigError
from featlib.heads.pooling import Floats, fuse, l2_normalised

if TYPE_CHECKING:
    from featlib.heads.saved import TrainedHead


class StepsDifferError(Exception):
    """The partitions to fuse do not have the same steps of a video; the message says how many each has."""


class NotFiniteError(Exception):
    """A feature that a head would read is NaN or infinite."""


@dataclass(frozen=True)
class VideoVector:
    """What is written of one video.

    Args:
        labels: The best classes, best first, and their ``probabilities``; None without a classifier.
        attention: The weight of each step, in the order of rows and steps; None of heads that do not weigh.
    """

    vector: Floats
    labels: Sequence[str] | None = None
    probabilities: Floats | None = None
    attention: Floats | None = None


class Maker(Protocol):
    """Makes vectors of videos.

    Args:
        keeps_steps: Whether videos come with their steps; else they are pooled while they are read.
    """

    @property
    def keeps_steps(self) -> bool: ...

    def semantics(self) -> Mapping[str, str]:
        """Every setting that changes a vector."""

    def __call__(self, videos: Sequence[Video]) -> VideoVector:
        """The vector of one video, from its rows under each model.

        Raises:
            StepsDifferError: They cannot be fused step by step.
            NotFiniteError: A head cannot read them.
        """


@dataclass(frozen=True)
class Pooling:
    """Mean, maximum, or mean and deviation."""

    pool: Pool
    fuse: Fuse
    keeps_steps: bool = False

    def semantics(self) -> Mapping[str, str]:
        return {"pool": self.pool}

    def __call__(self, videos: Sequence[Video]) -> VideoVector:
        return VideoVector(fuse([v.pooled.pooled(self.pool) for v in videos], self.fuse))


@dataclass(frozen=True)
class HeadVectors:
    """The vector of a trained head, and of a classifier its ``top_k`` best classes."""

    head: "TrainedHead"
    top_k: int

    @property
    def keeps_steps(self) -> bool:
        return not self.head.spec.pooled

    def semantics(self) -> Mapping[str, str]:
        known = {"head": self.head.spec.head, "head_sha256": self.head.sha256}
        return {**known, "top_k": str(self.top_k)} if self.head.spec.is_classifier else known

    def __call__(self, videos: Sequence[Video]) -> VideoVector:
        spec = self.head.spec
        steps = fused_steps(videos, spec.fuse, pooled=spec.pooled)
        if steps.shape[1] != spec.size_in:
            raise ConfigError(
                f"--head {self.head.source}: reads steps of {spec.size_in} values, a video has {steps.shape[1]}; the "
                "partition holds features of several shapes"
            )
        if not np.isfinite(steps).all():
            raise NotFiniteError
        made = self.head(steps)
        if made.probabilities is None:
            return VideoVector(made.vector, attention=made.weights)
        best = np.argsort(-made.probabilities, kind="stable")[: self.top_k]
        return VideoVector(made.vector, [spec.classes[i] for i in best], made.probabilities[best], made.weights)


@dataclass(frozen=True)
class Normalised:
    """Another maker's vectors, at length 1."""

    maker: Maker

    @property
    def keeps_steps(self) -> bool:
        return self.maker.keeps_steps

    def semantics(self) -> Mapping[str, str]:
        return self.maker.semantics()

    def __call__(self, videos: Sequence[Video]) -> VideoVector:
        made = self.maker(videos)
        return VideoVector(l2_normalised(made.vector), made.labels, made.probabilities, made.attention)


def fused_steps(videos: Sequence[Video], how: Fuse, *, pooled: bool) -> Floats:
    """What a head reads of one video: (T, D), its steps under all models side by side or averaged.

    Args:
        pooled: The mean of the video as its one step.

    Raises:
        StepsDifferError: The models do not have the same steps.
    """
    if pooled:
        return fuse([v.pooled.pooled("mean") for v in videos], how)[None]
    first, *others = (v.steps() for v in videos)
    if not all(np.array_equal(first.keys, other.keys) for other in others):
        raise StepsDifferError(" and ".join(str(v.num_steps) for v in videos))
    values = [first.values, *(other.values for other in others)]
    if how == "concat":
        return np.concatenate(values, axis=1)
    return np.asarray(np.mean(np.stack(values), axis=0, dtype=np.float64)).astype(np.float32)


def maker_of(config: AggregateConfig, head: "TrainedHead | None", sources: Sequence[Source]) -> Maker:
    """What the configuration asks for.

    Raises:
        ConfigError: The head was trained on other partitions, or these cannot be fused.
    """
    maker: Maker
    if head is None:
        maker = Pooling(config.pool, config.fuse)
        known = {s.size for s in sources if s.size is not None}
        if config.fuse == "mean" and len(known) > 1:
            raise ConfigError(f"--fuse mean: needs vectors of one size, these have {sorted(known)}; use concat")
    else:
        _check_head(config, head, sources)
        maker = HeadVectors(head, config.top_k)
    return Normalised(maker) if config.normalize else maker


def _check_head(config: AggregateConfig, head: "TrainedHead", sources: Sequence[Source]) -> None:
    spec, name = head.spec, f"--head {head.source}"
    if len(spec.features) != len(sources):
        raise ConfigError(
            f"{name}: reads {len(spec.features)} partitions ({', '.join(s.label for s in spec.features)}), --features "
            f"names {len(sources)}; name them in this order"
        )
    for wanted, source in zip(spec.features, sources, strict=True):
        if wanted.fingerprint != source.fingerprint:
            raise ConfigError(
                f"{name}: was trained on model={wanted.label} with fingerprint {wanted.fingerprint[:12]}, --features "
                f"{source.label} has {source.fingerprint[:12]}: another network, or other settings; give the features "
                "it was trained on or train a head on these"
            )
        if source.size not in (None, wanted.size):
            raise ConfigError(
                f"{name}: reads features of {wanted.size} values, --features {source.label} has {source.size} (shape "
                f"{list(source.shape)}); train a head on these"
            )
    if not spec.is_classifier and "top_k" in config.model_fields_set:
        raise ConfigError(f"--top-k {config.top_k}: this head is an {spec.head} without classes; leave it out")
    if config.top_k > len(spec.classes):
        raise ConfigError(f"--top-k {config.top_k}: this head knows {len(spec.classes)} classes; ask for no more")
