"""Heads against formulas written out, and what no head may do: look behind a video's end."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featlib.heads.modules import TCN, Attention, Embedding, Mean, Recurrent

D = 6


def heads() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "mean": Mean(D),
        "rnn": Recurrent(D, "rnn", 8),
        "lstm": Recurrent(D, "lstm", 8, layers=2),
        "gru": Recurrent(D, "gru", 8),
        "tcn": TCN(D, 8, blocks=3),
        "soft": Attention(D, 8),
        "gated": Attention(D, 8, gated=True),
        "hard": Attention(D, 8, hard=True),
        "embedding": Embedding(D, 8, 4),
    }


def videos() -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 7, D, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([7, 3, 1])


@pytest.mark.parametrize("name", heads())
def test_a_vector_depends_on_nothing_but_its_own_video(name: str) -> None:
    head = heads()[name].eval()
    x, lengths = videos()
    behind = x.clone()
    behind[1, 3:], behind[2, 1:] = 99.0, -99.0
    with torch.inference_mode():
        together = head(behind, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = head(x[row : row + 1, :length], torch.tensor([length]))
            assert torch.allclose(together.vector[row], alone.vector[0], atol=1e-6)
    assert together.vector.shape == (3, head.size)


@pytest.mark.parametrize("name", ["soft", "gated", "hard"])
def test_weights_sum_to_one_and_are_zero_behind_the_end(name: str) -> None:
    x, lengths = videos()
    with torch.inference_mode():
        weights = heads()[name].eval()(x, lengths).weights
    assert torch.allclose(weights.sum(1), torch.ones(3))
    assert not weights[1, 3:].any()
    assert not weights[2, 1:].any()


def test_attention_is_the_published_formula() -> None:
    """softmax over steps of w . (tanh(V h) * sigmoid(U h)), in numpy."""
    head = Attention(D, 8, gated=True).eval()
    x, _ = videos()
    h = x[0].double().numpy()
    v, u = (
        h @ m.weight.detach().double().numpy().T + m.bias.detach().double().numpy() for m in (head.score, head.gate)
    )
    logits = (np.tanh(v) / (1 + np.exp(-u))) @ head.weigh.weight.detach().double().numpy()[0]
    weights = np.exp(logits) / np.exp(logits).sum()
    with torch.inference_mode():
        found = head(x[:1], torch.tensor([7]))
    assert found.weights[0].numpy() == pytest.approx(weights, rel=1e-5)
    assert found.vector[0].numpy() == pytest.approx(weights @ h, rel=1e-4, abs=1e-6)


def test_hard_attention_takes_one_step_and_still_learns() -> None:
    head = Attention(D, 8, hard=True)
    x, lengths = videos()
    output = head.eval()(x, lengths)
    chosen = output.weights.argmax(1)
    assert torch.equal(output.vector, x[torch.arange(3), chosen])
    head.train()(x, lengths).vector.sum().backward()
    assert head.weigh.weight.grad.abs().sum() > 0


def test_lstm_is_the_published_formula() -> None:
    """Gates i, f, g, o (Hochreiter and Schmidhuber 1997, with forget gate), step by step in numpy."""
    head = Recurrent(D, "lstm", 5)
    cell = {k: p.detach().double().numpy() for k, p in head.cell.named_parameters()}
    x, _ = videos()
    h = c = np.zeros(5)

    def sigmoid(z: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        return 1 / (1 + np.exp(-z))

    for step in x[0].double().numpy():
        z = cell["weight_ih_l0"] @ step + cell["bias_ih_l0"] + cell["weight_hh_l0"] @ h + cell["bias_hh_l0"]
        i, f, g, o = np.split(z, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    with torch.inference_mode():
        assert head(x[:1], torch.tensor([7])).vector[0].numpy() == pytest.approx(h, rel=1e-5)


def test_tcn_is_causal_and_sees_as_far_as_it_says() -> None:
    head = TCN(D, 8, blocks=2, kernel=3).eval()
    assert head.receptive_field == 1 + 2 * 2 * (2**2 - 1) == 13
    x = torch.randn(1, 20, D, requires_grad=True)
    head(x, torch.tensor([18])).vector.sum().backward()
    seen = x.grad.abs().sum(2)[0].nonzero()[:, 0].tolist()
    assert seen[-1] == 17, "the future has no part in it"
    assert seen[0] >= 17 - head.receptive_field + 1
    far = torch.zeros(1, 13, D)
    far[0, 0] = 5.0
    with torch.inference_mode():
        near = head(torch.zeros(1, 13, D), torch.tensor([13])).vector
        assert not torch.equal(head(far, torch.tensor([13])).vector, near), "its first step counts"


def test_embeddings_have_length_one() -> None:
    x, lengths = videos()
    with torch.inference_mode():
        assert torch.allclose(heads()["embedding"](x, lengths).vector.norm(dim=1), torch.ones(3))
