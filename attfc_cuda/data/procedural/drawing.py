"""Draws one cartoon face: analytic shapes with soft edges, evaluated in coordinates that the pose has already warped.

A face is two sets of numbers (`face_traits`). The identity's traits fix geometry and texture; the shot's factors are
what changes from photograph to photograph: pose, light, expression, what hides the face, background, focus. Everything
is drawn by evaluating shapes on a grid of face coordinates, so a pose costs nothing but other coordinates, and a blur
nothing but softer edges: no image is ever warped or filtered.

The same numbers give the same bytes on every machine: per pixel only + - * / sqrt, min, max and floor are used, which
IEEE 754 defines to the last bit; angles enter as the tangent of the half angle, so that no sin, cos, exp or sum over
pixels (whose last bit depends on the library) is needed.

Face coordinates: x to the right, y down, the head about 0.62 wide to each side and 0.8 high above and below the origin;
the image spans -1 to 1 in both before zoom. Colours are RGB in 0 to 1.
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from types import SimpleNamespace

import numpy as np

from attfc_cuda.data.procedural.traits import Color, hair_color, iris_color, mix, shade, skin_color


def _soft(distance: np.ndarray) -> np.ndarray:
    """Coverage from the distance inside the edge, in edge widths: 0 half a width outside, 1 half a width inside."""
    distance += 0.5
    return np.clip(distance, 0.0, 1.0, out=distance)


def _ellipse(x: np.ndarray, y: np.ndarray, radius_x: float, radius_y: float, edge: float) -> np.ndarray:
    radius = np.sqrt((x * (1 / radius_x)) ** 2 + (y * (1 / radius_y)) ** 2)
    return _soft((1.0 - radius) * (min(radius_x, radius_y) / edge))


def _stroke(across: np.ndarray, along: np.ndarray, half_length: float, thickness: float, edge: float) -> np.ndarray:
    """A line that tapers to its ends: `across` is the distance from its middle, `along` the way from its centre."""
    taper = 1.0 - (along * (1 / half_length)) ** 2
    return _soft((thickness * taper - np.abs(across)) * (1 / edge))


def _wave(phase: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 between -1 and 1."""
    return np.abs(phase - np.floor(phase) - 0.5) * 4.0 - 1.0


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = ((2.0 * np.arange(size) + 1.0) / size - 1.0).astype(np.float32)
    across, down = np.broadcast_to(line, (size, size)).copy(), np.broadcast_to(line[:, None], (size, size)).copy()
    across.flags.writeable = down.flags.writeable = False
    return across, down


class _Patch:
    """A part of the picture: where it is, its pixels [3,h,w] (a view) and the face coordinates x, y [h,w] of each."""

    def __init__(self, pixels: np.ndarray, camera: _Camera, where: tuple[slice, slice]):
        self.where, self.pixels, self.x, self.y = where, pixels[(slice(None), *where)], camera.x[where], camera.y[where]

    def paint(self, coverage: np.ndarray, color: Color) -> None:
        layer = np.array(color, dtype=np.float32)[:, None, None] - self.pixels
        layer *= coverage
        self.pixels += layer


class _Camera:
    """The shot's geometry: image plane -> head plane (u, v) -> face coordinates (x, y), and back for rectangles."""

    def __init__(self, shot: SimpleNamespace, size: int):
        self.shot, self.size = shot, size
        half = shot.roll
        self.cos, self.sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
        across, down = _grid(size)
        across, down = (across - shot.shift_x) * (1 / shot.zoom), (down - shot.shift_y) * (1 / shot.zoom)
        self.u, self.v = self.cos * across + self.sin * down, self.cos * down - self.sin * across
        depth = np.maximum(1.0 - self.u * self.u - 0.7 * (self.v * self.v), 0.0)
        self.x, self.y = self.u - shot.yaw * depth, self.v - shot.pitch * depth
        # One pixel, and what the focus adds, in face coordinates: the width of every edge.
        self.edge = 2.0 / (size * shot.zoom) + max(shot.blur, 0.0)

    def window(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """The pixels that can show any of this rectangle of face coordinates (its edge width included)."""
        # Half as wide again as an edge: strokes taper to their ends, and what is soft shows beyond them.
        shot, columns, rows, edge = self.shot, [], [], 1.5 * self.edge
        for x in (left - edge, right + edge):
            for y in (top - edge, bottom + edge):
                # The depth of the head at the point is found where the point lands: a few rounds bring it close enough.
                u, v = x, y
                for _ in range(5):
                    depth = max(1 - u * u - 0.7 * v * v, 0.0)
                    u, v = x + shot.yaw * depth, y + shot.pitch * depth
                columns.append(shot.zoom * (self.cos * u - self.sin * v) + shot.shift_x)
                rows.append(shot.zoom * (self.sin * u + self.cos * v) + shot.shift_y)
        # The rectangle's sides bulge between its corners, the more the head is turned.
        slack = max(0.09, 0.4 * (abs(shot.yaw) + abs(shot.pitch)))
        return self._pixels(min(rows) - slack, max(rows) + slack), self._pixels(
            min(columns) - slack, max(columns) + slack
        )

    def _pixels(self, low: float, high: float) -> slice:
        scale = self.size / 2
        return slice(max(int((low + 1) * scale), 0), min(max(int((high + 1) * scale) + 1, 0), self.size))


class _Artist:
    """Paints one face; the methods are the layers, in the order in which `draw` calls them, back to front."""

    def __init__(self, face: SimpleNamespace, shot: SimpleNamespace, size: int):
        self.face, self.shot, self.size, self.camera = face, shot, size, _Camera(shot, size)
        self.pixels = np.empty((3, size, size), np.float32)
        self.all = _Patch(self.pixels, self.camera, (slice(None), slice(None)))
        self.edge = self.camera.edge
        self.skin, self.hair = skin_color(face), hair_color(face)
        self.shadow = shade(self.skin, 0.55)
        self.nose_x, self.nose_y = 0.45 * shot.yaw, face.eye_y + face.nose_length + 0.3 * shot.pitch
        self.mouth_y = face.eye_y + face.nose_length + face.mouth_drop
        self.head = self._outline(0.0)

    def patch(self, left: float, top: float, right: float, bottom: float) -> _Patch:
        return _Patch(self.pixels, self.camera, self.camera.window(left, top, right, bottom))

    def _outline(self, grow: float) -> np.ndarray:
        """Coverage of the head's silhouette, grown on all sides; it follows the head plane, which yaw leaves alone."""
        face, u, v = self.face, self.camera.u, self.camera.v
        y = np.where(v < 0, v * (1 / (face.head_top + grow)), v * (1 / (face.chin + grow)))
        yy = y * y
        narrowing = 1.0 - face.jaw_taper * np.where(v < 0, 0.0, np.minimum(yy, 1.0))
        xx = (u * (1 / (face.head_width + grow)) / narrowing) ** 2
        round_part, square_part = np.sqrt(xx + yy), np.sqrt(np.sqrt(xx * xx + yy * yy))
        radius = round_part + (square_part - round_part) * face.squareness
        return _soft((1.0 - radius) * (face.head_width / self.edge))

    def background(self) -> None:
        shot, (across, down) = self.shot, _grid(self.size)
        ramp = shot.fade_x * across + shot.fade_y * down
        blob = _ellipse(across - shot.blob_x, down - shot.blob_y, shot.blob_size, shot.blob_size, 0.3) * shot.blob_light
        for channel, base, fade in zip(
            self.pixels,
            (shot.back_r, shot.back_g, shot.back_b),
            (shot.fade_r, shot.fade_g, shot.fade_b),
            strict=True,
        ):
            np.multiply(ramp, fade, out=channel)
            channel += blob
            channel += base

    def behind_the_head(self) -> np.ndarray:
        """Long hair, shoulders, neck, ears; returns the coverage of all of them (what the light falls on)."""
        face, shot, camera, edge = self.face, self.shot, self.camera, self.edge
        u, v, body = camera.u, camera.v, self.head
        if face.hair_style > 0.15:
            width = face.head_width + face.hair_volume
            fall = _soft((width - np.abs(u - 0.03 * _wave(v * 1.5) * (v > 0))) * (1 / edge))
            fall *= _soft((face.hair_length - v) * (1 / (edge + 0.05)))
            fall = np.where(v < 0, self._outline(face.hair_volume), fall)
            self.all.paint(fall, shade(self.hair, 0.75))
            body = np.maximum(body, fall)
        neck_width = 0.55 * face.head_width
        shirt = _ellipse(u, v - 1.55, 1.05, 0.62, edge)
        neck = _soft((neck_width - np.abs(u)) * (1 / edge)) * _soft((v - 0.3) * (1 / edge))
        self.all.paint(shirt, (shot.shirt_r, shot.shirt_g, shot.shirt_b))
        neck *= _soft((face.chin + 0.32 - v) * (1 / edge))
        self.all.paint(neck, shade(self.skin, 0.75))
        ear_x = face.head_width - 0.02 + face.ear_out
        away = np.abs(u + 0.15 * shot.yaw) - ear_x
        ears = _ellipse(away, v - face.ear_y - 0.6 * shot.pitch, 0.55 * face.ear_size, face.ear_size, edge)
        self.all.paint(ears, shade(self.skin, 0.85))
        body = np.maximum(body, shirt)
        return np.maximum(np.maximum(body, neck), ears)

    def complexion(self) -> None:
        """The skin and its marks: freckles, blush, moles, lines."""
        face, edge = self.face, self.edge
        self.all.paint(self.head, self.skin)
        cheeks = self.patch(-0.69, face.eye_y - 0.08, 0.69, self.mouth_y + 0.12)
        aside, below = np.abs(cheeks.x), cheeks.y
        if face.blush > 0:
            round_cheeks = _ellipse(aside - 0.34, below - face.eye_y - 0.26, 0.17, 0.13, 0.12)
            cheeks.paint(round_cheeks * face.blush, (0.85, 0.30, 0.28))
        if face.freckles > 0:
            dots = _wave(cheeks.x * face.texture_a + 0.3 * below) * _wave(below * face.texture_b - 0.4 * cheeks.x)
            where = _ellipse(cheeks.x, below - face.eye_y - 0.22, 0.48, 0.18, 0.15)
            cheeks.paint(_soft((dots - 0.55) * 4.0) * where * (face.freckles + 0.3), (0.45, 0.22, 0.12))
        if face.smile_folds > 0:
            fold = (aside - 0.10 - 0.35 * (below - self.nose_y)) * 1.2
            cheeks.paint(_stroke(fold, below - self.mouth_y + 0.09, 0.14, 0.018, edge) * face.smile_folds, self.shadow)
        if face.forehead_lines > 0:
            brow = self.patch(-0.45, -0.55, 0.45, -0.17)
            line = np.abs(_wave((brow.y + 0.12 * brow.x * brow.x) * 5.0)) - 0.15
            lines = _soft(line * (-0.05 / edge)) * _ellipse(brow.x, brow.y + 0.36, 0.32, 0.13, 0.1)
            brow.paint(lines * face.forehead_lines, self.shadow)
        for x, y, radius in (
            (face.mole_a_x, face.mole_a_y, face.mole_a),
            (face.mole_b_x, face.mole_b_y, face.mole_b),
        ):
            if radius > 0.008:
                spot = self.patch(x - radius, y - radius, x + radius, y + radius)
                spot.paint(_ellipse(spot.x - x, spot.y - y, radius, radius, edge), (0.20, 0.10, 0.08))

    def beard(self) -> None:
        face, edge = self.face, self.edge
        if face.beard > 0:
            low = self.patch(-0.75, self.mouth_y - 0.60, 0.75, 1.0)
            line = self.mouth_y - 0.05 + face.beard_line - 0.9 * low.x * low.x
            stubble = _soft((low.y - line) * (1 / (edge + 0.06))) * self.head[low.where]
            low.paint(stubble * (0.25 + 0.75 * face.beard), self.hair)
        if face.moustache > 0:
            lip_top = (self.nose_y + self.mouth_y) / 2
            lip = self.patch(-0.32, lip_top - 0.12, 0.32, lip_top + 0.20)
            bend = lip.y - lip_top - 0.02 - 0.9 * lip.x * lip.x
            hairs = _stroke(bend, lip.x, 0.8 * face.mouth_width + 0.05, 0.035 + 0.02 * face.moustache, edge)
            lip.paint(hairs * (0.3 + 0.7 * face.moustache), self.hair)

    def eyes(self) -> None:
        face, shot, edge = self.face, self.shot, self.edge
        reach = face.eye_x + 1.8 * face.eye_width
        patch = self.patch(-reach, face.eye_y - 0.25, reach, face.eye_y + 0.23)
        side = np.copysign(np.float32(1), patch.x)
        x = np.abs(patch.x) - face.eye_x
        y = patch.y - face.eye_y + face.eye_tilt * x
        opening = face.eye_open * (0.12 if shot.blink < 0.07 else shot.lids)
        arc = 1.0 - (x * (1 / face.eye_width)) ** 2
        upper, lower = y + opening * arc, 0.7 * opening * arc - y
        socket = _ellipse(x, y + 0.02, 1.3 * face.eye_width, 0.11, 0.06)
        patch.paint(socket * 0.22, self.shadow)
        if face.bags > 0:
            patch.paint(_stroke(lower + 0.035, x, face.eye_width, 0.02, edge) * face.bags, self.shadow)
        ball = _soft(np.minimum(upper, lower) * (1 / edge))
        patch.paint(ball, (0.96, 0.95, 0.93))
        at_x, at_y = x - side * shot.gaze_x, y - shot.gaze_y
        patch.paint(_ellipse(at_x, at_y, face.iris, face.iris, edge) * ball, iris_color(face))
        patch.paint(_ellipse(at_x, at_y, 0.48 * face.iris, 0.48 * face.iris, edge) * ball, (0.03, 0.03, 0.04))
        glint = _ellipse(at_x - side * 0.012, at_y + 0.014, 0.011, 0.011, edge)
        patch.paint(glint * ball, (1.0, 1.0, 1.0))
        patch.paint(_stroke(upper, x, 1.12 * face.eye_width, 0.016, edge), (0.12, 0.08, 0.07))

    def brows(self) -> None:
        face, shot, edge = self.face, self.shot, self.edge
        reach = face.eye_x + face.brow_length + 0.03
        height = face.eye_y - face.brow_gap - shot.brow_raise
        patch = self.patch(-reach, height - 0.13, reach, height + 0.15)
        x = np.abs(patch.x) - face.eye_x
        y = patch.y - height + face.brow_tilt * x + face.brow_arch * (1.0 - (x * (1 / face.brow_length)) ** 2) - 0.02
        color = mix(self.skin, shade(self.hair, 0.6), face.brow_darkness)
        patch.paint(_stroke(y, x, face.brow_length, face.brow_thickness, edge), color)

    def nose(self) -> None:
        face, shot, edge = self.face, self.shot, self.edge
        reach = face.nose_width + 0.10
        left, right = min(self.nose_x, 0.0) - reach, max(self.nose_x, 0.0) + reach
        patch = self.patch(left, face.eye_y - 0.05, right, self.nose_y + 0.12)
        # The bridge leans from between the eyes to the tip, which the pose has moved further than the skin around it.
        down = np.clip((patch.y - face.eye_y) * (1 / (self.nose_y - face.eye_y)), 0.0, 1.0)
        x = patch.x - self.nose_x * down
        width = face.bridge + (face.nose_width - face.bridge) * down * down
        length = _soft((self.nose_y - patch.y) * (1 / edge)) * _soft((patch.y - face.eye_y) * (1 / 0.1))
        ridge = _soft((width - np.abs(x)) * (1 / (edge + 0.02))) * length
        patch.paint(ridge * 0.25, shade(self.skin, 1.15))
        away = x + width + 0.02 if shot.light_x > 0 else x - width - 0.02
        patch.paint(_stroke(away, x, 0.3, 0.02, edge) * length * 0.5, self.shadow)
        x, y = patch.x - self.nose_x, patch.y - self.nose_y
        tip = _ellipse(x, y, 0.8 * face.nose_width, face.nose_tip, edge + 0.03)
        patch.paint(tip * 0.35, shade(self.skin, 1.12))
        under = y - 0.75 * face.nose_tip + 2.2 * x * x
        patch.paint(_stroke(under, x, face.nose_width + 0.02, 0.018, edge) * 0.7, self.shadow)
        nostrils = _ellipse(np.abs(x) - 0.55 * face.nose_width, y - 0.6 * face.nose_tip, 0.022, 0.014, edge)
        patch.paint(nostrils, (0.15, 0.07, 0.06))

    def mouth(self) -> None:
        face, shot, edge = self.face, self.shot, self.edge
        width = face.mouth_width * (1.0 + 1.5 * shot.smile)
        patch = self.patch(-width - 0.06, self.mouth_y - 0.2, width + 0.06, self.mouth_y + 0.28)
        x = (patch.x - shot.mouth_shift - 0.1 * shot.yaw) * (1 / width)
        y = patch.y - self.mouth_y + shot.smile * (x * x - 0.3)
        arc = np.maximum(1.0 - x * x, 0.0)
        gap = max(shot.open_mouth, 0.0)
        bow = 1.0 - face.cupid_bow * np.maximum(1.0 - np.abs(x) * 4.0, 0.0)
        inside = np.abs(x) < 1
        lips = np.minimum(y + face.upper_lip * arc * bow, (face.lower_lip + gap) * arc - y)
        red = mix(shade(self.skin, 0.85), (0.72, 0.20, 0.22), 0.35 + face.lip_red)
        patch.paint(_soft(lips * (1 / edge)) * inside, red)
        if gap > 0.02:
            hole = np.minimum(y, gap * arc - y)
            dark = _soft(hole * (1 / edge)) * inside
            patch.paint(dark, (0.25, 0.05, 0.06))
            if shot.teeth > 0.4:
                patch.paint(dark * _soft((0.4 * gap - y) * (1 / edge)), (0.95, 0.94, 0.90))
        patch.paint(_stroke(y, x, 1.0, 0.010, edge) * inside, (0.30, 0.10, 0.10))

    def hair_in_front(self) -> np.ndarray:
        """The crown and the hairline; returns its coverage. A tenth of the identities are bald."""
        face, camera, edge = self.face, self.camera, self.edge
        if face.hair_style < 0.10:
            return np.zeros_like(self.head)
        x, y = camera.x, camera.y
        line = face.hairline + face.hair_arch * (x - face.hair_part) ** 2
        if face.hair_style > 0.5:
            line = line + face.hair_zigzag * _wave(x * face.hair_waves)
        over_the_face = np.abs(x) < 0.8 * face.head_width
        line = np.minimum(line, face.ear_y)
        line = np.where(over_the_face, np.minimum(line, face.eye_y - 0.06), line)
        crown = self._outline(face.hair_volume) * _soft((line - y) * (1 / edge))
        strands = _wave(camera.u * 9.0 + 2.0 * camera.v) * 0.06 + 0.97
        layer = np.array(self.hair, dtype=np.float32)[:, None, None] * strands - self.pixels
        self.pixels += layer * crown
        return crown

    def light(self, lit: np.ndarray) -> None:
        shot, camera = self.shot, self.camera
        normal_x, normal_y = camera.u * (1 / 0.85), camera.v * (1 / 1.05)
        normal_z = np.sqrt(np.maximum(1.0 - normal_x * normal_x - normal_y * normal_y, 0.04))
        toward = sqrt(max(1.0 - shot.light_x * shot.light_x - shot.light_y * shot.light_y, 0.05))
        shade = np.maximum(shot.light_x * normal_x + shot.light_y * normal_y + toward * normal_z, 0.0)
        shade *= shot.diffuse
        shade += shot.ambient
        for channel, cast in zip(self.pixels, (1 + shot.warmth, 1 + shot.tint, 1 - shot.warmth), strict=True):
            channel *= (shade * cast - 1.0) * lit + 1.0

    def cover(self, body: np.ndarray) -> np.ndarray:
        """What hides a part of the face in two shots of five: glasses, dark glasses, a mask, a cap, a bar.

        Returns `body`, what the light falls on, with a cap added or without the part behind a bar.
        """
        face, shot, edge = self.face, self.shot, self.edge
        color = (shot.cover_r, shot.cover_g, shot.cover_b)
        kind = int(shot.cover * 20)
        if kind in (0, 1, 2):
            glass_y = face.eye_y + 0.15 * shot.pitch
            patch = self.patch(-0.75, glass_y - 0.22, 0.75, glass_y + 0.25)
            x = np.abs(patch.x - 0.12 * shot.yaw) - face.eye_x
            y = patch.y - glass_y
            lens = _ellipse(x, y, 0.16, 0.125, edge)
            if kind == 0:
                patch.paint(lens, (0.06, 0.06, 0.08))
            rim = _ellipse(x, y, 0.178, 0.143, edge) - lens
            bridge = _stroke(y + 0.03, x + face.eye_x, max(face.eye_x - 0.14, 0.03), 0.02, edge)
            patch.paint(np.maximum(rim, bridge), tuple(0.5 * c for c in color))
        elif kind in (3, 4):
            mask = _soft((self.all.y - self.nose_y + 0.08 - 0.25 * self.all.x**2) * (1 / edge)) * self.head
            self.all.paint(mask * (0.92 + 0.08 * _wave(self.all.y * 6.0)), color)
        elif kind in (5, 6):
            brim = face.hairline + 0.10 + 0.2 * self.all.x * self.all.x
            cap = _soft((brim - self.all.y) * (1 / edge)) * self._outline(face.hair_volume + 0.05)
            self.all.paint(cap, color)
            return np.maximum(body, cap)
        elif kind == 7:
            across, down = _grid(self.size)
            bar = down - shot.cover_at - 0.6 * (shot.cover_r - 0.5) * across
            bar = _soft((0.13 - np.abs(bar)) * (1 / edge))
            self.all.paint(bar, color)
            return body * (1.0 - bar)
        return body

    def draw(self, noise: np.ndarray) -> np.ndarray:
        shot = self.shot
        self.background()
        body = self.behind_the_head()
        for layer in (self.complexion, self.beard, self.mouth, self.nose, self.eyes, self.brows):
            layer()
        body = np.maximum(body, self.hair_in_front())
        self.light(self.cover(body))
        pixels = self.pixels
        if shot.gray < 0.08:
            pixels[:] = 0.3 * pixels[0] + 0.6 * pixels[1] + 0.1 * pixels[2]
        pixels *= 255.0 * shot.gain
        pixels += 255.0 * shot.lift
        pixels += noise * (255.0 * shot.noise)
        np.clip(pixels, 0.0, 255.0, out=pixels)
        pixels += 0.5
        return pixels.astype(np.uint8)


def draw_face(face: SimpleNamespace, shot: SimpleNamespace, size: int, noise: np.ndarray) -> np.ndarray:
    """One picture, uint8 [3,size,size].

    face, shot: attributes named as in `face_traits.IDENTITY_TRAITS` and `SHOT_FACTORS`. noise [3,size,size] float32 of
    unit variance; the shot's noise factor scales it. Pure: the same arguments give the same bytes on every machine.
    """
    return _Artist(face, shot, size).draw(noise)
