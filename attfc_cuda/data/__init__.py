"""Face images by identity: data sets, and the attention loader that makes training batches of them."""

from attfc_cuda.data.attention_loader import AttentionLoader, Batch
from attfc_cuda.data.augment import normalize_images
from attfc_cuda.data.build import build_dataset
from attfc_cuda.data.faces import FaceDataset, UnreadableImage
from attfc_cuda.data.folders import FolderFaces
from attfc_cuda.data.images import read_image
from attfc_cuda.data.procedural import ProceduralFaces

__all__ = [
    "AttentionLoader",
    "Batch",
    "FaceDataset",
    "FolderFaces",
    "ProceduralFaces",
    "UnreadableImage",
    "build_dataset",
    "normalize_images",
    "read_image",
]
