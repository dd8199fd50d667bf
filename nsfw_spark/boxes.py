"""What a detector found: boxes → the best score of each class.

In: what a YOLO network says of every place where a box could be. Out: one number for each class, 0 where
nothing of it was found. What is indecent of it the model card says.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_LEAST_CANDIDATE: Final = 0.2
_LEAST_SCORE: Final = 0.25
_MOST_OVERLAP: Final = 0.45
"""Area of the intersection by that of the union: of two boxes with more, the better one stays."""


def best_boxes(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the score of the best box of each class.

    As its authors do it, a place counts for its best class only, and of boxes that overlap the best stays,
    whatever their classes. They cut boxes at the image's margin first and we do not, for the margin is not
    known here; it tells only for boxes that reach into the padding.

    Args:
        boxes: float32, shape (N, 4 + C, A), as in `Encoded.boxes`.

    Returns:
        float32, shape (N, C), each 0 or above 0.25; NaN for an image whose boxes are not all finite.

    Source:
        `_postprocess` of nudenet 3.4.2.
    """
    return np.stack([_best_of_image(image) for image in boxes])


def _best_of_image(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    best = np.zeros(len(boxes) - 4, np.float32)  # (C,)
    if not np.isfinite(boxes).all():
        return np.full_like(best, np.nan)  # nothing found would count as safe
    import cv2

    scores, classes = boxes[4:].max(axis=0), boxes[4:].argmax(axis=0)  # (A,)
    candidates = np.flatnonzero(scores >= _LEAST_CANDIDATE)
    centre, extent = boxes[:2, candidates].T, boxes[2:4, candidates].T
    corners = np.concatenate([centre - extent / 2, extent], axis=1).tolist()  # left, top, width, height
    kept = cv2.dnn.NMSBoxes(corners, scores[candidates].tolist(), _LEAST_SCORE, _MOST_OVERLAP)
    found = candidates[np.asarray(kept, np.intp)]
    np.maximum.at(best, classes[found], scores[found])
    return best
