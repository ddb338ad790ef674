"""What the known values beside a site foretell of it: fixed predictors for maps of one, two and three axes."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Near:
    """The known values beside each site.

    Attributes:
        axes: of the map.
        reach: how many steps back may be asked for along each axis, at least 1.
        at: a step along each axis, none of them forward, to the values there, [b, c, \\*map]: scaled to [-1, 1], and 0
            outside the map.
        unit: how much the values around each site differ, [b, 1, \\*map], in which the network gives widths; none: the
            whole range.
    """

    axes: int
    reach: int
    at: Callable[..., Tensor]
    unit: Tensor | None = None

    def predictions(self) -> list[Tensor]:
        """Guesses of the value of each site, [b, c, \\*map] each.

        One axis: the polynomials of degree 0, 1, 2 through the last values (Robinson 1994, Shorten). Two: the median of
        left, above and left + above - corner (the edge predictor of JPEG-LS, Weinberger et al. 2000), each of these,
        the corner. Three: the value before along each axis, and the one that is missing in the cube of neighbours if
        it has no third-order difference.
        """
        if self.axes == 1:
            back = [self.at(-step) for step in range(1, min(self.reach, 3) + 1)]
            weights = ((1,), (2, -1), (3, -3, 1))[: len(back)]
            return [sum((w * x for w, x in zip(row[1:], back[1:], strict=False)), row[0] * back[0]) for row in weights]
        if self.axes == 2:
            left, above, corner = self.at(0, -1), self.at(-1, 0), self.at(-1, -1)
            plane = left + above - corner
            median = torch.maximum(torch.minimum(left, above), torch.minimum(torch.maximum(left, above), plane))
            return [median, left, above, plane, corner]
        cube = {steps: self.at(*(-step for step in steps)) for steps in product((0, 1), repeat=3) if any(steps)}
        missing = sum((x if sum(steps) % 2 else -x for steps, x in cube.items()), torch.zeros(()))
        return [cube[1, 0, 0], cube[0, 0, 1], cube[0, 1, 0], missing]
