"""Transformers over maps: the prior over the top map, and the refiners of the maps below it.

Files in reading order: ``settings``, ``base`` (what both classes share), ``autoregressive``, ``masked``, ``unified``
(one transformer for several maps), ``build`` and ``joint_encoder``.
"""

from vqstack.code_model.autoregressive import AutoregressiveCodeModel
from vqstack.code_model.base import CodeModel, Parent
from vqstack.code_model.build import build_code_model, build_refiner, parent_of
from vqstack.code_model.joint_encoder import JointEncoder
from vqstack.code_model.masked import MaskedCodeModel
from vqstack.code_model.settings import (
    CodeModelSettings,
    RefinerSettings,
    check_refiners,
    check_unified,
    segments_of,
)
from vqstack.code_model.term import CodeModelTerm
from vqstack.code_model.unified import SHARED, UnifiedCodeModel
from vqstack.schedule import Schedule

__all__ = [
    "SHARED",
    "AutoregressiveCodeModel",
    "CodeModel",
    "CodeModelSettings",
    "CodeModelTerm",
    "JointEncoder",
    "MaskedCodeModel",
    "Parent",
    "RefinerSettings",
    "Schedule",
    "UnifiedCodeModel",
    "build_code_model",
    "build_refiner",
    "check_refiners",
    "check_unified",
    "parent_of",
    "segments_of",
]
