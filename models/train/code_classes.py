"""Classes of interchangeable codes, and the cross-entropy of the next token's class."""

import math

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

CLASS_DIMS = 16  # eigenvectors kept for clustering


def code_classes(codes: np.ndarray, vocab_size: int, count: int, rng: np.random.Generator) -> Tensor:
    """Return the class of every code, int64 [V]: spectral clustering (Ng, Jordan & Weiss 2001) of code co-occurrence.

    Two codes are similar if they often have the same neighbours in a row or a column. Codes of one class are
    interchangeable: patches of one kind of background, or of one colour of objects.

    Args:
        codes: training images, int [N, T].
        vocab_size: V.
        count: number of classes.
        rng: initialises k-means.
    """
    grid = math.isqrt(codes.shape[1])
    cells = codes.reshape(-1, grid, grid).astype(np.int64)
    pairs = [(cells[:, :, :-1], cells[:, :, 1:]), (cells[:, :-1], cells[:, 1:])]
    one, other = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    adjacency = coo_matrix((np.ones(len(one)), (one, other)), (vocab_size, vocab_size)).tocsr()
    adjacency = adjacency + adjacency.T
    scale = diags((np.asarray(adjacency.sum(1)).ravel() + 1.0) ** -0.5)
    values, vectors = eigsh(
        scale @ adjacency @ scale, k=min(CLASS_DIMS, vocab_size - 1), which="LA", v0=np.ones(vocab_size)
    )
    points = vectors * values  # weighted by eigenvalue: directions due to noise become small
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    _, classes = kmeans2(points, count, minit="++", rng=rng)
    return torch.from_numpy(classes.astype(np.int64))


class CodeClasses(nn.Module):
    """Cross-entropy of the next token's class.

    Args:
        of_code: class of every code, int64 [V], see `code_classes`.
    """

    of_code: Tensor

    def __init__(self, of_code: Tensor) -> None:
        super().__init__()
        self.register_buffer("of_code", of_code)

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return the negative log-probability of the class of tokens int [B, T] under logits [B, T, V], float32 [B, T]."""
        other = self.of_code != self.of_code[tokens].unsqueeze(-1)  # [B, T, V]
        return logits.logsumexp(-1) - logits.masked_fill(other, float("-inf")).logsumexp(-1)
