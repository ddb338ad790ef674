"""Data sets of images, sounds and other signals -> tensors: read, decoded and split once, all after works on tensors.

In reading order: ``settings``, ``formats`` (what an image file may be), ``fitting`` (to a size); ``sounds``,
``volumes``, ``video``, ``series`` (one input each), ``pieces`` (of such inputs), ``decode`` (one file), ``pictures``
(and back), ``captions``, ``views`` (random changes), ``files`` (on this machine), ``folders``, ``look`` (at a few of
them), ``labels`` (classes), ``shards`` (Parquet files and archives), ``undecoded`` (splits as their source has them),
``arrays``, ``excerpts``, ``moving`` (clips of digits), ``records`` (all sources), ``parts`` (which image belongs to
which split), ``cache``, ``splits``, ``identity`` (what tells them from others), ``stream`` (endless, for training),
``whole`` (a stream to its end). An image stands for an input of any kind: of larger ones, sounds, volumes and videos,
it is a piece.
docs/data.md tells it from the user's side.
"""

from vqstack.images.cache import default_cache
from vqstack.images.captions import captioned
from vqstack.images.decode import decode_all, load_images
from vqstack.images.formats import bombs_refused, is_image, more_than_eight_bits, opened, upright
from vqstack.images.identity import identity
from vqstack.images.labels import mapped, numerals
from vqstack.images.look import first_look
from vqstack.images.pictures import FileFormat, grid, heat, save_png, saver
from vqstack.images.records import check_paths
from vqstack.images.settings import SPLITS, ImageSettings, Size, Split, register_source
from vqstack.images.sounds import is_sound, whole_sound
from vqstack.images.splits import ImageSplit, Part, image_shape, load_splits, num_classes, split_names
from vqstack.images.stream import ImageStream, StreamBatch, open_stream
from vqstack.images.views import AugmentSettings, augment, center, uniforms
from vqstack.images.volumes import is_volume, save_volume
from vqstack.images.whole import WholeSplit, survey, whole_splits

__all__ = [
    "SPLITS",
    "AugmentSettings",
    "FileFormat",
    "ImageSettings",
    "ImageSplit",
    "ImageStream",
    "Part",
    "Size",
    "Split",
    "StreamBatch",
    "WholeSplit",
    "augment",
    "bombs_refused",
    "captioned",
    "center",
    "check_paths",
    "decode_all",
    "default_cache",
    "first_look",
    "grid",
    "heat",
    "identity",
    "image_shape",
    "is_image",
    "is_sound",
    "is_volume",
    "load_images",
    "load_splits",
    "mapped",
    "more_than_eight_bits",
    "num_classes",
    "numerals",
    "open_stream",
    "opened",
    "register_source",
    "save_png",
    "save_volume",
    "saver",
    "split_names",
    "survey",
    "uniforms",
    "upright",
    "whole_sound",
    "whole_splits",
]
