"""How an image becomes the encoder's input: a part of the model card, as data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nsfw_spark.sections import Section

_Triple = tuple[float, float, float]


class Preprocessing(Section):
    """How an image becomes the encoder's input, as the model's authors do it."""

    size: Annotated[int, Field(ge=1, le=4096)]
    """S: width and height of what the encoder gets, pixels."""
    resize_to: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Pixels of the shorter side (`crop`) or both sides (`squash`) before the centre crop; default `size`."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """`crop`: keep the aspect ratio, lose the margins. `squash`: keep all, lose the aspect ratio.

    `pad`: keep both, with black below or to the right.
    """
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resizer: Literal["simd", "pillow", "sampled"] = "simd"
    """`pillow`: slower, for models whose score moves with the last bit of a pixel.

    `sampled`: between the four nearest pixels, all others are skipped, as OpenCV does it. For `pad`.
    """
    jpeg_draft: Annotated[float, Field(ge=1)] | None = None
    """Decode a large JPEG at 1/2, 1/4 or 1/8 of its size if at least this many times `resized` is left.

    2 makes large photographs cheaper, and moves their embeddings a little, hard textures more: see
    docs/design.md. Null decodes all.
    """
    jpeg_reencode: bool = False
    """Pass the resized image through JPEG once more, as open_nsfw's authors do."""
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: Literal[1, 255] = 255
    """Pixels are divided by this before mean and std apply."""
    mean: _Triple
    std: _Triple

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resized < self.size:
            raise ValueError(f"resize_to is {self.resize_to}; expected at least size, {self.size}")
        return self

    @model_validator(mode="after")
    def _pad_is_sampled(self) -> Self:
        if (self.fit == "pad") != (self.resizer == "sampled"):
            raise ValueError(f"got fit {self.fit} and resizer {self.resizer}; pad and sampled go together")
        if self.resizer == "sampled" and (self.interpolation != "bilinear" or self.resized != self.size):
            raise ValueError("resizer sampled needs `interpolation: bilinear`, and no resize_to")
        return self

    @property
    def resized(self) -> int:
        """Pixels of the shorter side (`crop`) or both sides (`squash`) before the centre crop."""
        return self.resize_to or self.size
