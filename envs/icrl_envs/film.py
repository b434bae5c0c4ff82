"""Frames, uint8 [T, H, W, 3], as files: an animated GIF, or a few of them side by side."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from icrl_envs.task_family import is_int, is_number, require

GAP = 4  # pixels between two pictures of a strip
PAPER = 255


def write_gif(path: str | PathLike, frames: Any, frames_per_second: float = 10) -> Path:
    """Writes an endless animation; frames that do not change are stored once, and shown as long.

    Args:
      path: of the file; its folder is made.
      frames: uint8 [T, H, W, 3].
      frames_per_second: above 0, at most 50; browsers slow down faster ones.
    Raises:
      ValueError: frames that are none, or a rate outside its range.
    """
    fits = is_number(frames_per_second, high=50) and frames_per_second > 0
    require(fits, "frames_per_second", frames_per_second, "a number above 0, at most 50")
    first, *rest = (Image.fromarray(frame).quantize() for frame in _checked(frames))
    path = _in_folder(path)
    duration = 10 * round(100 / frames_per_second)  # GIF counts hundredths of a second
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0, disposal=1)
    return path


def write_png(path: str | PathLike, image: Any) -> Path:
    """Writes one picture, uint8 [H, W, 3]."""
    path = _in_folder(path)
    Image.fromarray(_checked(np.asarray(image)[None])[0]).save(path, format="PNG")
    return path


def strip(frames: Any, count: int = 8) -> np.ndarray:
    """Puts up to `count` frames side by side, evenly spaced in time, the first and the last among them.

    Args:
      frames: uint8 [T, H, W, 3].
      count: at least 1.
    Returns:
      uint8 [H, count * (W + gap) - gap, 3]; of fewer frames than `count`, the rest is left white.
    """
    require(is_int(count, 1), "count", count, "an integer of at least 1")
    frames = _checked(frames)
    chosen = frames[evenly(len(frames), count)]
    image = np.full((frames.shape[1], count * (frames.shape[2] + GAP) - GAP, 3), PAPER, np.uint8)
    for i, frame in enumerate(chosen):
        left = i * (frames.shape[2] + GAP)
        image[:, left : left + frames.shape[2]] = frame
    return image


def stack(images: Any) -> np.ndarray:
    """Puts pictures of one size, uint8 [N, H, W, 3], below each other."""
    images = _checked(images)
    padded = np.pad(images, ((0, 0), (0, GAP), (0, 0), (0, 0)), constant_values=PAPER)
    return padded.reshape(-1, *images.shape[2:])[:-GAP]


def evenly(length: int, count: int) -> np.ndarray:
    """At most `count` different indices below `length`, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def _checked(frames: Any) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames: must be uint8 [T, H, W, 3] with T at least 1, not {frames.dtype} {frames.shape}")
    return frames


def _in_folder(path: str | PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
