"""``--preprocess MEAN.npy``: the mean of each pixel is taken off as C3D's authors did, and is in the fingerprint."""

from pathlib import Path

import numpy as np
import pytest
import torch

from featlib.config import ModelConfig
from featlib.errors import ConfigError
from featlib.extractors import registry
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload
from featlib.inference import Engine
from featlib.inference.inputs import Normalisation
from featlib.storage import StoreOptions

OPTIONS = StoreOptions()
RANDOM = np.random.default_rng(2)
VOLUME = RANDOM.uniform(60, 140, (3, 16, 128, 171)).astype(np.float32)
CLIP = RANDOM.integers(0, 256, (16, 112, 112, 3), np.uint8)


def saved(folder: Path, volume: np.ndarray) -> str:
    path = folder / "mean.npy"
    np.save(path, volume)
    return str(path)


def resolved(preprocess: str | None, network: str = "factorised3d") -> ResolvedModel:
    config = {"network": network, "label": "m", "weights": "random:0", "preprocess": preprocess}
    return resolve(ModelConfig.model_validate(config), OPTIONS)


def features(model: ResolvedModel) -> np.ndarray:
    (extracted,) = Engine([model], payload(model, OPTIONS)).run(CLIP, np.arange(16)[None])
    return extracted.features[0]


def test_the_centre_of_the_volume_is_taken_off_the_crop(tmp_path: Path) -> None:
    model = resolved(saved(tmp_path, VOLUME))
    torch.manual_seed(0)
    network = registry.network("factorised3d").constructor().eval()
    network.fc = torch.nn.Identity()
    std = np.array(model.input.std).reshape(3, 1, 1, 1)
    # The crop of 112 begins at row 8 of 128 and column 30 of 171.
    expected = {}
    for column in (30, 29):
        mean = VOLUME[:, :, 8:120, column : column + 112]
        x = (CLIP.transpose(3, 0, 1, 2) - mean) / 255 / std
        with torch.inference_mode():
            expected[column] = network(torch.from_numpy(x.astype(np.float32))[None])[0].numpy()
    got = features(model)
    length = np.linalg.norm(expected[30])
    assert np.linalg.norm(got - expected[30]) / length < 1e-5
    assert np.linalg.norm(got - expected[29]) / length > 1e-4
    cropped = resolved(saved(tmp_path, VOLUME[:, :, 8:120, 30:142]))
    assert np.array_equal(features(cropped), got)


def test_c3d_takes_it_off_in_bgr_and_in_grey_levels() -> None:
    reads = registry.network("c3d").default_pretrained.input
    mean = torch.from_numpy(VOLUME[:, :, 8:120, 30:142].copy())
    x = Normalisation(reads, torch.device("cpu"), mean)(torch.from_numpy(CLIP)[None])[0]
    expected = CLIP[..., ::-1].transpose(3, 0, 1, 2) - VOLUME[:, :, 8:120, 30:142]
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-3)


def test_another_mean_is_another_fingerprint(tmp_path: Path) -> None:
    semantics = {text: resolved(text).semantics()["preprocess"] for text in (None, saved(tmp_path, VOLUME))}
    other = resolved(saved(tmp_path, VOLUME + 1)).semantics()["preprocess"]
    assert len({*semantics.values(), other}) == 3


@pytest.mark.parametrize(
    ("volume", "network", "message"),
    [
        (VOLUME[:, :8], "factorised3d", r"is float32 \(3, 8, 128, 171\), but must be floats \(3, 16, 128, 171\) or"),
        (VOLUME.astype(np.int32), "factorised3d", "is int32"),
        (np.full_like(VOLUME, np.nan), "factorised3d", "NaN"),
        (VOLUME, "resnet18", "is for networks of RGB clips"),
        (np.array([{}], dtype=object), "factorised3d", r"is object \(1,\)"),
    ],
)
def test_refusals(volume: np.ndarray, network: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        resolved(saved(tmp_path, volume), network)
    assert "\n" not in str(refused.value)


def claiming(shape: str, descr: str = "'<f4'", version: int = 1) -> bytes:
    """A ``.npy`` file of a hundred bytes that says it holds an array of ``shape``."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (claiming("(1000000000000,)"), r"is float32 \(1000000000000,\), but must be"),
        (claiming("(3, 16, 128, 171)"), "claims 4202496 bytes of numbers and holds 0"),
        (claiming("(3, 16, 128, 171)") + bytes(4202497), "claims 4202496 bytes of numbers and holds 4202497"),
        (claiming("(0, 10**40)"), "cannot be read"),
        (claiming(f"(0, {10**40})"), "but must be"),
        (claiming("(" * 5000), "cannot be read"),
        (claiming("-" * 9000 + "1"), "cannot be read"),
        (claiming("(1,)", "'V" + "9" * 30 + "'"), "cannot be read"),
        (claiming("(1,)", "[('a', '<f4')] * 9"), "cannot be read"),
        (claiming("(1,)", version=9), "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_header_that_claims_what_is_not_there(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mean.npy"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message) as refused:
        resolved(str(path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        resolved(str(tmp_path / "no.npy"))
