"""The merged network: a global network, then a local network applied to the globally registered image."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from atlalign.geometry import affine_to_dvf, compose, invert_affine, warp
from atlalign.networks.contract import as_registration
from atlalign.networks.global_affine import GlobalAffineNet


class MergedRegistration(NamedTuple):
    """A `Registration` together with its global part.

    Attributes:
        registered: (B, 1, H, W) in [0, 1], the moving image warped by `dvf`.
        dvf: (B, 2, H, W) in pixels, the overall field.
        inv_dvf: (B, 2, H, W), its inverse; None if the local network predicts none.
        global_registered: (B, 1, H, W), the moving image warped by the global field; None without `expose_global`.
        global_dvf: (B, 2, H, W), the global field; None without `expose_global`.
    """

    registered: Tensor
    dvf: Tensor
    inv_dvf: Tensor | None = None
    global_registered: Tensor | None = None
    global_dvf: Tensor | None = None


class MergedNet(nn.Module):
    """Registers globally, then locally, and interpolates the moving image once with the overall field.

    The local network sees the reference and the globally registered moving image. The overall field is
    `compose(outer=global, inner=local)`; its inverse, if the local network predicts one, is `compose(outer=local
    inverse, inner=global inverse)` with the exact inverse of the affine map.

    Args:
        global_net: Predicts the affine map.
        local_net: Any network that maps (reference, moving) to a `Registration`.
        expose_global: Return `global_registered` and `global_dvf` as well; otherwise they are None.
    """

    def __init__(
        self, global_net: GlobalAffineNet, local_net: nn.Module, *, expose_global: bool = False
    ) -> None:
        super().__init__()
        self.global_net = global_net
        self.local_net = local_net
        self.expose_global = expose_global

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W) of the images; the global network fixes it."""
        return self.global_net.image_shape

    @property
    def compute_inv(self) -> bool:
        """Whether the local network, and so this one, predicts the inverse field."""
        return bool(getattr(self.local_net, "compute_inv", False))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "global_net": self.global_net,
            "local_net": self.local_net,
            "expose_global": self.expose_global,
        }

    def forward(self, reference: Tensor, moving: Tensor) -> MergedRegistration:
        """Register `moving` to `reference`, both (B, 1, H, W) in [0, 1]."""
        matrix = self.global_net.affine(reference, moving)
        global_dvf = self.global_net.to_dvf(matrix)
        global_registered = warp(moving, global_dvf)
        local = as_registration(self.local_net, self.local_net(reference, global_registered))
        dvf = compose(outer=global_dvf, inner=local.dvf)
        return MergedRegistration(
            registered=warp(moving, dvf),
            dvf=dvf,
            inv_dvf=None if local.inv_dvf is None else _overall_inverse(matrix, local.inv_dvf),
            global_registered=global_registered if self.expose_global else None,
            global_dvf=global_dvf if self.expose_global else None,
        )


def _overall_inverse(matrix: Tensor, local_inverse: Tensor) -> Tensor:
    """Return the inverse field: it first undoes the global map (B, 2, 3), which was applied last."""
    height, width = local_inverse.shape[-2:]
    return compose(outer=local_inverse, inner=affine_to_dvf(invert_affine(matrix), (height, width)))
