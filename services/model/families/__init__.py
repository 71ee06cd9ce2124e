"""The model families that are served: one table, a row for each."""

from __future__ import annotations

from services.model.base import ModelError
from services.model.families import flux, flux2, hunyuan, ltx2, qwen, wan, wan_ti2v, zimage
from services.model.families.family import Extent, Family, ModularFamily, Spec, StandardFamily
from services.model.folder import ModelFolder

__all__ = ["FAMILIES", "Extent", "Family", "ModularFamily", "Spec", "StandardFamily", "family_of"]

# Of those with the same class in a model's index, the first that matches the model is its family.
FAMILIES: tuple[Family, ...] = (
    *wan_ti2v.FAMILIES,
    *wan.FAMILIES,
    *flux.FAMILIES,
    *flux2.FAMILIES,
    *qwen.FAMILIES,
    *zimage.FAMILIES,
    *hunyuan.FAMILIES,
    *ltx2.FAMILIES,
)


def family_of(folder: ModelFolder) -> Family:
    """ModelError if no family covers the model."""
    pipeline = folder.index.get("_class_name")
    for family in FAMILIES:
        if family.index_class == pipeline and family.matches(folder):
            if reason := family.refuses(folder):
                raise ModelError(f"{folder.path}: this {pipeline} is not served: {reason}")
            return family
    served = dict.fromkeys(family.index_class for family in FAMILIES)
    raise ModelError(f"{folder.path}: {pipeline} is not served, expected {', '.join(served)}")
