"""Prediction of images of any size at once, in fp32: what tiles are compared with, and no engine of its own."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.engines.base import Batch, Planes
from models.engines.torch import laid_out, predict, tensors
from models.serve import EAGER, Serve, serve_network, served


class Predictor:
    """A bundle's network over images whose sides are multiples of its stride."""

    def __init__(self, serve: Serve) -> None:
        """`serve` is in fp32."""
        self.serve = serve

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, P, H, W)."""
        return predict(self.serve, batch)

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """(N, K, H / cell, W / cell)."""
        with torch.inference_mode():
            return np.asarray(self.serve.logits(*tensors(batch)).numpy())


def predictor(bundle: Bundle, threads: int) -> Predictor:
    """The bundle's network as eager PyTorch runs it, or, if it is imported, ONNX Runtime; on `threads` threads.

    Raises:
        EngineError: an imported graph that ONNX Runtime does not take.
    """
    torch.set_num_threads(threads)
    if bundle.spec.imported is None:
        return Predictor(laid_out(served(bundle, EAGER), "fp32"))
    from models.imported import load_imported

    return Predictor(serve_network(load_imported(bundle, threads=threads), bundle.spec))
