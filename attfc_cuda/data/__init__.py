"""Face images by identity: data sets, and the attention loader that makes training batches of them."""

from attfc_cuda.data.attention_loader import AttentionLoader, Batch
from attfc_cuda.data.augment import normalize_images
from attfc_cuda.data.build import build_dataset
from attfc_cuda.data.concat import ConcatFaces
from attfc_cuda.data.faces import FaceDataset, UnreadableImage
from attfc_cuda.data.folders import FolderFaces
from attfc_cuda.data.images import decode_image, read_image
from attfc_cuda.data.lists import ListFaces
from attfc_cuda.data.lmdb_faces import LmdbFaces
from attfc_cuda.data.procedural import ProceduralFaces
from attfc_cuda.data.record_faces import RecordFaces
from attfc_cuda.data.record_writer import pack
from attfc_cuda.data.stored import StoredFaces
from attfc_cuda.data.tar_faces import TarFaces

__all__ = [
    "AttentionLoader",
    "Batch",
    "ConcatFaces",
    "FaceDataset",
    "FolderFaces",
    "ListFaces",
    "LmdbFaces",
    "ProceduralFaces",
    "RecordFaces",
    "StoredFaces",
    "TarFaces",
    "UnreadableImage",
    "build_dataset",
    "decode_image",
    "normalize_images",
    "pack",
    "read_image",
]
