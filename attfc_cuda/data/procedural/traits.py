"""What a drawn face is made of: the ranges of its numbers, and the colours that they stand for."""

from __future__ import annotations

from types import SimpleNamespace

# name -> (lowest, highest), uniform between the two. The order is that of the random draws: another order, other faces.
IDENTITY_TRAITS: dict[str, tuple[float, float]] = {
    # geometry
    "head_width": (0.50, 0.68), "head_top": (0.70, 0.86), "chin": (0.68, 0.90), "jaw_taper": (0.0, 0.42),
    "squareness": (0.0, 0.85), "ear_size": (0.07, 0.16), "ear_y": (-0.08, 0.14), "ear_out": (-0.05, 0.03),
    "eye_x": (0.19, 0.32), "eye_y": (-0.17, 0.01), "eye_width": (0.085, 0.15), "eye_open": (0.035, 0.085),
    "eye_tilt": (-0.25, 0.25), "iris": (0.036, 0.058),
    "brow_gap": (0.09, 0.20), "brow_length": (0.09, 0.18), "brow_thickness": (0.012, 0.045), "brow_tilt": (-0.30, 0.30),
    "brow_arch": (0.0, 0.05), "brow_darkness": (0.3, 1.0),
    "nose_length": (0.20, 0.36), "nose_width": (0.055, 0.13), "nose_tip": (0.03, 0.07), "bridge": (0.015, 0.05),
    "mouth_drop": (0.14, 0.26), "mouth_width": (0.13, 0.28), "upper_lip": (0.015, 0.05), "lower_lip": (0.02, 0.075),
    "cupid_bow": (0.0, 0.5),
    # hair
    "hair_style": (0.0, 1.0), "hairline": (-0.62, -0.34), "hair_arch": (0.1, 1.1), "hair_part": (-0.22, 0.22),
    "hair_zigzag": (-0.08, 0.08), "hair_waves": (2.0, 7.0), "hair_volume": (0.03, 0.20), "hair_length": (-0.5, 1.3),
    "hair_light": (0.0, 1.0), "hair_red": (-0.6, 1.0), "hair_gray": (-1.0, 1.0),
    "beard": (-1.2, 0.9), "beard_line": (0.0, 0.16), "moustache": (-1.2, 0.9),
    # texture
    "skin": (0.0, 1.0), "skin_red": (-0.06, 0.07), "skin_yellow": (-0.05, 0.05), "lip_red": (0.0, 0.35),
    "eye_hue": (0.0, 1.0), "blush": (-0.2, 0.35), "freckles": (-0.6, 0.5), "bags": (-0.2, 0.5),
    "forehead_lines": (-0.5, 0.4), "smile_folds": (-0.3, 0.45),
    "mole_a_x": (-0.45, 0.45), "mole_a_y": (-0.35, 0.55), "mole_a": (-0.02, 0.032),
    "mole_b_x": (-0.45, 0.45), "mole_b_y": (-0.35, 0.55), "mole_b": (-0.03, 0.028),
    "texture_a": (4.0, 11.0), "texture_b": (4.0, 11.0),
}  # fmt: skip

SHOT_FACTORS: dict[str, tuple[float, float]] = {
    # pose: yaw and pitch as the sideways shift of the nearest point of the head, roll as tan(angle / 2)
    "yaw": (-0.22, 0.22), "pitch": (-0.11, 0.11), "roll": (-0.08, 0.08), "zoom": (1.00, 1.16),
    "shift_x": (-0.05, 0.05), "shift_y": (-0.05, 0.05),
    # light
    "light_x": (-0.85, 0.85), "light_y": (-0.65, 0.35), "ambient": (0.32, 0.65), "diffuse": (0.35, 0.75),
    "warmth": (-0.16, 0.16), "tint": (-0.08, 0.08), "gain": (0.70, 1.12), "lift": (-0.06, 0.12), "gray": (0.0, 1.0),
    # expression
    "smile": (-0.05, 0.11), "open_mouth": (-0.09, 0.11), "teeth": (0.0, 1.0), "brow_raise": (-0.03, 0.05),
    "lids": (0.55, 1.30), "blink": (0.0, 1.0), "gaze_x": (-0.035, 0.035), "gaze_y": (-0.015, 0.02),
    "mouth_shift": (-0.03, 0.03),
    # what hides the face
    "cover": (0.0, 1.0), "cover_r": (0.0, 1.0), "cover_g": (0.0, 1.0), "cover_b": (0.0, 1.0), "cover_at": (-0.9, 0.7),
    # surroundings and camera
    "back_r": (0.2, 0.8), "back_g": (0.2, 0.8), "back_b": (0.2, 0.8), "fade_r": (-0.3, 0.3), "fade_g": (-0.3, 0.3),
    "fade_b": (-0.3, 0.3), "fade_x": (-0.7, 0.7), "fade_y": (-0.7, 0.7), "blob_x": (-1.0, 1.0), "blob_y": (-1.0, 1.0),
    "blob_size": (0.2, 0.9), "blob_light": (-0.3, 0.3), "shirt_r": (0.0, 1.0), "shirt_g": (0.0, 1.0),
    "shirt_b": (0.0, 1.0), "blur": (-0.05, 0.07), "noise": (0.0, 0.04),
}  # fmt: skip

Color = tuple[float, float, float]


def shade(color: Color, factor: float) -> Color:
    """The colour, darker (factor below 1) or lighter."""
    red, green, blue = (min(factor * part, 1.0) for part in color)
    return red, green, blue


def mix(a: Color, b: Color, share: float) -> Color:
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def skin_color(face: SimpleNamespace) -> Color:
    dark, light = (0.31, 0.19, 0.13), (0.97, 0.82, 0.72)
    r, g, b = mix(dark, light, face.skin)
    return r + face.skin_red, g, b - face.skin_yellow


def hair_color(face: SimpleNamespace) -> Color:
    color = mix((0.07, 0.05, 0.05), (0.88, 0.72, 0.42), face.hair_light * face.hair_light)
    color = mix(color, (0.60, 0.22, 0.08), 0.7 * max(face.hair_red, 0.0))
    return mix(color, (0.78, 0.78, 0.80), 1.4 * max(face.hair_gray - 0.5, 0.0))


def iris_color(face: SimpleNamespace) -> Color:
    stops = ((0.22, 0.12, 0.06), (0.42, 0.27, 0.10), (0.25, 0.45, 0.25), (0.25, 0.45, 0.75))
    at = face.eye_hue * 3
    return mix(stops[int(at)], stops[min(int(at) + 1, 3)], at - int(at))
