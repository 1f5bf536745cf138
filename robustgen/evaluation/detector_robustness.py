"""What a detector is worth against an attacker who does not know it, and against one who does.

Carlini and Wagner, "Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection Methods", 2017: a detector is
to be measured with attacks that optimise against it as well. Bryniarski, Hingun, Pachuca, Wang and Carlini, "Evading
Adversarial Example Detection Defenses with Orthogonal Projected Gradient Descent", 2022: at a false-alarm rate that is
fixed beforehand. Sehwag, Bhagoji, Song, Sitawarin, Cullina, Chiang and Mittal, "Analyzing the Robustness of Open-World
Machine Learning", 2019: out-of-distribution inputs are attacked too, to look in-distribution.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks import PGD, Attack, JointAttack
from robustgen.checks import check_evaluation, check_images, check_positive, eps_spans_bounds, nearest, plain_arguments
from robustgen.detectors import Detector
from robustgen.evaluation.chunks import Job, kept_under, run_jobs, stages_of
from robustgen.evaluation.detector_robustness_report import (
    CertifiedAlarms,
    DetectorRobustness,
    GuardedOutcome,
    ReverseOutcome,
)
from robustgen.evaluation.doubts import at_chance, n_classes_of, raise_doubts
from robustgen.evaluation.verifier import verify
from robustgen.evaluation.wall_clock import WallClock
from robustgen.model import Model
from robustgen.progress import showing
from robustgen.training.distributed import current_world

__all__ = ["evaluate_detector_robustness"]

JOINT = ("sum", "max", "selective", "orthogonal")
ATTACKED = "attacked-detector"  # the directory of what is kept of it


@plain_arguments
def evaluate_detector_robustness(
    model: Model,
    detector: Detector,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "Linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    fpr: float = 0.05,
    formulations: Sequence[str] = JOINT,
    x_ood: Tensor | None = None,
    ids: Tensor | None = None,
    seed: int = 0,
    steps: int = 100,
    restarts: int = 1,
    batch_size: int = 250,
    run_dir: str | Path | None = None,
    resume: bool = False,
    name: str = "network",
    progress: bool = False,
    max_minutes: float | None = None,
) -> DetectorRobustness:
    """Attack a guarded classifier: ``model``, whose answer counts unless ``detector`` flags the input.

    The oblivious attacker runs PGD on the classifier alone; of its points both the first that fools and the one of
    lowest margin are shown to the detector, since either may be the one that it sees better. The one who knows the
    detector runs :class:`~robustgen.attacks.JointAttack` in every formulation; of its points that fool the classifier
    the one of lowest score counts. No formulation is the strongest everywhere: the worst case per example is over all
    attacks. Every outcome is what model and detector say of the point that an attack returned, once the verifier has
    found it in the ball. Of a detector that has a bound in ``norm``, what no attack at all can change stands beside.

    Args:
        model: x (N, ...) in bounds -> logits (N, C).
        detector: fitted and calibrated on data other than x, its score differentiable in x; its calibration alone gives
            the threshold at ``fpr``.
        x: float (N, ...) in ``bounds``, in-distribution; y: int64 (N,), the true labels.
        eps, norm, bounds: the threat model, of ``x_ood`` too; norm "Linf", "L2" or "L1".
        fpr: nominal false-alarm rate, in (0, 1).
        formulations: of the joint attack: "sum", "max", "selective", "orthogonal".
        x_ood: float (M, ...) in ``bounds``, out-of-distribution inputs: also attacked, to get a lower score.
        ids: int64 (N,), what random numbers are keyed by; default arange(N).
        seed: of the attacks.
        steps, restarts: of every attack. None of them ends early, but for the search for the first point that fools.
        batch_size: examples in a pass.
        run_dir: where what is done is kept, so that a kill costs seconds.
        resume: continue the evaluation in ``run_dir``: same model, detector, examples and arguments.
        name: of the network in the report.
        progress: show a progress bar, with about how long is left.
        max_minutes: stop when they are used up, with all that is done kept in ``run_dir``: resume it to finish.

    Warns:
        UserWarning: as :func:`~robustgen.evaluation.evaluate_robustness`.

    Raises:
        TypeError: not a :class:`~robustgen.detectors.Detector`; otherwise as :meth:`robustgen.attacks.Attack.run`.
        ValueError: no examples, an unknown formulation, none, or one named twice; too few calibration scores for
            ``fpr``; ``run_dir`` of another evaluation; a score that does not depend on x through differentiable
            operations, or is NaN; otherwise as :meth:`robustgen.attacks.Attack.run`; ``max_minutes`` that are not
            > 0, or without ``run_dir``.
        OutOfTime: ``max_minutes`` are used up (:mod:`robustgen.evaluation.stages`).
        NotFittedError: a detector that is not fitted and calibrated.

    >>> from robustgen import ReconstructionError, fortify
    >>> x = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    >>> net = fortify(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)), "auto",
    ...               example_input=x, init="random").eval()
    >>> detector = ReconstructionError(net).fit(x[:20]).calibrate(x[20:40])
    >>> found = evaluate_detector_robustness(net, detector, x[40:], net(x[40:]).argmax(1), eps=0.1, fpr=0.1, steps=5)
    >>> found.guarded_accuracy <= found.clean_accuracy, found.threshold == detector.calibration.threshold(0.1)
    (True, True)
    """
    began, wall = time.perf_counter(), WallClock(None if run_dir is None else kept_under(Path(run_dir) / ATTACKED))
    if max_minutes is not None:
        check_positive(max_minutes=max_minutes)
        if run_dir is None:
            raise ValueError("max_minutes needs a run_dir, where what is done is kept")
    until = None if max_minutes is None else began + 60 * max_minutes
    if not isinstance(detector, Detector):
        raise TypeError(f"detector must be a robustgen.detectors.Detector, got {type(detector).__name__}")
    threshold = detector.calibration.threshold(fpr)
    x, y, ids, bounds = check_evaluation(x, y, ids, bounds, eps, batch_size)
    for formulation in formulations:
        if formulation not in JOINT:
            raise ValueError(f"unknown formulation {formulation!r}; {nearest(formulation, JOINT)}")
    if not formulations or len(set(formulations)) < len(formulations):
        raise ValueError(f"formulations must name at least one, each once; got {tuple(formulations)}")
    if x_ood is not None and (not len(check_images(x_ood, bounds, "x_ood")) or x_ood.shape[1:] != x.shape[1:]):
        raise ValueError(f"x_ood must hold inputs of shape {tuple(x.shape[1:])}, got shape {tuple(x_ood.shape)}")

    common: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": bounds, "seed": seed}
    budget: dict[str, Any] = {"steps": steps, "restarts": restarts}
    known: dict[str, Any] = {"score": detector.score, "threshold": threshold, "early_stop": False}
    attacks: dict[str, Attack] = {
        "oblivious PGD, first point that fools": PGD(**common, **budget),
        "oblivious PGD, lowest margin": PGD(**common, **budget, early_stop=False),
    }
    attacks |= {f"joint, {f}": JointAttack(**common, **budget, **known, formulation=f) for f in formulations}
    notes = raise_doubts([eps_spans_bounds(eps, norm, bounds, x[0].numel())])

    stage_seconds: dict[str, float] = {}

    def run(
        attacks: Mapping[str, Attack], x: Tensor, y: Tensor, ids: Tensor, scores: Tensor, part: str
    ) -> list[Tensor]:
        kept = None if run_dir is None else Path(run_dir) / part
        with (
            showing(progress),
            current_world().alone(None if run_dir is None else Path(run_dir), x.device),
            closing(stages_of(f"{name}, detector", kept, until, wall)) as stages,
        ):
            done = run_jobs(
                {label: Job(attack, len(x), keep=len(x)) for label, attack in attacks.items()},
                model,
                x,
                y,
                ids,
                batch_size=batch_size,
                run_dir=kept,
                resume=resume,
                about={"detector's scores": scores},
                stages=stages,
            )
        stage_seconds.update({f"{part}: {label}": seconds for label, seconds in stages.seconds.items()})
        return [result.x_adv.to(x.device) for result in done.values()]

    def fooled_at(x_adv: Tensor) -> Tensor:
        return verify(model, x, x_adv, y, **common).accepted.cpu()

    def scores_of(x: Tensor) -> Tensor:
        with showing(progress):
            scores = detector.score(x).detach().double().cpu()
        if bad := int(scores.isnan().sum()):
            raise ValueError(f"the detector's score is NaN for {bad} of {len(x)} inputs")
        return scores

    scores = scores_of(x)
    clean = fooled_at(x).logical_not()
    notes += raise_doubts([at_chance(clean, y.cpu(), n_classes_of(model, x))])
    outcomes = {
        label: GuardedOutcome(attack.describe(), fooled_at(x_adv), scores_of(x_adv))
        for (label, attack), x_adv in zip(attacks.items(), run(attacks, x, y, ids, scores, ATTACKED), strict=True)
    }
    reverse = None
    if x_ood is not None:
        x_ood = x_ood.detach().to(x.device)
        attack = JointAttack(**common, **budget, **known, formulation="score")
        rows = torch.arange(len(x_ood), device=x.device)
        before = scores_of(x_ood)
        (found,) = run({"score": attack}, x_ood, torch.zeros_like(rows), rows, before, "attacked-ood")
        # the input itself is a point of the ball, and one that the search need not pass
        reverse = ReverseOutcome(attack.describe(), before, torch.minimum(before, scores_of(found)))
    certified = None
    if detector.has_bound(norm):
        with showing(progress):
            lowest, highest = detector.score_bounds(x, eps, norm)
            certified = CertifiedAlarms(
                lowest.cpu(), highest.cpu(), None if x_ood is None else detector.score_bounds(x_ood, eps, norm)[0].cpu()
            )
    return DetectorRobustness(
        name=name,
        detector=repr(detector),
        eps=eps,
        norm=norm,
        bounds=bounds,
        fpr=fpr,
        threshold=threshold,
        n_calibration=len(detector.calibration),
        ids=ids.cpu(),
        y=y.cpu(),
        clean=clean,
        scores=scores,
        outcomes=outcomes,
        reverse=reverse,
        certified=certified,
        notes=notes,
        seed=seed,
        wall_seconds=wall.keep(finished=True),
        stage_seconds=stage_seconds,
    )
