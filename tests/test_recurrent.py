"""Text, recurrent networks, their fortified states over time, the drift monitor and attacks on embedded inputs."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robustgen
from robustgen.attacks import FGSM, PGD, EmbeddedInput
from robustgen.calibration import ConformalCalibration
from robustgen.data import TEXT8, babble, decode, encode, load_text, normalise, split_text, windows
from robustgen.fortified import (
    FortifiedObjective,
    LanguageModelObjective,
    SequenceMonitor,
    fortify,
    free_run,
    step_errors,
)
from robustgen.model import logits_of, output_tensor
from robustgen.recurrent_networks import CharLM, TextClassifier
from robustgen.training import Batch, Trainer

SPAN = 40  # steps of a monitored sequence; windows hold one symbol more
KINDS = ["lstm", "gru", "rnn"]


def symbols(n, length, seed=0, high=27):
    return torch.randint(high, (n, length), generator=torch.Generator().manual_seed(seed))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


class SequenceFirst(CharLM):
    """The same language model around a sequence-first RNN."""

    def __init__(self, kind, units):
        super().__init__(kind, units)
        self.rnn.batch_first = False

    def forward(self, tokens, state=None):
        h, state = self.rnn(self.embedding(tokens.T), state)
        return self.out(h).transpose(0, 1), state


def language_model(kind, form):
    """An untrained fortified language model in float64; ``form`` is batch_first, sequence_first or cell."""
    model = SequenceFirst(kind, 8) if form == "sequence_first" else CharLM(kind, 8, stepwise=form == "cell")
    return fortify(model.double(), ["rnn"], example_input=symbols(3, 4), init="random").eval()


def watch(monitor, tokens):
    """The readings of a monitor on sequences (N, T), one step at a time."""
    monitor.reset()
    readings, state = [], None
    for t in range(tokens.shape[1]):
        readings.append(monitor.step(tokens[:, t : t + 1], state))
        state = readings[-1].output[1]
    return readings


def snapshot(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [list(m._forward_hooks.values()) for m in model.modules()],
        torch.get_rng_state(),
    )


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])


@pytest.fixture(scope="module")
def trained():
    """A fortified LSTM that models babble, and the parts of the text."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = split_text(encode(babble(60000)), (0.6, 0.2, 0.2), block=SPAN + 1)
    net = fortify(CharLM("lstm", 48), ["rnn"], example_input=parts[0][:2], hidden=24, noise_std=0.3)
    trainer = Trainer(
        LanguageModelObjective(lambda_rec=1.0), optimizer=adam, epochs=6, batch_size=32, clip_norm=1.0, progress=False
    )
    history = trainer.fit(net, parts[0], val=parts[2])
    return net.eval(), parts, history


class TestText:
    def test_normalisation_is_that_of_text8(self):
        assert normalise("In 1984, [[Ünïted]] KINGDOM\n\nA.B") == "in one nine eight four n ted kingdom a b"
        assert normalise("\u212a") == " "  # a Kelvin sign is no k
        assert normalise("") == ""

    def test_encode_and_decode_are_inverse(self):
        assert torch.equal(encode(TEXT8), torch.arange(27))
        assert encode("ab").dtype == torch.int64
        text = babble(500, seed=3)
        assert decode(encode(text)) == text
        with pytest.raises(ValueError, match=r"'É' at position 2"):
            encode("a É")
        with pytest.raises(ValueError, match=r"\[0, 27\], outside \[0, 27\)"):
            decode(torch.tensor([0, 27]))
        with pytest.raises(ValueError, match="1-D"):
            decode(torch.zeros(2, 2))

    def test_files(self, tmp_path):
        path = tmp_path / "t.txt"
        path.write_text("Zoë has 2 cats.\n", encoding="utf-8")
        assert decode(load_text(path)) == "zo has two cats "
        assert torch.equal(load_text(str(path)), load_text(path))
        with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
            load_text(tmp_path / "none.txt")
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_text(tmp_path)
        path.write_text("!?\n ...")
        with pytest.raises(ValueError, match=r"t\.txt: the text is empty"):
            load_text(path)
        path.write_bytes("Zoë".encode("latin-1"))
        with pytest.raises(ValueError, match=r"t\.txt: not UTF-8 text \(byte 2\)"):
            load_text(path)

    def test_babble_is_seeded_and_a_longer_text_begins_with_the_shorter(self):
        text = babble(20000)
        assert len(text) == 20000
        assert text[:333] == babble(333)
        assert babble(333, seed=1) != babble(333)
        assert normalise(text) == text
        assert babble(0) == ""
        with pytest.raises(ValueError, match="negative"):
            babble(-1)

    def test_windows_do_not_overlap(self):
        found = windows(torch.arange(23), 5)
        assert torch.equal(found, torch.arange(20).reshape(4, 5))
        rows = windows(torch.arange(14).reshape(2, 7), 3)
        assert torch.equal(rows, torch.tensor([[0, 1, 2], [3, 4, 5], [7, 8, 9], [10, 11, 12]]))
        drawn = windows(torch.arange(1000), 5, n=50, seed=1)
        assert torch.equal(drawn, windows(torch.arange(1000), 5, n=50, seed=1))
        assert not torch.equal(drawn, windows(torch.arange(1000), 5, n=50, seed=2))
        assert len(drawn[:, 0].unique()) == 50
        assert set(drawn[:, 0].tolist()) <= set(range(0, 1000, 5))
        for wrong, message in (({"length": 24}, "between 1 and 23"), ({"length": 5, "n": 5}, "the text holds 4")):
            with pytest.raises(ValueError, match=message):
                windows(torch.arange(23), **wrong)
        with pytest.raises(ValueError, match=r"\(T,\) or \(B, T\)"):
            windows(torch.zeros(1, 2, 3), 1)

    def test_parts_are_whole_blocks_dealt_at_random(self):
        text = torch.arange(1003)
        parts = split_text(text, (0.5, 0.3, 0.2), block=10, seed=4)
        assert [tuple(part.shape) for part in parts] == [(50, 10), (30, 10), (20, 10)]
        blocks = torch.cat(parts)
        assert torch.equal(blocks, blocks[:, :1] + torch.arange(10))
        assert torch.equal(blocks[:, 0].sort().values, torch.arange(0, 1000, 10))
        assert not torch.equal(parts[0][:, 0].sort().values, torch.arange(0, 500, 10))
        assert not torch.equal(parts[0], split_text(text, (0.5, 0.3, 0.2), block=10, seed=5)[0])
        assert len(split_text(text, (0.1,), block=10)[0]) == 10
        for fractions, block, message in (((0.9, 0.2), 10, "sum to at most 1"), ((0.99, 0.01), 100, "too few")):
            with pytest.raises(ValueError, match=message):
                split_text(text, fractions, block=block)
        with pytest.raises(ValueError, match="between 1 and 1003"):
            split_text(text, (1.0,), block=2000)


class TestNetworks:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("stepwise", [False, True])
    def test_a_language_model_in_two_pieces_is_the_same(self, kind, stepwise):
        model, tokens = CharLM(kind, 6, stepwise=stepwise).double(), symbols(3, 7)
        logits, state = model(tokens)
        assert logits.shape == (3, 7, 27)
        first, between = model(tokens[:, :4])
        second, after = model(tokens[:, 4:], between)
        assert torch.allclose(torch.cat([first, second], 1), logits)
        assert torch.allclose(after[0], state[0])

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_cell_and_a_layer_of_the_same_weights_agree(self, kind):
        layer, cell = CharLM(kind, 6, embedding=4).double(), CharLM(kind, 6, embedding=4, stepwise=True).double()
        cell.load_state_dict({k.replace("_l0", ""): v for k, v in layer.state_dict().items()})
        assert torch.allclose(layer(symbols(3, 7))[0], cell(symbols(3, 7))[0])

    def test_a_fortified_cell_feeds_its_decoded_state_back(self):
        net, tokens = language_model("gru", "cell"), symbols(3, 5)
        model, ae, h = net.unfortified(), net.autoencoders()[0], None
        for t in range(5):
            h = ae(model.rnn(model.embedding(tokens[:, t]), h))
            assert torch.allclose(net(tokens)[:, t], model.out(h))
        layer = language_model("gru", "batch_first")  # the recurrence of a layer keeps its own state
        states = layer(tokens, return_states=True)[1]["rnn"][0]
        assert torch.allclose(states, layer.unfortified().rnn(layer.backbone.embedding(tokens))[0])

    def test_a_classifier_reads_the_fortified_output(self, recwarn):
        tokens = symbols(3, 7)
        net = fortify(TextClassifier("lstm", 6, n_classes=4), ["rnn"], example_input=tokens).eval()
        assert net(tokens).shape == (3, 4)
        assert not torch.equal(net(tokens), net.unfortified()(tokens))
        assert not len(recwarn)  # fortify warns of layers without effect

    @pytest.mark.parametrize("make", [CharLM, TextClassifier])
    def test_wrong_arguments(self, make):
        with pytest.raises(ValueError, match=r"unknown recurrent layer 'lstn'; did you mean 'lstm'"):
            make("lstn")
        with pytest.raises(TypeError, match=r"int64, got torch\.float32"):
            make("rnn", 4)(torch.zeros(2, 3))
        for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.int64)):
            with pytest.raises(ValueError, match=r"\(N, T\) with T >= 1"):
                make("rnn", 4)(wrong)

    def test_the_first_item_of_a_tuple_is_the_output_but_no_classifier_s(self):
        x = torch.zeros(2, 3)
        assert output_tensor((x, None)) is x
        assert output_tensor([x]) is x
        for wrong in ((), (None, x), {"logits": x}):
            with pytest.raises(TypeError, match="must return a tensor"):
                output_tensor(wrong)
        with pytest.raises(TypeError, match="not tuple"):
            logits_of((x, None))


class TestObjective:
    batch = Batch(symbols(5, 9), None, torch.arange(5))

    def net(self, stepwise=False, noise_std=0.0):
        torch.manual_seed(0)
        model = CharLM("lstm", 6, stepwise=stepwise).double()
        return fortify(model, ["embedding", "rnn"], example_input=symbols(2, 4), noise_std=noise_std, init="random")

    @pytest.mark.parametrize("stepwise", [False, True])
    def test_is_its_formula(self, stepwise):
        net = self.net(stepwise)
        found = LanguageModelObjective(lambda_rec=0.3)(net, self.batch, 0)
        x = self.batch.x
        log_p = net(x[:, :-1]).log_softmax(-1)
        nll = -torch.stack([log_p[i, t, x[i, t + 1]] for i in range(5) for t in range(8)]).mean()
        rec = step_errors(net, x[:, :-1], layer="rnn").mean()
        rec = rec + step_errors(net, x[:, :-1], layer="embedding").mean()
        assert torch.allclose(found["loss"], nll + 0.3 * rec)
        assert torch.allclose(found["nll"], nll)
        assert torch.allclose(found["bits_per_character"], nll / math.log(2))
        assert torch.allclose(found["rec_loss"], rec)
        states = net(x[:, :-1], return_states=True)[1]
        h = torch.stack([s for name, (s, _) in states.items() if name.startswith("rnn")])
        relative = step_errors(net, x[:, :-1], layer="rnn").mean() / h.square().mean()
        assert torch.allclose(found["relative_error/rnn"], relative)
        assert sorted(n for n in found if "/" in n) == ["relative_error/embedding", "relative_error/rnn"]

    def test_detached_states_train_the_autoencoders_only(self):
        gradients = []
        for options in ({"lambda_rec": 0.0}, {"lambda_rec": 5.0}, {"lambda_rec": 5.0, "detach_states": True}):
            net = self.net()
            LanguageModelObjective(**options)(net, self.batch, 0)["loss"].backward()
            gradients.append({k: p.grad.clone() for k, p in net.named_parameters()})
        none, joint, detached = gradients
        for name in none:
            assert torch.allclose(detached[name], none[name]) == name.startswith("backbone"), name
        assert not torch.allclose(joint["backbone.rnn.weight_hh_l0"], none["backbone.rnn.weight_hh_l0"])

    def test_training_learns_the_text_and_is_logged(self, trained):
        _, parts, history = trained
        counts = torch.bincount(parts[0].flatten(), minlength=27).double()
        unigram = -(counts / counts.sum()).log2()[parts[2]].mean()
        assert history[-1]["val_bits_per_character"] < 0.5 * unigram
        error = [row["val_relative_error/rnn"] for row in history]  # the loss itself grows with the states
        assert 0 < error[-1] < 0.6 * error[0]

    def test_a_killed_run_resumes_and_names_another_weight(self, tmp_path):
        data = symbols(8, 6)
        make = partial(Trainer, batch_size=4, progress=False)
        whole = make(LanguageModelObjective(), epochs=2).fit(self.net(noise_std=0.1), data)
        make(LanguageModelObjective(), epochs=1, run_dir=tmp_path).fit(self.net(noise_std=0.1), data)
        trainer = make(LanguageModelObjective(), epochs=2, run_dir=tmp_path, resume=True)
        assert trainer.fit(self.net(noise_std=0.1), data) == whole
        other = make(LanguageModelObjective(lambda_rec=0.7), epochs=2, run_dir=tmp_path, resume=True)
        with pytest.raises(ValueError, match=r"lambda_rec was 0\.1, now 0\.7"):
            other.fit(self.net(noise_std=0.1), data)

    def test_wrong_settings_and_data(self):
        for wrong in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="lambda_rec"):
                LanguageModelObjective(lambda_rec=wrong)
        with pytest.raises(TypeError, match="FortifiedNetwork, not CharLM"):
            LanguageModelObjective()(CharLM("rnn", 4), self.batch, 0)
        for x, error, message in (
            (torch.zeros(2, 3), TypeError, r"int64 symbols, got torch\.float32"),
            (symbols(2, 1), ValueError, r"\(N, T \+ 1\)"),
            (torch.tensor([[1, 27]]), ValueError, r"label 27, outside \[0, 27\)"),
        ):
            with pytest.raises(error, match=message):
                LanguageModelObjective()(self.net(), Batch(x, None, torch.arange(len(x))), 0)
        classifier = fortify(TextClassifier("rnn", 4), ["rnn"], example_input=symbols(2, 4))
        with pytest.raises(ValueError, match=r"logits \(N, T, C\); got \(5, 2\)"):
            LanguageModelObjective()(classifier, self.batch, 0)


def test_held_out_corrupted_states_are_really_denoised(trained):
    net, (_, _, test), _ = trained
    with torch.no_grad():
        state = net(test[:, :-1], return_states=True)[1]["rnn"][0]
        ae = net.autoencoders()[0]
        noise = ae.noise_std * torch.randn_like(state)
        after, before = (ae(state + noise) - state).norm(dim=-1), noise.norm(dim=-1)
    assert after.mean() < 0.95 * before.mean()
    assert (after < before).float().mean() > 0.6


class TestStepErrors:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", ["batch_first", "sequence_first", "cell"])
    def test_they_are_the_errors_at_each_step(self, kind, form):
        net, tokens = language_model(kind, form), symbols(5, 6)
        errors = step_errors(net, tokens)
        assert errors.shape == (5, 6)
        assert errors.dtype == torch.float64
        assert torch.allclose(errors.mean(1), net.reconstruction_errors(tokens)["rnn"])
        for t in (1, 4):  # what comes later has no influence
            assert torch.allclose(step_errors(net, tokens[:, :t]), errors[:, :t])
        ae = net.autoencoders()[0]
        h = net(tokens[2:3, :1], return_states=True)[1]["rnn"][0].flatten()
        assert torch.allclose(errors[2, 0], (ae(h) - h).square().mean())
        assert torch.allclose(step_errors(net, tokens, relative=True)[2, 0], errors[2, 0] / h.square().mean())

    def test_leaves_no_trace(self):
        net = fortify(
            CharLM("lstm", 6), ["embedding", "rnn"], example_input=symbols(3, 4), noise_at_test=True, noise_std=0.5
        )
        net.train()
        net.backbone.out.eval()
        before = snapshot(net)
        errors = step_errors(net, symbols(3, 4), layer="rnn")
        assert_same(before, snapshot(net))
        assert not errors.requires_grad
        assert torch.equal(errors, step_errors(net, symbols(3, 4), layer="rnn"))
        assert not torch.equal(errors, step_errors(net, symbols(3, 4), layer="rnn", seed=1))

    def test_what_cannot_be_watched(self):
        tokens = symbols(3, 4)
        two = fortify(CharLM("rnn", 6), ["embedding", "rnn"], example_input=tokens)
        with pytest.raises(ValueError, match="several fortified layers, name one: 'embedding', 'rnn'"):
            step_errors(two, tokens)
        with pytest.raises(ValueError, match="unknown layer 'rn'; did you mean 'rnn'"):
            step_errors(two, tokens, layer="rn")
        with pytest.raises(TypeError, match="FortifiedNetwork is needed"):
            step_errors(CharLM("rnn", 6), tokens)
        both = TextClassifier("gru", 6)
        both.rnn, both.out = nn.GRU(27, 6, batch_first=True, bidirectional=True), nn.Linear(12, 2)
        with pytest.raises(ValueError, match="'rnn' is bidirectional"):
            step_errors(fortify(both, ["rnn"], example_input=tokens), tokens)
        image = torch.rand(2, 1, 4, 4)
        conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        with pytest.raises(ValueError, match="without time steps"):
            step_errors(fortify(conv, ["0"], example_input=image), image)
        on_input = fortify(conv, [], example_input=image, input_autoencoder=True)
        with pytest.raises(ValueError, match="only an autoencoder on its input"):
            step_errors(on_input, image)


class TestFreeRun:
    @pytest.mark.parametrize("form", ["batch_first", "sequence_first", "cell"])
    def test_errors_are_those_of_reading_what_it_wrote(self, form):
        net, prompt = language_model("lstm", form), symbols(4, 5)
        before = snapshot(net)
        run = free_run(net, prompt, 7)
        assert_same(before, snapshot(net))
        assert run.tokens.shape == run.errors.shape == (4, 7)
        assert torch.allclose(run.errors, step_errors(net, torch.cat([prompt, run.tokens], 1))[:, 5:], atol=1e-12)

    def test_a_row_does_not_depend_on_its_batch(self):
        net, prompt, ids = language_model("gru", "batch_first"), symbols(4, 5), torch.tensor([7, -1, 0, 3])
        whole = free_run(net, prompt, 20, ids=ids, seed=3)
        for k in range(4):
            assert torch.equal(
                free_run(net, prompt[k : k + 1], 20, ids=ids[k : k + 1], seed=3).tokens[0], whole.tokens[k]
            )
        assert torch.equal(free_run(net, prompt, 9, ids=ids, seed=3).tokens, whole.tokens[:, :9])
        assert not torch.equal(free_run(net, prompt, 20, ids=ids, seed=4).tokens, whole.tokens)

    def test_samples_have_the_model_s_distribution(self):
        """Symbols drawn in the first step against the softmax of the prompt's logits, at two temperatures."""
        net = fortify(CharLM("rnn", 6, n_symbols=5), ["rnn"], example_input=symbols(2, 3, high=5)).eval()
        net.backbone.out.weight.data.mul_(6)
        prompt = symbols(1, 3, high=5).expand(5000, 3)
        with torch.no_grad():
            logits = net(prompt[:1])[0, -1].double()
        for temperature in (1.0, 0.4):
            p = (logits / temperature).softmax(-1)
            drawn = free_run(net, prompt, 1, temperature=temperature).tokens[:, 0].bincount(minlength=5) / 5000
            assert ((drawn - p).abs() < 4 * (p * (1 - p) / 5000).sqrt() + 1e-3).all()
        coldest = free_run(net, prompt[:9], 1, temperature=1e-6).tokens
        assert (coldest == logits.argmax()).all()

    def test_every_step_draws_anew(self):
        net = language_model("rnn", "batch_first")
        net.backbone.out.weight.data.zero_()
        net.backbone.out.bias.data.zero_()
        counts = (
            free_run(net, symbols(30, 2), 270).tokens.flatten().bincount(minlength=27)
        )  # uniform, whatever it reads
        assert ((counts - 300).abs() < 5 * 300**0.5).all()

    def test_a_trained_model_writes_words(self, trained):
        net, (train, _, test), _ = trained
        known = set(" ".join(map(decode, train)).split())
        run = free_run(net, test[:20, :10], 100)
        words = [word for row in run.tokens for word in decode(row).split()[1:-1]]
        assert sum(word in known for word in words) > 0.6 * len(words)

    def test_wrong_arguments(self):
        net, prompt = language_model("rnn", "batch_first"), symbols(2, 3)
        for options, error, message in (
            ({"n_steps": 0}, ValueError, "n_steps"),
            ({"temperature": 0.0}, ValueError, "temperature"),
            ({"prompt": prompt.float()}, TypeError, "int64"),
            ({"prompt": prompt[:, :0]}, ValueError, "P >= 1"),
            ({"ids": torch.arange(3)}, ValueError, "ids"),
        ):
            with pytest.raises(error, match=message):
                free_run(net, **({"prompt": prompt, "n_steps": 2} | options))
        classifier = fortify(TextClassifier("rnn", 6), ["rnn"], example_input=prompt)
        with pytest.raises(TypeError, match=r"return \(logits, state\), got Tensor"):
            free_run(classifier, prompt, 2)
        net.backbone.out.bias.data[3] = float("nan")
        with pytest.raises(ValueError, match="NaN or Inf logits"):
            free_run(net, prompt, 2)


class TestMonitor:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", ["batch_first", "sequence_first", "cell"])
    @pytest.mark.parametrize("relative", [False, True])
    def test_step_by_step_is_teacher_forcing_at_once(self, kind, form, relative):
        net, calibration, tokens = language_model(kind, form), symbols(30, 12), symbols(40, 12, seed=1)
        monitor = SequenceMonitor(net, calibration, window=4, relative=relative, fpr=0.2, batch_size=7)
        readings = watch(monitor, tokens)
        assert torch.allclose(readings[-1].output[0][:, -1], net(tokens)[:, -1], atol=1e-12)

        def running_maxima(x):
            return step_errors(net, x, relative=relative).unfold(1, 4, 1).mean(-1).cummax(1).values

        conformal = ConformalCalibration(running_maxima(calibration)[:, -1])
        maxima = running_maxima(tokens)
        p = torch.stack([torch.ones(40).double()] * 3 + [conformal.p_value(column) for column in maxima.T], dim=1)
        assert torch.equal(torch.stack([r.p_value for r in readings], 1), p)
        first = [next((t for t in range(12) if row[t] <= 0.2), -1) for row in p.tolist()]
        assert readings[-1].drift_step.tolist() == first
        assert max(first) >= 3  # some are flagged,
        assert min(first) == -1  # some are not
        errors = torch.stack([r.error for r in readings], 1)
        assert torch.allclose(errors, step_errors(net, tokens, relative=relative), rtol=1e-12, atol=0)

    def test_false_alarms_and_detection(self, trained):
        """On held-out text flags are Beta-binomial around fpr; three standard deviations are allowed for."""
        net, (_, calibration, test), _ = trained
        fpr = 0.1
        monitor = SequenceMonitor(net, calibration[:, :-1], window=10, fpr=fpr)
        text = test[:, :-1]
        alarms = (watch(monitor, text)[-1].drift_step >= 0).double().mean()
        spread = math.sqrt(fpr * (1 - fpr) * (1 / len(calibration) + 1 / len(text)))
        assert alarms <= fpr + 3 * spread
        assert alarms >= fpr - 3 * spread  # a monitor that never rings has no power either
        order = torch.rand(text.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
        for foreign in (text.gather(1, order), text.flip(1), symbols(len(text), SPAN)):
            last = watch(monitor, foreign)[-1]
            assert (last.drift_step >= 0).double().mean() > 0.8
            assert last.drift_step.max() < SPAN
            assert last.drift_step[last.drift_step >= 0].min() >= 9  # not before the window is full

    @pytest.mark.parametrize("fpr", [0.05, 0.1])
    def test_false_alarms_are_at_most_nominal_over_many_deals(self, trained, fpr):
        """The guarantee is an average over deals of calibration and test text, so it is tested as one."""
        net, (_, calibration, test), _ = trained
        text = torch.cat([calibration, test])[:, :-1]
        scores = SequenceMonitor(net, text, window=10).calibration.scores  # each one's worst window
        generator, half = torch.Generator().manual_seed(0), len(text) // 2
        rates = []
        for _ in range(400):
            order = torch.randperm(len(text), generator=generator)
            known = ConformalCalibration(scores[order[:half]])
            rates.append(known.flag(scores[order[half:]], fpr).double().mean())
        rate, error = torch.stack(rates).mean(), torch.stack(rates).std() / 20
        assert error < 0.002
        assert fpr - 3 * error - 1 / (half + 1) <= rate <= fpr + 3 * error

    def test_drift_is_found_soon_after_it_begins(self, trained):
        net, (_, calibration, test), _ = trained
        monitor = SequenceMonitor(net, calibration[:, :-1], window=8, fpr=0.05)
        text = test[:200, :-1].clone()
        text[:, 20:] = symbols(200, SPAN - 20)
        found = watch(monitor, text)[-1].drift_step
        before = ((found >= 0) & (found < 20)).double().mean()
        assert before <= 0.05 + 3 * math.sqrt(0.05 * 0.95 * (1 / len(calibration) + 1 / 200))
        assert (found >= 20).double().mean() > 0.8
        assert found[found >= 20].double().median() < 32

    def test_leaves_no_trace_and_hands_the_output_on(self):
        net = fortify(CharLM("lstm", 6), ["rnn"], example_input=symbols(3, 4), noise_at_test=True, noise_std=0.5)
        net.train()
        net.backbone.out.eval()
        tokens = symbols(20, 6)
        before = snapshot(net)
        monitor = SequenceMonitor(net, tokens, window=2)
        readings = watch(monitor, tokens[:3])
        assert_same(before, snapshot(net))
        logits, state = readings[-1].output
        assert logits.shape == (3, 1, 27)
        assert not logits.requires_grad
        assert state[0].shape == (1, 3, 6)
        again = watch(SequenceMonitor(net, tokens, window=2), tokens[:3])
        assert torch.equal(again[-1].error, readings[-1].error)
        assert not torch.equal(watch(monitor, tokens[:3])[-1].error, readings[-1].error)  # fresh noise after a reset
        assert_same(before, snapshot(net))

    def test_steps_that_cannot_be_taken_do_not_count(self):
        net, tokens = language_model("lstm", "batch_first"), symbols(20, 6)
        monitor = SequenceMonitor(net, tokens, window=2)
        assert monitor.horizon == 6
        expected = watch(monitor, tokens[:3])
        with pytest.raises(ValueError, match=r"sequences of 6 steps: reset\(\) it"):
            monitor.step(tokens[:3, :1], None)
        monitor.reset()
        state = None
        for t in range(6):
            with pytest.raises(ValueError, match="one time step a call: layer 'rnn' made 2"):
                monitor.step(tokens[:3, :2], state)
            if t:
                with pytest.raises(ValueError, match="3 sequences until now, 4 in this step"):
                    monitor.step(tokens[:4, :1])
            reading = monitor.step(tokens[:3, t : t + 1], state)
            state = reading.output[1]
            assert torch.equal(reading.p_value, expected[t].p_value)
        monitor.reset()
        assert monitor.step(tokens[:4, :1]).drift_step.tolist() == [-1] * 4

    def test_wrong_calibration(self):
        net, tokens = language_model("rnn", "cell"), symbols(20, 6)
        for wrong, message in (
            ({"window": 7}, "6 steps are shorter than the window of 7"),
            ({"window": 0}, "window must be at least 1"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"window": 2, "fpr": 0.04}, "20 calibration scores cannot give a false-alarm rate of 0.04"),
            ({"window": 2, "layer": "rn"}, "did you mean 'rnn'"),
            ({"calibration": tokens[:0]}, "no calibration sequences"),
        ):
            with pytest.raises(ValueError, match=message):
                SequenceMonitor(net, **({"calibration": tokens} | wrong))
        with pytest.raises(TypeError, match="FortifiedNetwork is needed"):
            SequenceMonitor(CharLM("rnn", 6), tokens)
        net.backbone.out.weight.data.fill_(float("nan"))
        SequenceMonitor(net, tokens, window=2)  # the read-out is not watched, the state is
        net.backbone.rnn.bias_hh.data.fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            SequenceMonitor(net, tokens, window=2)

    def test_is_public(self):
        assert robustgen.SequenceMonitor is SequenceMonitor


class TestEmbeddedInput:
    @pytest.fixture(scope="class")
    @staticmethod
    def classifier():
        """A fortified classifier of text read forwards and backwards, and held-out text with labels."""
        torch.manual_seed(0)
        torch.set_num_threads(1)
        text = windows(encode(babble(16000)), 20)
        x = torch.cat([text, text.flip(1)])
        y = torch.arange(2).repeat_interleave(len(text))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = x[order], y[order]
        net = fortify(TextClassifier("gru", 24, embedding=8), ["rnn"], example_input=x[:2])
        Trainer(FortifiedObjective(), optimizer=adam, epochs=4, batch_size=32, progress=False).fit(
            net, (x[100:], y[100:])
        )
        return net.eval(), x[:100], y[:100]

    @pytest.mark.parametrize("layer", ["embedding", "backbone.embedding"])
    def test_is_the_model_on_embedded_tokens(self, classifier, layer):
        net, x, _ = classifier
        view = EmbeddedInput(net, layer)
        e = view.embed(x)
        assert e.shape == (100, 20, 8)
        assert torch.equal(e, net.backbone.embedding.weight[x])
        assert not e.requires_grad
        assert torch.equal(view(e), net(x))
        square = view.embed(x[:20])
        assert torch.equal(view(square), net(x[:20]))  # as many examples as steps
        assert not torch.equal(view(e + 1), view(e))
        assert torch.equal(EmbeddedInput(net.unfortified())(e), net.unfortified()(x))

    @pytest.mark.parametrize("norm", ["L2", "Linf"])
    def test_attacks_stay_in_their_ball_and_lower_the_accuracy(self, classifier, norm):
        net, x, y = classifier
        view, eps = EmbeddedInput(net), {"L2": 4.0, "Linf": 0.4}[norm]
        e = view.embed(x)
        before = snapshot(net)
        result = PGD(eps=eps, norm=norm, steps=10, bounds=(-6.0, 6.0)).run(view, e, y)
        assert_same(before, snapshot(net))
        delta = (result.x_adv.double() - e.double()).flatten(1)
        size = delta.norm(dim=1) if norm == "L2" else delta.abs().amax(1)
        assert (size <= eps).all()
        assert size.max() > 0.5 * eps
        clean = (net(x).argmax(1) == y).double().mean()
        attacked = (view(result.x_adv).argmax(1) == y).double().mean()
        assert clean > 0.9
        assert attacked < clean - 0.3
        assert torch.equal(result.success, view(result.x_adv).argmax(1) != y)

    def test_gradients_are_those_of_the_embedding(self, classifier):
        net, x, y = classifier
        net = copy.deepcopy(net).double()
        view = EmbeddedInput(net)
        e = view.embed(x[:4]).requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(view(e), y[:4], reduction="sum"), e)
        F.cross_entropy(net(x[:4]), y[:4], reduction="sum").backward()
        expected = torch.zeros(27, 8).double().index_add(0, x[:4].flatten(), gradient.flatten(0, 1))
        assert torch.allclose(net.backbone.embedding.weight.grad, expected)

    def test_a_fortified_embedding_decodes_what_it_is_given(self):
        x = symbols(3, 5)
        net = fortify(TextClassifier("rnn", 6), ["embedding"], example_input=x).eval()
        view = EmbeddedInput(net)
        assert torch.equal(view.embed(x), net.backbone.embedding.weight[x])
        assert torch.equal(view(view.embed(x)), net(x))

    def test_flags_and_hooks_stay_as_they_are(self):
        model, x = TextClassifier("rnn", 6), symbols(3, 5)
        model.eval()
        model.rnn.train()
        model.embedding.register_forward_hook(lambda *a: None)
        before = snapshot(model)
        view = EmbeddedInput(model)
        assert not view.training
        FGSM(eps=0.1, bounds=(-6.0, 6.0))(view, view.embed(x), torch.tensor([0, 1, 0]))
        assert_same(before, snapshot(model))
        model.out.register_forward_hook(lambda *a: 1 / 0)
        before = snapshot(model)
        with pytest.raises(ZeroDivisionError):
            view(view.embed(x))
        assert_same(before, snapshot(model))

    def test_models_that_cannot_be_seen_so(self):
        class Other(TextClassifier):
            """Does not hand its tokens to its embedding as they are."""

            def __init__(self, how):
                super().__init__("rnn", 6)
                self.how = how

            def forward(self, tokens):
                return self.out(self.rnn(self.how(self.embedding, tokens))[0][:, -1])

        model, e = TextClassifier("rnn", 6), torch.zeros(5, 5, 27)
        with pytest.raises(ValueError, match="no layer 'embeding'; did you mean 'embedding'"):
            EmbeddedInput(model, "embeding")
        with pytest.raises(TypeError, match=r"'rnn' is not an nn\.Embedding but RNN"):
            EmbeddedInput(model, "rnn")
        with pytest.raises(TypeError, match=r"nn\.Module, got function"):
            EmbeddedInput(lambda x: x)
        with pytest.raises(ValueError, match=r"\(N, T, 27\), got shape \(5, 27\)"):
            EmbeddedInput(model)(e[0])
        for how, message in (
            (lambda embedding, tokens: F.embedding(tokens, embedding.weight), "did not call 'embedding'"),
            (lambda embedding, tokens: embedding(tokens.T).transpose(0, 1), "as they are"),
            (lambda embedding, tokens: torch.stack([embedding(t) for t in tokens.T], 1), "as they are"),
        ):
            with pytest.raises(ValueError, match=message):
                EmbeddedInput(Other(how))(e)

    def test_a_model_that_reads_its_tokens_besides_is_noticed(self):
        class Masked(TextClassifier):
            """Knows its padding by its symbol."""

            def __init__(self, symbol, read, **options):
                super().__init__("rnn", 6)
                self.symbol, self.read = symbol, read
                self.embedding = nn.Embedding(27, 27, **options)

            def forward(self, tokens):
                return self.out(self.read(self.rnn(self.embedding(tokens))[0], tokens == self.symbol))

        def mean(h, padding):
            return h.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True)

        def last(h, padding):
            if bool(padding.all(1).any()):
                raise RuntimeError("length of all samples has to be greater than 0")
            return h[torch.arange(len(h)), (~padding).sum(1) - 1]

        def longest(h, padding):
            return h[torch.arange(len(h)), padding.int().argmax(1)]

        e = torch.randn(2, 9, 27)
        for symbol, options in ((0, {}), (1, {}), (26, {}), (22, {"padding_idx": 22})):
            for read in (mean, last, longest):
                model = Masked(symbol, read, **options)
                before = snapshot(model)
                with pytest.raises(ValueError, match=r"reads its tokens otherwise than through 'embedding'"):
                    EmbeddedInput(model)(e)
                assert_same(before, snapshot(model))
        view = EmbeddedInput(Masked(0, lambda h, _: h.mean(1)))
        calls = []
        view.model.out.register_forward_hook(lambda *_: calls.append(1))
        for _ in range(3):
            view(e)
        assert len(calls) <= 3 + 5  # looked at once
        noisy = fortify(TextClassifier("rnn", 6), ["rnn"], example_input=symbols(2, 5), noise_at_test=True)
        assert EmbeddedInput(noisy)(e).shape == (2, 2)
