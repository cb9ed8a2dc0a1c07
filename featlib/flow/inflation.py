"""A first convolution for stacks of flow from the one of an RGB network."""

from torch import Tensor


def inflated_first_conv(weight: Tensor, channels: int) -> Tensor:
    """The weights of ``weight`` averaged over R, G and B and repeated for every flow channel.

    As in Temporal Segment Networks (Wang et al. 2016): the mean is not scaled by the number of channels, so that
    a channel of flow weighs as much as the mean colour did.

    Args:
        weight: (out, 3, k, k), or (out, 3, k, k, k) of a 3D network.
        channels: Input channels of the new convolution: 2 for each flow field.

    Returns:
        (out, channels, k, k), in memory of its own.

    Raises:
        ValueError: ``weight`` is not of an RGB network, or ``channels`` is under 1.
    """
    if weight.ndim < 3 or weight.shape[1] != 3:
        raise ValueError(f"a first convolution of {tuple(weight.shape)} does not read RGB: axis 1 must be 3")
    if channels < 1:
        raise ValueError(f"channels ({channels}) must be at least 1")
    return weight.mean(dim=1, keepdim=True).repeat_interleave(channels, dim=1)
