"""The contract of every detector: fit, score, calibrate, flag."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from robustgen.calibration import ConformalCalibration
from robustgen.checks import check_images, check_integers, check_numbers, hint_of_levels, plain
from robustgen.counter_rng import integers, uniform
from robustgen.files import load_tensors, read_json, save_tensors, write_json
from robustgen.fingerprint import answers, fingerprint, model_fingerprint, same_answers
from robustgen.inputs import MASK, Inputs, are_inputs, check_inputs, count, described, each, named, parted, split
from robustgen.lipschitz import NORMS, in_norm, lipschitz_bound
from robustgen.model import check_rows_alone, naming_inputs, untouched
from robustgen.progress import track
from robustgen.structure import check_arguments, check_size, check_structure
from robustgen.training import Source, as_source

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Detector", "check_network", "check_radius", "check_width"]

FORMAT = 1  # of the saved files
_ROUNDING = 1e-3  # how far outside [0, 1] values of images may lie
_ROUNDING_OF_SCORES = 1e-4  # above the noise of nondeterministic GPU kernels
_ROUNDINGS = 300  # of numbers as large as what a score is made of, that may add up in it
_ASKED = 4  # inputs by whose scores a saved detector knows its model


def check_network(model: nn.Module, detector: str) -> None:
    """TypeError for a generative model, which is not called on images as ``detector`` calls what it is given."""
    if hasattr(model, "log_prob_kind"):
        kind = type(model).__name__
        raise TypeError(f"{detector} calls its model on images; a {kind} is for Likelihood, Discriminator and the like")


def check_width(features: Tensor, fitted: int) -> None:
    """ValueError unless features (N, D) have as many numbers as those of ``fit``: others would be broadcast."""
    if features.shape[1] != fitted:
        raise ValueError(f"the inputs have {features.shape[1]} features each, those of fit had {fitted}")


class Detector(ABC):
    """Scores inputs for being off the distribution it was fitted on; higher is more anomalous, always.

    ``fit`` on in-distribution data, ``calibrate`` on other in-distribution data, then ``p_value`` or ``flag``. The
    model is queried in eval mode with frozen parameters and is left exactly as it was.

    Inputs are floats (N, ...). Detectors that ask a network for features, states or logits also take tokens, int64
    (N, T), and dicts of the network's keyword arguments, whose ``attention_mask`` (N, T) says which positions count:
    see :mod:`robustgen.inputs`.

    Inputs have the shape of those of ``fit``; only sequences, (N, T), (N, T, D) or (N, C, L), may be of another length
    where the model takes it: one of the numbers may differ, and of two not be 1, which would be broadcast. Images of
    ``fit`` without values outside [0, 1] hold others to that. (Detectors saved before this was kept take more.)

    A subclass is one paper: it gives ``_score`` and, where there is something to learn, ``_fit``; its constructor takes
    the model or models first, then JSON-able options, each kept in an attribute of the same name.

    Args:
        model: the network that the scores come from, or a sequence of several, kept as one ``nn.ModuleList``.
        batch_size: inputs scored at once; the scores do not depend on it.

    Raises:
        TypeError: a model that is no ``nn.Module``.
        ValueError: a batch_size below 1.

    Attributes:
        former_names: of the class: what it was called when older files were saved.
        fit_on_fresh: of the class: whether ``fit`` needs data that the model was not trained on either.
        takes_tokens: of the class: whether inputs may be tokens and dicts.
        statistics_: what ``fit`` learned, by name; None before.
        calibration_: what ``calibrate`` learned; None before, and again after another ``fit``.
    """

    former_names: ClassVar[tuple[str, ...]] = ()
    fit_on_fresh: ClassVar[bool] = False
    takes_tokens: ClassVar[bool] = False

    def __init__(self, model: nn.Module | Sequence[nn.Module], batch_size: int = 256) -> None:
        for one in model if isinstance(model, Sequence) else [model]:
            if not isinstance(one, nn.Module):
                raise TypeError(f"{type(self).__name__} needs an nn.Module, got {type(one).__name__}")
        check_integers(batch_size=batch_size)
        self.model: nn.Module = nn.ModuleList(model) if isinstance(model, Sequence) else model
        self.batch_size = batch_size
        self.statistics_: dict[str, Tensor] | None = None
        self.calibration_: ConformalCalibration | None = None

    def _fit(self, batches: Iterable[tuple[Any, Tensor | None]]) -> dict[str, Tensor]:
        """What there is to learn from batches of x (B, ...) on the model's device and y (B,) or None; here nothing."""
        return {}

    @abstractmethod
    def _score(self, x: Any) -> Tensor:
        """Scores (N,) of x (N, ...), N > 0, on the model's device, by ``self.statistics``; recorded by autograd."""

    @property
    def statistics(self) -> dict[str, Tensor]:
        """What ``fit`` learned; NotFittedError before."""
        self._require_fit()
        assert self.statistics_ is not None
        return self.statistics_

    @property
    def calibration(self) -> ConformalCalibration:
        """What ``calibrate`` learned; NotFittedError before."""
        self._require_fit()
        if self.calibration_ is None:
            raise _not_fitted(f"this {type(self).__name__} is not calibrated: call calibrate(x_id) first")
        return self.calibration_

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments except the model, JSON-able."""
        names = list(inspect.signature(type(self)).parameters)[1:]
        return {name: plain(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"

    def fit(self, data: Any, y: Tensor | None = None) -> "Self":
        """Learn what in-distribution data look like.

        Args:
            data: inputs x, a tuple (x, y), a data set, a DataLoader, a NumPy array or anything else that
                :func:`robustgen.training.as_source` takes; uint8 pixels are read as [0, 1].
            y: int64 labels (N,), for the detectors that use them.

        Raises:
            TypeError: not such data.
            ValueError: no data, NaN or Inf in them, inputs of several shapes or that the model does not take, scores
                that are NaN on them, or a model that is stochastic in eval mode, or answers a row by what else is in
                its batch (the score of an input would depend on the batch that it is in).
        """
        source = as_source(data if y is None else (data, y))
        with torch.inference_mode(False), torch.no_grad(), untouched(self.model) as stream:
            about = _about_inputs(x for x, _ in self._batches(source))
            with naming_inputs(like := _like(about)):
                fitted = self._fit(track(self._batches(source), f"{self._name}, fit", self._n_batches(source))) | about
            self.statistics_ = {name: s.detach().cpu().contiguous() for name, s in fitted.items()}
            self.calibration_ = None
            try:
                with naming_inputs(like):
                    self._check_scores(next(self._batches(source))[0])
            except ValueError:
                self.statistics_ = None
                raise
        if stream is not None and stream.drawn:  # numbers that do not show in the scores, as those agree
            self.statistics_["draws"] = torch.ones(())
        return self

    def score(self, x: Any) -> Tensor:
        """Scores (N,) of x, higher = more anomalous; each depends on its own input only.

        Differentiable in a float tensor x that requires grad (then in one batch), otherwise without graph.

        Args:
            x: inputs (N, ...) or whatever else ``fit`` takes; labels are not used. A data set is scored in its order,
                a DataLoader in that of its data set, even where it shuffles.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError: x is not a batch of finite float32 or float64, see :mod:`robustgen.checks` (tokens:
                :mod:`robustgen.inputs`), or not of inputs like those of ``fit``, see the class.
        """
        self._require_fit()
        x = parted(x)[0] if are_inputs(x) else x
        if not isinstance(x, (Tensor, dict)) or (isinstance(x, Tensor) and x.dtype == torch.uint8):
            source = as_source(x)
            batches = track(self._batches(source), f"{self._name}, scores", self._n_batches(source))
            return torch.cat([self.score(batch) for batch, _ in batches])
        x = self._check(x)
        first = next(iter(named(x).values()))
        if not count(x):
            return first.flatten(1).sum(1) if first.is_floating_point() else torch.zeros(0)
        with_grad = torch.is_grad_enabled() and any(t.requires_grad for t in named(x).values())
        if not with_grad:
            x = each(x, Tensor.detach)
        chunks = [x] if with_grad else split(x, self.batch_size)
        seed = 0 if "draws" in self.statistics else None
        with untouched(self.model, seed), torch.set_grad_enabled(with_grad):
            parts = track(chunks, f"{self._name}, scores")
            scores = [self._scored(each(chunk, lambda t: t.to(self._device))) for chunk in parts]
            return torch.cat(scores).to(first.device)

    def calibrate(self, x_id: Any) -> "Self":
        """Learn what scores in-distribution data get, from data (as in ``fit``) that were not fitted on.

        Neither may the model have been trained on them: p-values and flags are valid for inputs that are exchangeable
        with these, see :class:`~robustgen.calibration.ConformalCalibration`.

        Raises:
            NotFittedError: before ``fit``.
            ValueError: no data, other inputs than ``score`` takes, or a score that is NaN.
        """
        self._require_fit()
        with torch.no_grad():
            source = as_source(x_id)
            batches = track(self._batches(source), f"{self._name}, calibration", self._n_batches(source))
            scores = torch.cat([self.score(x) for x, _ in batches])
        self.calibration_ = ConformalCalibration(scores.cpu())
        return self

    def p_value(self, x: Any) -> Tensor:
        """(1 + #{calibration score >= s}) / (n + 1) for the score s of each input: float64 (N,), small = anomalous.

        Raises:
            NotFittedError: before ``fit`` and ``calibrate``.
            TypeError, ValueError: as ``score`` does, or a score that is NaN.
        """
        calibration = self.calibration
        with torch.no_grad():
            return calibration.p_value(self.score(x))

    def flag(self, x: Any, fpr: float = 0.05) -> Tensor:
        """``p_value(x) <= fpr``, bool (N,): in-distribution inputs are flagged at a rate of at most ``fpr``.

        Raises:
            NotFittedError: before ``fit`` and ``calibrate``.
            TypeError, ValueError: as ``p_value`` does, or too few calibration scores for ``fpr``.
        """
        calibration = self.calibration
        with torch.no_grad():
            return calibration.flag(self.score(x), fpr)

    def lipschitz(self, norm: str = "L2") -> float | None:
        """By how much the score changes at most for a change of the input of length 1; None where no bound is known.

        Args:
            norm: of the change: "L2", "L1" or "Linf".

        Raises:
            NotFittedError: before ``fit``.
            ValueError: another norm.
        """
        self._require_fit()
        if norm not in NORMS:
            raise ValueError(f"norm must be {', '.join(NORMS)}, got {norm!r}")
        like = _like(self.statistics)
        return self._lipschitz(norm, like.shape[1:].numel()) if isinstance(like, Tensor) and like.ndim != 3 else None

    def _lipschitz(self, norm: str, dimensions: int) -> float | None:
        """See :meth:`lipschitz`; ``dimensions``: how many numbers an input has."""
        return None

    def _bound_of_model(self, norm: str, dimensions: int) -> float | None:
        """That of the network: of a score that moves by no more than what the network says."""
        return in_norm(lipschitz_bound(self.model), norm, dimensions)

    def no_bound(self) -> str:
        """What to say where :meth:`lipschitz` is None."""
        like = _like(self.statistics)
        of = " of sequences" if isinstance(like, Tensor) and like.ndim == 3 else ""
        return f"no bound is known of how far a {type(self).__name__}{of} can be moved"

    def has_bound(self, norm: str = "L2") -> bool:
        """Whether alarms can be certified: where :meth:`lipschitz` is known, and of any smoothed detector."""
        return self.lipschitz(norm) is not None

    def certified_flag(self, x: Any, fpr: float, radius: float, norm: str = "L2") -> Tensor:
        """Alarms that no change of the input can take back, bool (N,): ``flag`` says True wherever one may be moved.

        It holds for every change up to ``radius`` in ``norm``, whatever an attacker knows (of a
        :class:`~robustgen.detectors.SmoothedDetector`: but its seed): the score cannot fall by more than
        ``lipschitz(norm) * radius``.

        Raises:
            NotFittedError: before ``fit`` and ``calibrate``.
            TypeError, ValueError: as ``flag`` and ``lipschitz`` do, a radius below 0, or a detector without a bound.
        """
        calibration = self.calibration
        return calibration.flag(self.score_bounds(x, radius, norm)[0], fpr)

    def certified_p_value(self, x: Any, radius: float, norm: str = "L2") -> tuple[Tensor, Tensor]:
        """The smallest and the largest p-value that a change up to ``radius`` can give each input: float64 (N,) each.

        An alarm stays where the largest one is at most the false-alarm rate; a normal input can be made to raise one
        only where the smallest is.

        Raises:
            NotFittedError, TypeError, ValueError: as :meth:`certified_flag` does.
        """
        calibration = self.calibration
        lowest, highest = self.score_bounds(x, radius, norm)
        return calibration.p_value(highest), calibration.p_value(lowest)

    def score_bounds(self, x: Any, radius: float, norm: str = "L2") -> tuple[Tensor, Tensor]:
        """The lowest and the highest score that a change up to ``radius`` can give: float64 (N,) each.

        Rounding is allowed for, but that of a network in which far larger numbers cancel than its inputs and outputs.

        Raises:
            NotFittedError, TypeError, ValueError: as :meth:`certified_flag` does.
        """
        check_radius(radius)
        slope = self.lipschitz(norm)
        if slope is None:
            raise ValueError(f"{self.no_bound()}: SmoothedDetector has one for any")
        own = self.lipschitz() or 0.0
        bounds = []
        for part in self._as_batches(x):
            with torch.no_grad(), untouched(self.model, None):
                scores = self.score(part).double()
                size = self._size(part.to(self._device)).double().to(scores.device) if len(part) else scores
            length = radius * (part[:1].numel() ** 0.5 if norm == "Linf" else 1.0)
            size = size + own * (part.flatten(1).double().norm(dim=1) + length)
            reach = slope * radius + _ROUNDING_OF_SCORES * scores.abs()
            reach = reach + _ROUNDINGS * torch.finfo(part.dtype).eps * size
            bounds.append(torch.stack([scores - reach, scores + reach]))
        lowest, highest = torch.cat(bounds, 1)
        return lowest, highest

    def _size(self, x: Tensor) -> Tensor:
        """How large the numbers are whose differences make the scores of x, (N,) or (), beside those of x itself."""
        return torch.zeros(())

    def _as_batches(self, x: Any) -> Iterator[Tensor]:
        """Whatever ``score`` takes, as batches of floats."""
        x = parted(x)[0] if are_inputs(x) else x
        if not isinstance(x, Tensor) or x.dtype == torch.uint8:
            for batch, _ in self._batches(as_source(x)):
                yield from self._as_batches(batch)
            return
        x = self._check(x)
        assert isinstance(x, Tensor)
        yield x.detach()

    def save(self, directory: str | Path) -> None:
        """Write ``detector.json`` and ``detector.safetensors``; the model is the user's and is not written.

        Raises:
            NotFittedError: before ``fit``.
        """
        tensors = {f"fitted.{name}": s for name, s in self.statistics.items()}
        if self.calibration_ is not None:
            tensors["calibration.scores"] = self.calibration_.scores
        record = {
            "format": FORMAT,
            "detector": type(self).__name__,
            "config": self.config,
            "model": model_fingerprint(self.model),
            "tensors": fingerprint(tensors),
            "scores": self._fixed_scores(),
        }
        save_tensors(Path(directory) / "detector.safetensors", tensors)
        write_json(Path(directory) / "detector.json", record)

    @classmethod
    def load(cls, directory: str | Path, *, model: nn.Module | Sequence[nn.Module]) -> "Self":
        """Read what ``save`` wrote, for the same model or models with the same weights.

        Raises:
            FileNotFoundError: no detector in ``directory``.
            ValueError: files that are damaged, from another version or detector, or a model with other weights or
                settings, or that gives a few fixed inputs other scores: fit and calibration would be silently wrong.
        """
        path = Path(directory) / "detector.json"
        record = read_json(path, dict)
        if record.get("format") != FORMAT or record.get("detector") not in (cls.__name__, *cls.former_names):
            raise ValueError(f"{path}: not a {cls.__name__} in format {FORMAT}")
        check_structure(record, {"config": dict, "model": str, "tensors": str}, path)
        tensors = load_tensors(path.with_name("detector.safetensors"))
        if record.get("tensors") != fingerprint(tensors):
            raise ValueError(f"{directory}: detector.json and detector.safetensors are not from the same save")
        detector = cls._from_settings(record["config"], model, path)
        if record["model"] != model_fingerprint(detector.model):
            raise ValueError(f"{directory}: fitted on a model with other weights or settings; fit and calibrate again")
        now = detector._restore(tensors, path.with_name("detector.safetensors"))
        if "scores" in record and not same_answers(record["scores"], now):
            raise ValueError(f"{directory}: fitted on a model that gives other scores; fit and calibrate again")
        return detector

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> list[float] | None:
        """Take what ``path`` held for what was learned, if it can have been; the scores of fixed inputs then."""
        scores = tensors.pop("calibration.scores", None)
        self.statistics_ = {name.removeprefix("fitted."): s for name, s in tensors.items()}
        if (shape := self.statistics_.pop("image_shape", None)) is not None:  # as it was called before
            check_size(shape.tolist(), path, "image_shape")
            self.statistics_["like"] = torch.zeros(0, *shape.tolist())
        try:
            if (like := _like(self.statistics)) is not None:
                for part in named(like).values():
                    check_size(part.shape[1:], path, "the shape of inputs")
            if scores is not None and not scores.is_floating_point():
                raise ValueError(f"calibration scores of {scores.dtype}")
            self.calibration_ = None if scores is None else ConformalCalibration(scores)
            return self._fixed_scores()
        except KeyError as error:
            raise ValueError(f"{path}: lacks the statistic {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None

    @classmethod
    def _from_settings(cls, settings: dict[str, Any], model: Any, path: Path) -> "Self":
        check_arguments(cls, settings, path, "config", after=1)
        try:
            return cls(model, **settings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not the settings of a {cls.__name__} ({error})") from None

    def _fixed_scores(self) -> list[float] | None:
        """Scores of a few inputs that are always the same: they depend on all that the model does, as no hash can."""
        if (like := _like(self.statistics)) is None:
            return None
        drawn = {name: self._fixed(name, t) for name, t in named(like).items()}
        x = drawn if isinstance(like, dict) else drawn[""]
        grey = answers(lambda: self.score(x), passes=1)
        if grey is None and isinstance(x, Tensor):
            return answers(lambda: self.score(x.round()), passes=1)  # of models of binary images
        return grey

    def _fixed(self, name: str, like: Tensor) -> Tensor:
        """Numbers of the shape and dtype of an input: floats in [0, 1), integers in the range of those of ``fit``."""
        ids, shape = torch.arange(_ASKED), tuple(like.shape[1:])
        if name == MASK:
            return torch.ones(_ASKED, *shape, dtype=like.dtype)
        if like.is_floating_point():
            return uniform(0, ids, shape, dtype=like.dtype)
        low, high = self.statistics[_entry("range", name)].tolist()
        return (low + integers(0, ids, shape, high - low + 1)).to(like.dtype)

    def _scored(self, x: Inputs) -> Tensor:
        with naming_inputs(x):
            return self._score(x)

    @property
    def _device(self) -> torch.device:
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def _require_fit(self) -> None:
        if self.statistics_ is None:
            raise _not_fitted(f"this {type(self).__name__} is not fitted: call fit(data) first")

    def _taken(self, x: object) -> Inputs:
        """Return x if it is what this detector can read."""
        if self.takes_tokens:
            return check_inputs(x)
        if isinstance(x, dict):
            raise TypeError(f"{type(self).__name__} takes tensors of floats, no dicts of keyword arguments")
        return check_images(x)

    def _check(self, x: object) -> Inputs:
        """Return x if ``score`` takes it."""
        like = _like(self.statistics)
        if isinstance(x, Tensor) and isinstance(like, Tensor) and like.is_floating_point():
            check_images(x)
        x = self._taken(x)
        if like is None:
            return x
        if found := _misfit(x, like):
            raise ValueError(
                f"this {type(self).__name__} is of {found.what} {found.expected}, as in fit; got {found.got}"
            )
        if "in_unit_range" in self.statistics and isinstance(x, Tensor) and not _in_unit_range(x):
            low, high = (v.item() for v in x.detach().aminmax())
            outside = f"outside the bounds (0, 1) of the data of fit{hint_of_levels(low, high, (0, 1))}"
            raise ValueError(f"x has values in [{low:.4g}, {high:.4g}], {outside}")
        return x

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _n_batches(self, source: Source) -> int:
        """How many batches there are."""
        return -(-len(source) // self.batch_size)

    def _batches(self, source: Source) -> Iterator[tuple[Inputs, Tensor | None]]:
        for indices in torch.arange(len(source)).split(self.batch_size):
            x, y = source.batch(indices)
            yield each(self._taken(x), lambda t: t.detach().to(self._device)), y

    def _check_scores(self, x: Inputs) -> None:
        once, again = self._score(x), self._score(x)
        if once.isnan().any():
            raise ValueError(f"{type(self).__name__} gives NaN scores on the data it was fitted on")
        within = _ROUNDING_OF_SCORES
        if not torch.allclose(once, again, rtol=within, atol=within):
            raise ValueError("the model is stochastic in eval mode: an input's score would depend on its batch")
        check_rows_alone(self._score, split(x, _ASKED)[0], "score", within=within)


def check_radius(radius: float) -> None:
    """ValueError unless a radius is a finite number >= 0."""
    check_numbers(radius=radius)
    if not 0 <= radius < float("inf"):
        raise ValueError(f"radius must be a finite number >= 0, got {radius}")


def _entry(statistic: str, name: str) -> str:
    """What the statistic of a tensor of the inputs is called: those of a batch that is one tensor have no name."""
    return f"{statistic}.{name}" if name else statistic


def _about_inputs(batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """Of each tensor of the inputs ``like``: none of them, in their shape and dtype; of integers ``range``, the lowest
    and the highest; for images a mark where all values are in [0, 1].
    """
    like: Inputs | None = None
    ranges: dict[str, Tensor] = {}
    inside = True
    for x in batches:
        if like is None:
            like = each(x, lambda t: t[:0].cpu())
        if found := _misfit(x, like):
            raise ValueError(f"fit needs {found.what} of one shape, got {found.expected} and {found.got}")
        for name, t in named(x).items():
            if not t.is_floating_point():
                lowest_highest = torch.stack(t.long().aminmax()).cpu()
                known = ranges.setdefault(_entry("range", name), lowest_highest)
                ranges[_entry("range", name)] = torch.stack(torch.cat([known, lowest_highest]).aminmax())
        inside = inside and isinstance(x, Tensor) and _in_unit_range(x)
    assert like is not None
    images = isinstance(like, Tensor) and like.ndim == 4
    about = {_entry("like", name): t for name, t in named(like).items()}
    return about | ranges | ({"in_unit_range": torch.ones(())} if inside and images else {})


def _like(statistics: dict[str, Tensor]) -> Inputs | None:
    """None of the inputs of ``fit``, in their shape and dtype; None where that was not kept."""
    if "like" in statistics:
        return statistics["like"]
    parts = {name.removeprefix("like."): t for name, t in statistics.items() if name.startswith("like.")}
    return parts or None


class _Misfit(NamedTuple):
    """What was expected of an input, and what it is."""

    what: str
    expected: object
    got: object


def _misfit(x: Inputs, like: Inputs) -> _Misfit | None:
    """How inputs differ from those of ``fit``, if they do."""
    expected, got = named(like), named(x)
    if {name: t.is_floating_point() for name, t in got.items()} != {
        n: t.is_floating_point() for n, t in expected.items()
    }:
        return _Misfit("inputs", described(like), described(x))
    for name, t in got.items():
        shape, fitted = tuple(t.shape[1:]), tuple(expected[name].shape[1:])
        if not _fits(shape, fitted, tokens=not t.is_floating_point()):
            return _Misfit(f"{_kind(fitted)} {name}".strip(), fitted, shape)
    return None


def _fits(shape: tuple[int, ...], fitted: tuple[int, ...], tokens: bool) -> bool:
    """Whether an input has the shape of those of ``fit``; a sequence may have another length."""
    if tokens and len(shape) == len(fitted) == 1:
        return True
    if shape == fitted or len(shape) != 2 or len(fitted) != 2:
        return shape == fitted
    other = [size for size, expected in zip(shape, fitted, strict=True) if size != expected]
    return len(other) == 1 and other[0] > 1


def _kind(shape: tuple[int, ...]) -> str:
    return {1: "vectors", 2: "sequences", 3: "images"}.get(len(shape), "inputs")


def _in_unit_range(x: Tensor) -> bool:
    if not x.numel():
        return True
    low, high = x.detach().aminmax()
    return bool(low >= -_ROUNDING and high <= 1 + _ROUNDING)


def _not_fitted(message: str) -> Exception:
    from sklearn.exceptions import NotFittedError

    return NotFittedError(message)
