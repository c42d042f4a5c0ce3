"""Cuts a face out by its five landmarks, as InsightFace's networks expect it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

# Eyes, nose and mouth corners (x, y) in an image of 112 x 112 pixels. Source: InsightFace's face_align.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, uniform scale and shift that bring points closest to others: least squares without reflection.

    Args:
        source: [P, 2] points.
        target: [P, 2], where they should be.

    Returns:
        float64 [2, 3].

    Source:
        Umeyama, "Least-squares estimation of transformation parameters", IEEE PAMI 13(4), 1991, equations 39 to 43.

    Raises:
        ValueError: for points that all coincide or are not finite.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("landmarks that are not finite")
    mean_source, mean_target = source.mean(axis=0), target.mean(axis=0)
    centred, aimed = source - mean_source, target - mean_target
    variance = (centred**2).sum() / len(source)
    if variance <= 1e-12:
        raise ValueError("landmarks that all coincide")
    left, values, right = np.linalg.svd(aimed.T @ centred / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    rotation = left @ np.diag(signs) @ right
    scale = (values * signs).sum() / variance
    return np.column_stack([scale * rotation, mean_target - scale * rotation @ mean_source])


def align_face(picture: Image.Image, landmarks: np.ndarray, image_size: int) -> torch.Tensor:
    """A picture with its landmarks brought to `TEMPLATE`, bilinear.

    Args:
        picture: RGB.
        landmarks: [5, 2], in pixels.
        image_size: side of the result, in pixels.

    Returns:
        uint8 [3, image_size, image_size]; what lies outside of the picture is black.
    """
    matrix = similarity_transform(landmarks, TEMPLATE * (image_size / 112))
    inverse = np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2]
    # Landmarks count pixels from their centres, Pillow from their corners: half a pixel on both sides.
    inverse[:, 2] += 0.5 - inverse[:, :2] @ [0.5, 0.5]
    size = (image_size, image_size)
    face = picture.transform(size, Image.Transform.AFFINE, inverse.reshape(-1).tolist(), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(face).transpose(2, 0, 1).copy())
