"""Drawn faces: the default data set, which needs no download and has as many identities as wanted."""

from attfc_cuda.data.procedural.dataset import ProceduralFaces

__all__ = ["ProceduralFaces"]
