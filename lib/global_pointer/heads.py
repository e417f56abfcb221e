"""The two pointers as modules: from states to tables, or to loss and spans without tables."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib import _checks
from lib.global_pointer._arguments import Shape, check_mask, kind, upcast
from lib.global_pointer.decoding import Spans, factorised_spans, streaming_spans
from lib.global_pointer.factorised import factorised_zlpr_loss
from lib.global_pointer.rope import apply_rope
from lib.global_pointer.streaming import streaming_zlpr_loss

__all__ = ["EfficientGlobalPointer", "GlobalPointer", "PointerParts"]


class PointerParts(NamedTuple):
    """The three terms of an efficient pointer's score, before any masking.

    ``scores[b, a, i, j] = pair[b, i, j] + start[b, a, i] + end[b, a, j]``
    """

    pair: Tensor
    """``(B, L, L)``: does (i, j) belong together? Shared by all heads."""
    start: Tensor
    """``(B, H, L)``: does head a like to start at i?"""
    end: Tensor
    """``(B, H, L)``: does head a like to end at j?"""


class GlobalPointer(nn.Module):
    r"""Score every pair of positions with a query and a key of each head's own.

    .. math:: s_a(i, j) = \frac{(\mathcal R_i q_{a,i})^\top (\mathcal R_j k_{a,j})}{\sqrt d}
        + \beta_a, \qquad q_{a,i} = W_{q,a} h_i + b_{q,a},\quad k_{a,j} = W_{k,a} h_j + b_{k,a}

    with :math:`\mathcal R` the identity when `rope` is off and :math:`\beta = 0` without
    `bias_start`.

    Equations: :eq:`eq:gp-score`, :eq:`eq:gplinker-pointer`

    Parameters
    ----------
    hidden_size : int
        D, the size of an encoder state.
    heads : int
        H, the number of tables.
    head_size : int
        d, the size of a query and of a key; even when `rope` is on.
    causal : bool
        Keep the cells with i ≤ j only: spans. Links, which may run backwards, need False.
    rope : bool
        Rotate queries and keys (:func:`apply_rope`), so that the score knows how far apart and in
        which order two positions are.
    bias_start : float or None
        None: no β, the published form. A number: each head has a learnable β that starts there.
        The biases of queries and keys cannot do this: under RoPE their product is a cosine in
        j − i, not a constant. As hardly any cell of a table is positive, a start near −log of the
        number of cells spares the first epochs.

    Notes
    -----
    Parameters: :math:`H(2dD + 2d)`, plus H with `bias_start`. Source: Su et al., GlobalPointer
    (arXiv 2208.03054), with the :math:`1/\sqrt d` of the published code.

    Half precision: under autocast, or with half-precision weights, the projection runs in half
    precision; queries, keys, their products and the scores are float32. A score is compared
    with 0 after large terms have cancelled, where a bfloat16 sum of size 8 has steps of 1/16.

    Examples
    --------
    >>> pointer = GlobalPointer(8, heads=3, head_size=4)
    >>> pointer(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 3, 5, 5])
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        head_size: int = 64,
        *,
        causal: bool = True,
        rope: bool = True,
        bias_start: float | None = None,
    ) -> None:
        super().__init__()
        hidden_size, heads, head_size = _sizes(hidden_size, heads, head_size, rope)
        self.hidden_size, self.heads, self.head_size = hidden_size, heads, head_size
        self.causal, self.rope = causal, rope
        self.projection = nn.Linear(hidden_size, heads * 2 * head_size)
        self.bias = (
            None if bias_start is None else nn.Parameter(torch.full((heads,), float(bias_start)))
        )

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fill the tables.

        Parameters
        ----------
        hidden : Tensor
            Encoder states, ``(B, L, D)``, floating point.
        mask : Tensor or None
            ``(B, L)`` bool, True where a position counts. None: all count.

        Returns
        -------
        Tensor
            Scores ``(B, H, L, L)``; −inf on cells whose row or column is masked and, with
            `causal`, on cells with i > j. float32 for half-precision input, else the dtype of
            `hidden`.

        Raises
        ------
        TypeError
            If `hidden` is not floating point or `mask` not bool.
        ValueError
            If a shape disagrees.
        """
        _check_input(hidden, mask, self.hidden_size)
        query, key = self._queries_and_keys(hidden)
        with _checks.no_autocast(hidden):
            scores = torch.matmul(query, key.transpose(-2, -1))
            if self.bias is not None:
                scores = scores + upcast(self.bias)[:, None, None]
            return _hide(scores, mask, self.causal)

    def loss(
        self,
        hidden: Tensor,
        positives: Tensor,
        mask: Tensor | None = None,
        *,
        reduction: _checks.Reduction = "mean",
        validate: bool = True,
    ) -> Tensor:
        """ZLPR loss of the tables, which are not filled: :func:`streaming_zlpr_loss`.

        Parameters
        ----------
        hidden, mask : Tensor
            As in :meth:`forward`.
        positives : Tensor
            Cells (i, j) of each head, ``(B, H, K, 2)`` int64, filled up with (-1, -1).
        reduction : str
            Over batch and heads: "none", "mean" or "sum".
        validate : bool
            Whether to look at the values. False saves a synchronisation on a GPU; a bad value then
            makes the loss of its row NaN instead of an error.

        Returns
        -------
        Tensor
            ``(B, H)`` or a scalar; dtype of the scores.

        Raises
        ------
        TypeError, ValueError
            As :meth:`forward` and :func:`streaming_zlpr_loss`.
        """
        _check_input(hidden, mask, self.hidden_size)
        query, key = self._queries_and_keys(hidden)
        bias = None if self.bias is None else self.bias.to(query.dtype)
        return streaming_zlpr_loss(
            query,
            key,
            positives,
            bias=bias,
            mask=mask,
            causal=self.causal,
            reduction=reduction,
            validate=validate,
        )

    @torch.no_grad()
    def spans(self, hidden: Tensor, mask: Tensor | None = None, *, threshold: float = 0.0) -> Spans:
        """Find the cells with a score above a threshold, a finite number.

        The other arguments and errors are those of :meth:`forward`. A score that counts and is NaN
        is an error too (ValueError).

        Returns
        -------
        Spans
            ``cells`` (N, 4), rows of (batch, head, i, j) in the order of the tables, and their
            ``scores``. Every score has to be computed; the tables of one text are held at a time.
        """
        _check_input(hidden, mask, self.hidden_size)
        _checks.check_threshold("threshold", threshold)
        query, key = self._queries_and_keys(hidden)
        bias = None if self.bias is None else upcast(self.bias)
        return streaming_spans(query, key, bias, mask, self.causal, threshold)

    @torch.no_grad()
    def blocks(
        self, hidden: Tensor, rows: Sequence[Tensor], columns: Sequence[Tensor]
    ) -> list[Tensor]:
        """Score some rows against some columns, for each text its own.

        Parameters
        ----------
        hidden : Tensor
            As in :meth:`forward`.
        rows, columns : sequence of Tensor
            For each text positions in ``[0, L)``, int64, in any order; a position may be repeated.

        Returns
        -------
        list of Tensor
            One per text, ``(H, len(rows), len(columns))``: the cells of the table that
            :meth:`forward` fills without a mask and without `causal`. No gradient passes.

        Raises
        ------
        TypeError
            If `hidden` is not floating point or positions are not int64.
        ValueError
            If a shape disagrees, there are not as many rows or columns as texts, or a position is
            out of range.
        """
        _check_input(hidden, None, self.hidden_size)
        rows, columns = _positions("rows", rows, hidden), _positions("columns", columns, hidden)
        query, key = self._queries_and_keys(hidden)
        found = []
        with _checks.no_autocast(hidden):
            for text, (i, j) in enumerate(zip(rows, columns, strict=True)):
                scores = torch.matmul(query[text][:, i], key[text][:, j].mT)
                if self.bias is not None:
                    scores = scores + upcast(self.bias)[:, None, None]
                found.append(scores)
        return found

    def _queries_and_keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ``(B, H, L, d)`` twice, whose products are the scores but for the bias."""
        projected = upcast(self.projection(hidden))
        batch, length = hidden.shape[:2]
        by_head = projected.view(batch, length, self.heads, 2, self.head_size)
        query, key = by_head.permute(3, 0, 2, 1, 4)
        with _checks.no_autocast(hidden):
            return _turned(query, key, self.rope)

    def extra_repr(self) -> str:
        """Show the options beside the projection."""
        return f"heads={self.heads}, causal={self.causal}, rope={self.rope}"


class EfficientGlobalPointer(nn.Module):
    r"""Score every pair of positions by one shared table plus a start and an end score per head.

    .. math:: s_a(i, j) = A_{ij} + b_{a,i} + c_{a,j},\qquad
        A_{ij} = \frac{(\mathcal R_i q_i)^\top (\mathcal R_j k_j)}{\sqrt d},\qquad
        b_{a,i} = \tfrac12\bigl(u_a^\top [q_i; k_i] + \beta_a\bigr),\quad
        c_{a,j} = \tfrac12\bigl(v_a^\top [q_j; k_j] + \gamma_a\bigr)

    A answers whether i and j belong together, b and c to which head. The rotation enters A only.

    Equations: :eq:`eq:gp-efficient`, :eq:`eq:gplinker-efficient`

    Parameters
    ----------
    hidden_size : int
        D, the size of an encoder state.
    heads : int
        H, the number of tables.
    head_size : int
        d, the size of the shared query and key; even when `rope` is on.
    causal, rope : bool
        As in :class:`GlobalPointer`.
    bias_start : float or None
        None: β and γ start as in any linear layer, near 0. A number: every β and γ starts there,
        so that each score starts shifted by exactly this number, half of it through b, half
        through c.

    Notes
    -----
    Parameters: :math:`2dD + 2d + 4dH + 2H`. Source: kexue 8877 (2022); the un-rotated
    :math:`[q; k]`, the :math:`1/\sqrt d` and the halves are those of the published code.

    Half precision: as in :class:`GlobalPointer`. Under autocast b and c are float32 as well; the
    layer that gives them rounds them to half precision if its own weights are half-precision.

    Examples
    --------
    >>> pointer = EfficientGlobalPointer(8, heads=3, head_size=4)
    >>> pointer(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 3, 5, 5])
    >>> [tuple(part.shape) for part in pointer.parts(torch.zeros(2, 5, 8))]
    [(2, 5, 5), (2, 3, 5), (2, 3, 5)]
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        head_size: int = 64,
        *,
        causal: bool = True,
        rope: bool = True,
        bias_start: float | None = None,
    ) -> None:
        super().__init__()
        hidden_size, heads, head_size = _sizes(hidden_size, heads, head_size, rope)
        self.hidden_size, self.heads, self.head_size = hidden_size, heads, head_size
        self.causal, self.rope = causal, rope
        self.projection = nn.Linear(hidden_size, 2 * head_size)
        self.head_scores = nn.Linear(2 * head_size, 2 * heads)
        if bias_start is not None:
            nn.init.constant_(self.head_scores.bias, float(bias_start))

    def parts(self, hidden: Tensor) -> PointerParts:
        """Compute the three terms of the score, unmasked, without the H × L × L tables.

        Parameters
        ----------
        hidden : Tensor
            Encoder states, ``(B, L, D)``, floating point.

        Returns
        -------
        PointerParts
            ``pair`` (B, L, L), ``start`` (B, H, L), ``end`` (B, H, L), float32 for
            half-precision input, else the dtype of `hidden`.

        Raises
        ------
        TypeError
            If `hidden` is not floating point.
        ValueError
            If its shape is not ``(B, L, D)``.
        """
        _check_input(hidden, None, self.hidden_size)
        (queries, keys), start, end = self._factors(hidden)
        with _checks.no_autocast(hidden):
            return PointerParts(queries @ keys.mT, start, end)

    def _factors(self, hidden: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Compute the parts with queries and keys in place of their products."""
        projected = upcast(self.projection(hidden))
        with _checks.no_autocast(hidden):
            query, key = projected.chunk(2, dim=-1)
            by_head = _in_own_dtype(self.head_scores, projected) / 2
            start, end = by_head.transpose(1, 2).chunk(2, dim=1)
            return _turned(query, key, self.rope), start, end

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fill the tables; arguments, result and errors are those of `GlobalPointer.forward`.

        The −inf of a masked cell comes through the shared table, which is H times smaller than
        the result. A loss must therefore send no gradient into a cell of −inf, as ZLPR does not.
        """
        _check_input(hidden, mask, self.hidden_size)
        pair, start, end = self.parts(hidden)
        pair = _hide(pair[:, None], mask, self.causal)
        scores = pair + start[..., :, None]
        return scores.add_(end[..., None, :])  # in place: the table is the largest tensor here

    def loss(
        self,
        hidden: Tensor,
        positives: Tensor,
        mask: Tensor | None = None,
        *,
        reduction: _checks.Reduction = "mean",
        validate: bool = True,
    ) -> Tensor:
        """ZLPR loss of the tables, which are not filled: that of :func:`factorised_zlpr_loss`.

        Arguments and result are those of :meth:`GlobalPointer.loss`.
        """
        _check_input(hidden, mask, self.hidden_size)
        return factorised_zlpr_loss(
            *self._factors(hidden),
            positives,
            mask=mask,
            causal=self.causal,
            reduction=reduction,
            validate=validate,
        )

    @torch.no_grad()
    def spans(self, hidden: Tensor, mask: Tensor | None = None, *, threshold: float = 0.0) -> Spans:
        """Find the cells above a threshold from the parts: :func:`factorised_spans`.

        Arguments and result are those of :meth:`GlobalPointer.spans`.
        """
        _check_input(hidden, mask, self.hidden_size)
        return factorised_spans(
            *self.parts(hidden), mask=mask, causal=self.causal, threshold=threshold
        )

    @torch.no_grad()
    def blocks(
        self, hidden: Tensor, rows: Sequence[Tensor], columns: Sequence[Tensor]
    ) -> list[Tensor]:
        """Score some rows against some columns, for each text its own.

        Arguments, result and errors are those of :meth:`GlobalPointer.blocks`.
        """
        _check_input(hidden, None, self.hidden_size)
        rows, columns = _positions("rows", rows, hidden), _positions("columns", columns, hidden)
        parts = self.parts(hidden)
        return [
            pair[i[:, None], j] + start[:, i, None] + end[:, None, j]
            for pair, start, end, i, j in zip(*parts, rows, columns, strict=True)
        ]

    def extra_repr(self) -> str:
        """Show the options beside the two layers."""
        return f"heads={self.heads}, causal={self.causal}, rope={self.rope}"


def _in_own_dtype(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer on numbers of its weights' dtype, or as they are if it has none; upcast."""
    own = (weight.dtype for weight in layer.parameters() if weight.is_floating_point())
    return upcast(layer(x.to(next(own, x.dtype))))


def _turned(query: Tensor, key: Tensor, rope: bool) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys, and scale the queries, so that products are scores."""
    if rope:
        query, key = apply_rope(query), apply_rope(key)
    # Scaling the queries costs L·d operations, scaling the products L².
    return query * float(query.shape[-1]) ** -0.5, key


def _hide(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Put −inf on the cells of ``(B, H, L, L)`` that do not count."""
    length = scores.shape[-1]
    keep = torch.ones(length, length, dtype=torch.bool, device=scores.device)
    if causal:
        keep = keep.triu()
    if mask is not None:
        keep = keep & (mask[:, None, :, None] & mask[:, None, None, :])
    elif not causal:
        return scores
    return scores.masked_fill(~keep, -torch.inf)


def _sizes(hidden_size: object, heads: object, head_size: object, rope: bool) -> Iterator[int]:
    for name, value in (("hidden_size", hidden_size), ("heads", heads), ("head_size", head_size)):
        size = _checks.as_index(name, value)
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
        if name == "head_size" and rope and size % 2:
            raise ValueError(f"head_size must be even for RoPE, got {size}")
        yield size


def _positions(name: str, texts: Sequence[Tensor], hidden: Tensor) -> list[Tensor]:
    """Check the positions of each text; where they cannot be read, those below 0 become L."""
    batch, length = hidden.shape[:2]
    if len(texts) != batch:
        raise ValueError(f"{name} must hold one tensor for each of {batch} texts, got {len(texts)}")
    checked = []
    for text, at in enumerate(texts):
        if not isinstance(at, Tensor) or at.dtype != torch.int64:
            raise TypeError(f"{name}[{text}] must be a torch.int64 tensor, got {kind(at)}")
        if at.dim() != 1:
            raise ValueError(f"{name}[{text}] must have one dimension, got shape {tuple(at.shape)}")
        outside = (at < 0) | (at >= length)
        if not _checks.values_readable(at):
            at = at.masked_fill(outside, length)  # an index below 0 would count from the end
        elif bool(outside.any()):
            raise ValueError(
                f"{name}[{text}] must hold positions in [0, {length}), got {at[outside][0].item()}"
            )
        checked.append(at)
    return checked


def _check_input(hidden: Tensor, mask: Tensor | None, hidden_size: int) -> None:
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
        raise TypeError(f"hidden must be a floating-point tensor, got {kind(hidden)}")
    if hidden.dim() != 3 or hidden.shape[-1] != hidden_size:
        raise ValueError(f"hidden must have shape (B, L, {hidden_size}), got {tuple(hidden.shape)}")
    check_mask(mask, Shape(hidden.shape[0], 0, hidden.shape[1]), hidden)
