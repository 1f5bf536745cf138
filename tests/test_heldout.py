"""The held-out-class protocols on made-up data whose answers are known."""

import dataclasses
import math

import pytest
import torch

from robustgen.counter_rng import content_ids, uniform
from robustgen.data import ArrayDataset, check_same_preprocessing, digits, drop_shared, preprocessing_fingerprint
from robustgen.detectors import Detector, NearestNeighbour
from robustgen.evaluation import anomalous_class, auroc, heldout_benchmark, heldout_class, unseen_datasets
from robustgen.evaluation.heldout import compared
from robustgen.experiments.ahmed2017 import table_4_1, table_4_2
from robustgen.generative import DCGAN, VAE

CLASSES = tuple(map(str, range(10)))


def made_up(n, seed, name):
    """n images (1, 4, 4) of ten classes; the first pixel tells the class, the others are random."""
    x = torch.randint(256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    y = torch.arange(n) % 10
    x[:, 0, 0, 0] = (10 * y).to(torch.uint8)
    return ArrayDataset(x, y, CLASSES, name)


TRAIN, TEST = made_up(1000, 1, "train"), made_up(500, 2, "test")


class Scored(Detector):
    """Scores by a function of images; remembers all it is shown."""

    def __init__(self, score):
        super().__init__(torch.nn.Identity())
        self.score_of, self.seen = score, []

    @property
    def config(self):
        return {}

    def _fit(self, batches):
        return {"n": torch.tensor(sum(len(x) for x, _ in batches))}

    def _score(self, x):
        self.seen.append(x)
        return self.score_of(x)


def label_of(x):
    return (x[:, 0, 0, 0] * 255 / 10).round()


def noise_of(x):
    return uniform(0, content_ids(x), ())


def oracle(c):
    """Above 1 for class c alone, without ties."""
    return lambda x: (label_of(x) == c) + noise_of(x)


def judge(score, c=3, **options):
    return heldout_class(lambda images: Scored(score).fit(images), TRAIN, TEST, heldout=c, **options)


def test_an_oracle_reaches_everything_and_its_negative_the_lowest_attainable():
    found = judge(oracle(3))
    assert (found["aupr"], found["auroc"], found["fpr95"], found["flagged"]) == (100, 100, 0, 100)
    assert found["aupr_negated"] == found["minimum"]
    assert (found["n_id"], found["n_ood"], found["prevalence"]) == (450, 50, 10)
    negated = judge(lambda x: -oracle(3)(x))
    assert negated["aupr"] == negated["minimum"] == pytest.approx(2 * sum(i / (450 + i) for i in range(1, 51)))
    assert (negated["auroc"], negated["flagged"], negated["aupr_negated"]) == (0, 0, 100)


def test_a_constant_score_gives_the_prevalence_and_a_random_one_chance():
    constant = judge(lambda x: torch.zeros(len(x)))
    assert (constant["aupr"], constant["auroc"], constant["flagged"]) == (pytest.approx(10), 50, 0)
    found = heldout_benchmark(lambda images: Scored(noise_of).fit(images), TRAIN, TEST)
    values = [f["aupr"] for f in found["classes"]]
    error = torch.tensor(values).std().item() / math.sqrt(10)
    assert abs(found["mean"]["aupr"] - found["mean"]["chance"]) < 4 * error
    assert found["median"]["aupr"] == torch.tensor(values, dtype=torch.float64).quantile(0.5).item()


def test_a_random_score_is_flagged_as_often_as_was_asked():
    found = judge(noise_of, calibration=0.5, fpr=0.2)
    assert abs(found["false_alarms"] - 20) < 100 * 4 * math.sqrt(0.2 * 0.8 * (1 / 450 + 1 / 450))


def test_both_signs_complement_each_other():
    a, b = torch.randn(300).round(decimals=1), torch.randn(40).round(decimals=1) + 0.3
    numbers = compared(a, b)
    assert numbers["auroc"] + numbers["auroc_negated"] == pytest.approx(100, abs=1e-12)
    assert numbers["auroc"] == 100 * auroc(a, b)


def test_training_sees_neither_the_class_nor_the_calibration_tenth():
    given, detectors = [], []

    def make(images):
        given.append(images)
        detectors.append(Scored(oracle(3)))
        return detectors[0].fit(images)

    found = heldout_class(make, TRAIN, TEST, heldout="3", calibration=0.1)
    assert len(given[0]) == 810
    assert found["n_calibration"] == len(detectors[0].calibration) == 90
    assert given[0].classes == tuple(c for c in CLASSES if c != "3")
    assert not (label_of(given[0].images()) == 3).any()
    known = {row.tobytes() for row in given[0].x.flatten(1).numpy()}
    calibration = torch.cat([x for x in detectors[0].seen if len(x) == 90])  # the only batch of that size
    assert not any((row * 255).round().to(torch.uint8).numpy().tobytes() in known for row in calibration.flatten(1))
    assert (label_of(calibration) != 3).all()


def test_what_is_missing_is_said_before_anything_is_trained():
    def never(images):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=r"90 calibration scores cannot give a false-alarm rate of 0\.001: 999 are"):
        heldout_class(never, TRAIN, TEST, heldout=3, fpr=0.001)
    leaky = ArrayDataset(torch.cat([TRAIN.x, TEST.x[:2]]), torch.cat([TRAIN.y, TEST.y[:2]]), CLASSES, "leaky")
    with pytest.raises(ValueError, match=r"2 of the 1002 examples of leaky are also in test.*drop_shared"):
        heldout_class(never, leaky, TEST, heldout=3)
    assert torch.equal(drop_shared(leaky, TEST).x, TRAIN.x)
    for other, message in {
        dataclasses.replace(TEST, x=(TEST.x > 99).to(torch.uint8) * 255): "test is preprocessed otherwise than train",
        dataclasses.replace(TEST, preprocessing=("resized to 4x4, bilinear",)): "resized to 4x4",
        dataclasses.replace(TEST, x=TEST.images() * 0.7): "continuous",
        dataclasses.replace(TEST, classes=tuple("abcdefghij")): "other classes",
    }.items():
        with pytest.raises(ValueError, match=message):
            heldout_class(never, TRAIN, other, heldout=3)
    with pytest.raises(ValueError, match="unknown class 'x'"):
        heldout_class(never, TRAIN, TEST, heldout="x")
    with pytest.raises(ValueError, match="population is empty"):
        heldout_class(never, TRAIN, TEST.subset((TEST.y != 3).nonzero().squeeze(1)), heldout=3)


def test_far_data_sets_pass_the_same_checks():
    def never(images):
        raise AssertionError("trained")

    make, others = (lambda images: Scored(noise_of).fit(images)), {"other": made_up(300, 3, "other")}
    found = unseen_datasets(make, TRAIN, TEST, others)["populations"]["other"]
    assert (found["n_id"], found["n_ood"]) == (500, 300)
    with pytest.raises(ValueError, match="examples of train are also in itself"):
        unseen_datasets(never, TRAIN, TEST, {"itself": dataclasses.replace(TRAIN, name="itself")})
    resized = dataclasses.replace(others["other"], preprocessing=("resized to 4x4, bilinear",))
    with pytest.raises(ValueError, match="other is preprocessed otherwise than train"):
        unseen_datasets(never, TRAIN, TEST, {"resized": resized})


def test_fingerprints_tell_what_was_done():
    floats = dataclasses.replace(TEST, x=TEST.images())
    assert check_same_preprocessing(TRAIN, TEST, floats) == "(1, 4, 4), 8-bit, as read"
    assert preprocessing_fingerprint(dataclasses.replace(floats, x=floats.x.round())) == "(1, 4, 4), binary, as read"
    assert TRAIN.subset(torch.arange(3)).preprocessing == TRAIN.preprocessing


def test_sanity_images_have_the_levels_of_the_training_images():
    binary = [dataclasses.replace(d, x=(d.x > 99).to(torch.uint8) * 255) for d in (TRAIN, TEST)]
    train, test = (drop_shared(binary[0], binary[1]), binary[1])
    detector = Scored(noise_of)
    found = heldout_class(detector, train, test, heldout=3)
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for x in detector.seen)
    assert found["sanity"]["constant"]["n_ood"] == 2
    assert found["sanity"]["noise"]["n_ood"] == 256


def test_the_literature_trains_on_four_fifths_and_tests_on_all_anomalies():
    sizes = []

    def make(images):
        sizes.append(len(images))
        return Scored(oracle(3)).fit(images)

    found = anomalous_class(make, TRAIN, TEST, anomaly=3, seed=5)
    assert sizes == [972]  # 0.9 * 0.8 * 1350
    assert (found["n_id"], found["n_ood"], found["fifth_of_anomalies"]["n_ood"]) == (270, 150, 30)
    assert found["aupr"] == found["fifth_of_anomalies"]["aupr"] == 100
    assert found["prevalence"] == pytest.approx(100 * 150 / 420)
    twice = ArrayDataset(torch.cat([TRAIN.x, TEST.x]), torch.cat([TRAIN.y, TEST.y]), CLASSES, "twice")
    with pytest.raises(ValueError, match="are also in the normal test part"):
        anomalous_class(make, twice, TEST, anomaly=3)


def test_candidates_are_functions_detectors_or_models():
    torch.manual_seed(0)
    vae = VAE((1, 4, 4), latent_dim=2, architecture="mlp", width=4, quantization="stochastic").eval()
    found = heldout_class(vae, TRAIN, TEST, heldout=3)
    assert found["detector"].startswith("Likelihood(")
    fitted = Scored(oracle(3)).fit(TEST.images())
    assert heldout_class(fitted, TRAIN, TEST, heldout=3)["aupr"] == 100
    assert fitted.statistics["n"] == 500  # not fitted again
    with pytest.raises(TypeError, match="use Discriminator"):
        heldout_class(DCGAN((1, 4, 4), latent_dim=2, width=2).eval(), TRAIN, TEST, heldout=3)
    with pytest.raises(TypeError, match="must return a fitted detector, it returned a ArrayDataset"):
        heldout_class(lambda images: images, TRAIN, TEST, heldout=3)
    with pytest.raises(TypeError, match="got int"):
        heldout_class(3, TRAIN, TEST, heldout=3)
    with pytest.raises(TypeError, match="trains once for each class"):
        heldout_benchmark(vae, TRAIN, TEST)


@pytest.mark.parametrize(
    ("table", "means", "medians"),
    [
        (table_4_1, (33.85, 25.74, 29.99, 13.25), (37.50, 25.03, 30.64, 9.71)),
        (table_4_2, (19.08, 11.51, 10.64, 11.29), (14.24, 8.70, 10.24, 11.35)),
    ],
)
def test_published_columns_have_the_published_means_and_medians(table, means, medians):
    numbers = torch.tensor(list(table.PUBLISHED.values()), dtype=torch.float64)
    assert torch.allclose(numbers.mean(0), torch.tensor(means, dtype=torch.float64), atol=0.0101, rtol=0)
    assert torch.allclose(numbers.quantile(0.5, 0), torch.tensor(medians, dtype=torch.float64), atol=0.0051, rtol=0)


def test_the_published_digit_1_lies_on_the_floor():
    """980 to 1135 positives of 10,000: the lowest areas are those that the table's digits 0 and 1 would have there."""
    floor = {n: compared(torch.arange(10_000.0 - n) + n, torch.arange(float(n)))["minimum"] for n in (980, 1135)}
    assert (round(floor[980], 2), round(floor[1135], 2)) == (5.07, 5.91)
    assert all(value - floor[1135] < 0.2 for value in table_4_1.PUBLISHED["1"])


def test_a_callers_own_detector_is_copied():
    train, test = digits("train"), digits("test")
    own = NearestNeighbour()
    reused = [heldout_class(own, train, test, heldout=c)["aupr"] for c in (3, 4)]
    fresh = [heldout_class(NearestNeighbour(), train, test, heldout=c)["aupr"] for c in (3, 4)]
    assert reused == fresh
    assert own.statistics_ is None
    fitted = NearestNeighbour().fit(train.images()[:100]).calibrate(train.images()[100:150])
    before = fitted.calibration_
    heldout_class(fitted, train, test, heldout=3)
    assert fitted.calibration_ is before


def test_what_is_no_candidate_or_class_is_told():
    train, test = digits("train"), digits("test")
    with pytest.raises(TypeError, match="got Linear"):
        heldout_class(torch.nn.Linear(2, 2), train, test, heldout=0)
    with pytest.raises(TypeError, match="an int, or its name"):
        heldout_class(NearestNeighbour(), train, test, heldout=3.0)
    with pytest.raises(ValueError, match="classes is empty"):
        heldout_benchmark(lambda x: NearestNeighbour().fit(x), train, test, classes=[])
