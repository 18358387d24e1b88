"""A network on smaller images, and a last pass at full size that corrects its field."""

from typing import Any

from torch import Tensor, nn

from atlalign.errors import InputError, check_numbers
from atlalign.geometry import compose, resize, warp
from atlalign.networks.coarse_to_fine import shrink
from atlalign.networks.contract import as_registration
from atlalign.networks.layers import Registration


class FinePassNet(nn.Module):
    """Registers smaller images, corrects the field at full size, and interpolates the moving image once.

    The coarse network sees shrunk images. The fine network sees the images at full size, with the moving image warped
    by the coarse field, and predicts the remaining displacement. The field is `compose(outer=coarse, inner=fine)`, its
    inverse `compose(outer=inverse of the fine, inner=inverse of the coarse)`.

    Args:
        coarse: Maps (reference, moving) of any size to a `Registration`, usually trained before.
        fine: A network of the same kind, trained on the errors that `coarse` leaves.
        reduction: The factor by which the images are shrunk for `coarse`.
        compute_inv: Return the inverse field as well; both networks must return theirs.

    Raises:
        InputError: If the reduction is not a whole number ≥ 1, or `compute_inv` is set and a network returns no
            inverse.
    """

    def __init__(
        self, coarse: nn.Module, fine: nn.Module, reduction: int = 2, compute_inv: bool = False
    ) -> None:
        super().__init__()
        check_numbers({"reduction": reduction}, {"reduction": 1})
        for name, net in (("coarse", coarse), ("fine", fine)):
            if compute_inv and not getattr(net, "compute_inv", False):
                raise InputError(f"compute_inv: expected a {name} network that returns the inverse field")
        self.coarse = coarse
        self.fine = fine
        self.reduction = int(reduction)
        self.compute_inv = compute_inv

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "coarse": self.coarse,
            "fine": self.fine,
            "reduction": self.reduction,
            "compute_inv": self.compute_inv,
        }

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        """Register `moving` to `reference`, both (B, 1, H, W) in [0, 1]."""
        smaller = (shrink(image, self.reduction) for image in (reference, moving))
        coarse = as_registration(self.coarse, self.coarse(*smaller))
        fine = self.last_pass(reference, moving, coarse.dvf)
        shape = (moving.shape[-2], moving.shape[-1])
        dvf = compose(outer=resize(coarse.dvf, shape), inner=fine.dvf)
        inverse = None
        if self.compute_inv and coarse.inv_dvf is not None and fine.inv_dvf is not None:
            inverse = compose(outer=fine.inv_dvf, inner=resize(coarse.inv_dvf, shape))
        return Registration(registered=warp(moving, dvf), dvf=dvf, inv_dvf=inverse)

    def coarse_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the (H, W) of the coarse network's images for images of `shape`."""
        return shape[0] // self.reduction, shape[1] // self.reduction

    def last_pass(self, reference: Tensor, moving: Tensor, dvf: Tensor) -> Registration:
        """Return the fine network's registration of the moving image after a coarse field of any size (B, 2, h, w)."""
        so_far = warp(moving, resize(dvf, (moving.shape[-2], moving.shape[-1])), padding_mode="border")
        return as_registration(self.fine, self.fine(reference, so_far))
