"""Face images by identity: data sets, and the attention loader that makes training batches of them."""

from attfc_cuda.data.attention_loader import AttentionLoader, Batch, TooManyUnreadable
from attfc_cuda.data.augment import normalize_images
from attfc_cuda.data.build import build_dataset
from attfc_cuda.data.faces import FaceDataset, UnreadableImage
from attfc_cuda.data.images import decode_image, read_image
from attfc_cuda.data.packing import pack
from attfc_cuda.data.procedural.dataset import ProceduralFaces
from attfc_cuda.data.sources.concat import ConcatFaces
from attfc_cuda.data.sources.folders import FolderFaces
from attfc_cuda.data.sources.lists import ListFaces
from attfc_cuda.data.sources.lmdb import LmdbFaces
from attfc_cuda.data.sources.parquet import ParquetFaces
from attfc_cuda.data.sources.recordio_faces import RecordFaces
from attfc_cuda.data.sources.stored import StoredFaces
from attfc_cuda.data.sources.tar import TarFaces

__all__ = [
    "AttentionLoader",
    "Batch",
    "ConcatFaces",
    "FaceDataset",
    "FolderFaces",
    "ListFaces",
    "LmdbFaces",
    "ParquetFaces",
    "ProceduralFaces",
    "RecordFaces",
    "StoredFaces",
    "TarFaces",
    "TooManyUnreadable",
    "UnreadableImage",
    "build_dataset",
    "decode_image",
    "normalize_images",
    "pack",
    "read_image",
]
