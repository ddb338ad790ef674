"""A look at the files of a folder before they are decoded: how large the images are, and whether parts are transparent.

Only the first bytes of a few files are read, unless they have a channel of transparency.
"""

from collections import Counter
from dataclasses import dataclass

from PIL import Image

from vqstack.images.folders import tree, without_roots
from vqstack.images.formats import bombs_refused, opened
from vqstack.images.settings import ImageSettings

LOOKED_AT = 200  # files, evenly spread


@dataclass(frozen=True)
class Look:
    """What was seen: (height, width) of images and how many have it, and how many have transparent parts."""

    sizes: Counter[tuple[int, int]]
    transparent: int

    def remarks(self, settings: ImageSettings) -> list[str]:
        """What somebody should know who trains on these images with these settings, each with a remedy."""
        found, count = list[str](), self.sizes.total()
        kept = settings.kept
        if kept is not None and len(kept) == 2:
            small = sum(n for (h, w), n in self.sizes.items() if h < kept[0] or w < kept[1])
            if 2 * small > count:
                (height, width), _ = self.sizes.most_common(1)[0]
                found.append(
                    f"{small} of {count} images looked at are smaller than {kept[0]}x{kept[1]} and are enlarged "
                    f"(most often from {height}x{width}): set data.size, and data.resize where there is one, to less"
                )
        if self.transparent and settings.background == "black":
            found.append(
                f"{self.transparent} of {count} images looked at have transparent parts, which are laid on black: "
                "icons and drawings want --data.background white"
            )
        return found


def _alpha(image: Image.Image) -> int:
    """Of its most transparent pixel, 0 … 255."""
    return min(image.convert("RGBA").getchannel("A").tobytes())


def first_look(settings: ImageSettings) -> Look | None:
    """A look at the images of train; None where they are in no folder, or none of them can be read."""
    if settings.source != "imagefolder" or "train" not in settings.files:
        return None
    inside, _ = without_roots(settings)
    paths = tree(inside.files["train"], inside).images
    sizes, transparent = Counter[tuple[int, int]](), 0
    for path in paths[:: -(-len(paths) // LOOKED_AT)] if paths else ():
        try:
            with bombs_refused(), opened(path) as image:
                sizes[image.height, image.width] += 1
                transparent += image.has_transparency_data and _alpha(image) < 255
        except Exception:  # whatever a broken file makes of itself: whoever decodes it says so
            continue
    return Look(sizes, transparent) if sizes else None
