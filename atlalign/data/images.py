"""Images between files and the working size."""

from torch import Tensor


def resize_images(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return images (N, *shape) of the same dtype: Gaussian antialiasing, then bilinear with aligned corners.

    Args:
        images: (N, H, W), float or uint8; integers are rounded.
        shape: (H', W'); images that have it are returned as they are.
    """
    if tuple(images.shape[1:]) == tuple(shape):
        return images
    from kornia.geometry import resize  # slow to import

    resized: Tensor = resize(images[:, None].float(), shape, antialias=True, align_corners=True)[:, 0]
    return resized if images.is_floating_point() else resized.round().to(images.dtype)
