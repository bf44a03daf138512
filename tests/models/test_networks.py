"""Our networks and loss against fastai's and torch's."""

import copy
import math

import pytest
import torch
from fastai.text.models import awdlstm, core
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.config.schema import ClassifierConfig, LMConfig, ModelConfig
from ulmfit_dist.data.batches import IGNORED, MicroBatch
from ulmfit_dist.data.classifier_loader import pad_chunks
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.metrics.accumulators import ClassifierMetrics, f1_macro
from ulmfit_dist.models import fused_cross_entropy as loss_module
from ulmfit_dist.models.dropout import RowDropout
from ulmfit_dist.models.encoder import Encoder, Hidden
from ulmfit_dist.models.fused_cross_entropy import DecoderLoss
from ulmfit_dist.models.networks import (
    SentenceEncoder,
    awd_lstm_of,
    build_classifier,
    build_language_model,
    classifier_groups,
    concat_pool,
    encoder_of,
    lm_groups,
)

V = 40
SIZES = ModelConfig(emb_sz=6, n_hid=8, n_layers=3)
FASTAI_SIZES = {"emb_sz": 6, "n_hid": 8, "n_layers": 3}


def language_models(drop_mult: float = 1.0):
    ours = build_language_model(V, SIZES, LMConfig(drop_mult=drop_mult))
    counterpart = core.get_language_model(awdlstm.AWD_LSTM, V, {**awdlstm.awd_lstm_lm_config, **FASTAI_SIZES}, drop_mult)
    counterpart.load_state_dict(ours.state_dict())
    return ours, counterpart


def classifiers(max_len: int = 20):
    ours = build_classifier(V, 3, SIZES, ClassifierConfig(seq_len=5, max_len=max_len, drop_mult=0, head_dropout=0))
    counterpart = core.get_text_classifier(awdlstm.AWD_LSTM, V, 3, 5, FASTAI_SIZES, 0, ps=[0.0], max_len=max_len)
    counterpart.load_state_dict(ours.state_dict())
    return ours, counterpart


def test_states_are_interchangeable_with_fastais():
    for ours, counterpart in (language_models(), classifiers()):
        assert list(ours.state_dict()) == list(counterpart.state_dict())


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_a_seed_gives_fastais_initial_weights(n_layers: int):
    sizes = {**FASTAI_SIZES, "n_layers": n_layers}
    model, lm_config = ModelConfig(**sizes), {**awdlstm.awd_lstm_lm_config, **sizes}
    head = {"lin_ftrs": [7, 5], "y_range": (0.0, 4.0)}
    settings = ClassifierConfig(lin_ftrs=[7, 5], y_range=[0.0, 4.0], head_dropout=0.1)
    builders = [
        lambda: build_language_model(V, model, LMConfig()),
        lambda: core.get_language_model(awdlstm.AWD_LSTM, V, lm_config),
        lambda: build_classifier(V, 1, model, settings),
        lambda: core.get_text_classifier(awdlstm.AWD_LSTM, V, 1, config=sizes, **head),
    ]
    results = []
    for build in builders:
        torch.manual_seed(3)
        results.append([*build().state_dict().items(), ("drawn next", torch.rand(1))])
    for ours, counterpart in (results[:2], results[2:]):
        assert [name for name, _ in ours] == [name for name, _ in counterpart]
        assert all(torch.equal(value, expected) for (_, value), (_, expected) in zip(ours, counterpart, strict=True))


def test_language_model_computes_what_fastais_does_step_after_step():
    ours, counterpart = (model.eval() for model in language_models())
    for _ in range(3):
        x = torch.randint(2, V, (4, 7))
        decoded, raw, dropped = counterpart(x)
        features, our_raw, our_dropped = ours(x)
        torch.testing.assert_close(ours[1].decoder(features), decoded)
        torch.testing.assert_close((our_raw, our_dropped), (raw, dropped))


def test_dropout_of_zero_trains():
    model = build_language_model(V, SIZES, LMConfig(drop_mult=0)).train()
    for _ in range(2):
        model.reset()
        model(torch.randint(2, V, (4, 7)))[0].sum().backward()
    assert all(p.grad is not None for rnn in encoder_of(model).rnns for p in rnn.parameters())


def test_rows_in_turns_keep_their_hidden_states():
    whole, pieces = (build_language_model(V, SIZES, LMConfig()).eval() for _ in range(2))
    pieces.load_state_dict(whole.state_dict())
    for _ in range(3):
        x = torch.randint(2, V, (6, 5))
        outputs = []
        for first in (0, 4):
            encoder_of(pieces).position.rows = range(first, min(first + 4, 6))
            outputs.append(pieces(x[first : first + 4])[0])
        torch.testing.assert_close(torch.cat(outputs), whole(x)[0])


@pytest.mark.parametrize("max_len", [20, 7])
def test_classifier_and_its_gradients_are_fastais(max_len: int):
    ours, counterpart = (model.double() for model in classifiers(max_len))
    x = torch.full((4, 18), 1)
    for row, begin, end in ((0, 0, 18), (1, 0, 16), (2, 5, 16), (3, 10, 16)):
        x[row, begin:end] = torch.randint(2, V, (end - begin,))
    for rnn in counterpart[0].module.rnns:
        rnn.weight_p = 1e-15  # fastai's fails with zero
    y = torch.tensor([0, 1, 2, 0])
    losses = [F.cross_entropy(model.train()(x)[0], y) for model in (ours, counterpart)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, own_part), their in zip(ours.named_parameters(), counterpart.parameters(), strict=True):
        torch.testing.assert_close(own_part.grad, their.grad, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(ours.eval()(x)[0], counterpart.eval()(x)[0])


def test_a_documents_logits_do_not_depend_on_its_batch():
    model = classifiers()[0].eval()
    documents = [torch.randint(2, V, (length,)).numpy() for length in (18, 15, 11, 5, 1)]  # one ends before the last chunk
    alone = torch.cat([model(pad_chunks([document], len(document), 5))[0] for document in documents])
    torch.testing.assert_close(model(pad_chunks(documents, 18, 5))[0], alone)
    torch.testing.assert_close(model(pad_chunks(documents[3:], 18, 5))[0], alone[3:])


@pytest.mark.parametrize("chunk", [16, 10_000])
def test_loss_and_gradients_are_those_of_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(loss_module.CHUNK_TOKENS, "cpu", chunk)
    decoder = nn.Linear(6, V).double()
    x, y = torch.randn(5, 9, 6).double(), torch.randint(0, V, (5, 9))
    expected, ours = (x.clone().requires_grad_(), copy.deepcopy(decoder)), (x.clone().requires_grad_(), decoder)
    reference = F.cross_entropy(expected[1](expected[0]).flatten(0, 1), y.flatten())
    fused = DecoderLoss(decoder, torch.float64)(ours[0], y)
    (3 * reference).backward()
    (3 * fused).backward()
    torch.testing.assert_close(fused, reference)
    torch.testing.assert_close(ours[0].grad, expected[0].grad)
    torch.testing.assert_close(decoder.weight.grad, expected[1].weight.grad)
    torch.testing.assert_close(decoder.bias.grad, expected[1].bias.grad)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gradients_in_each_precision_are_autograds(dtype: torch.dtype, tolerance: float):
    """Relative to the norm of what autograd finds in fp64; the weight is tied to an embedding with a gradient of its own."""
    torch.manual_seed(0)
    embedding, decoder = nn.Embedding(2000, 64), nn.Linear(64, 2000)
    decoder.weight = embedding.weight
    nn.init.uniform_(decoder.weight, -0.5, 0.5)
    words, y = torch.randint(0, 2000, (8, 70)), torch.randint(0, 2000, (8, 70))
    exact_embedding, exact_decoder = copy.deepcopy(embedding).double(), copy.deepcopy(decoder).double()
    exact_decoder.weight = exact_embedding.weight
    loss = DecoderLoss(decoder, dtype)(embedding(words).tanh(), y)
    exact = F.cross_entropy(exact_decoder(exact_embedding(words).tanh()).flatten(0, 1), y.flatten())
    loss.backward()
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=tolerance / 2)
    for actual, expected in zip(decoder.parameters(), exact_decoder.parameters(), strict=True):
        assert (actual.grad.double() - expected.grad).norm() <= tolerance * expected.grad.norm()


def test_scores_count_what_is_not_ignored():
    decoder = nn.Linear(6, V)
    x, y = torch.randn(2, 9, 6), torch.randint(0, V, (2, 9))
    y[1, 4:] = IGNORED
    scores = DecoderLoss(decoder, torch.float32).score(x, y)
    logits = decoder(x).flatten(0, 1)
    kept = y.flatten() != IGNORED
    assert scores.tokens == 13
    assert scores.correct == (logits.argmax(1) == y.flatten())[kept].sum()
    expected = F.cross_entropy(logits[kept], y.flatten()[kept], reduction="sum")
    assert math.isclose(scores.loss.item(), expected.item(), rel_tol=1e-5)


def test_classifier_metrics_are_sklearns():
    from sklearn.metrics import accuracy_score, f1_score

    from ulmfit_dist.config.schema import RuntimeConfig
    from ulmfit_dist.distributed.runtime import Runtime

    metrics, logits, y = ClassifierMetrics(4), torch.randn(50, 4), torch.randint(0, 3, (50,))
    metrics.reset(torch.device("cpu"))
    for rows in (range(0, 30), range(30, 50)):
        part = slice(rows.start, rows.stop)
        metrics.update(logits[part], MicroBatch(torch.empty(0), y[part], rows, 50, 0))
    actual = metrics.compute(Runtime(RuntimeConfig(precision="fp32")))
    guessed = logits.argmax(1)
    assert actual["accuracy"] == pytest.approx(accuracy_score(y, guessed))
    assert actual["f1_macro"] == pytest.approx(f1_score(y, guessed, average="macro"))
    assert actual["valid_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)


def test_f1_leaves_out_classes_that_do_not_occur():
    assert f1_macro(torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 0, 0]])) == 1


class Words(Encoder):
    """Embeddings of ones with dropout: no state, so that outputs of equal masks are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(V, 64)
        nn.init.ones_(self.encoder.weight)
        self.dropout = RowDropout(0.5, "input", self.position)

    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        return self.dropout(self.encoder(x_bT)), state

    def zero_state(self, num_rows: int) -> Hidden:
        return []

    def layer_groups(self) -> list[nn.Module]:
        return []


def test_every_chunk_of_a_document_gets_masks_of_its_own_as_in_fastai():
    encoder = SentenceEncoder(5, Words(), PAD_ID, None).train()
    encoder.module.position.step, encoder.module.position.rows = 7, range(2)
    output_bTE, _ = encoder(torch.full((2, 15), 3))
    for row in output_bTE:
        masks = [chunk[0] for chunk in row.split(5)]
        assert all(torch.equal(chunk, mask.expand(5, 64)) for chunk, mask in zip(row.split(5), masks, strict=True))
        for one, other in ((0, 1), (1, 2), (0, 2)):
            assert 0.2 < (masks[one] != masks[other]).double().mean() < 0.8
    assert torch.equal(encoder(torch.full((2, 15), 3))[0], output_bTE)  # the first chunk of a batch is chunk 0 again


def test_only_the_pooled_end_of_a_document_has_a_graph_and_is_returned():
    words = torch.arange(2, 22).view(1, 20)
    encoder = SentenceEncoder(5, Words(), PAD_ID, 10).eval()
    output_bTE, padding_bT = encoder(words)
    assert output_bTE.shape[:2] == padding_bT.shape == (1, 10)
    output_bTE.sum().backward()
    gradient_V = encoder.module.encoder.weight.grad.sum(1)
    assert gradient_V.nonzero().flatten().tolist() == list(range(12, 22))
    assert encoder(words[:, :10])[0].shape[:2] == (1, 10)
    assert SentenceEncoder(5, Words(), PAD_ID, 9).eval()(words)[0].shape[1] == 5  # whole chunks within the last nine tokens
    assert SentenceEncoder(5, Words(), PAD_ID, None).eval()(words)[0].shape[1] == 20


def test_rows_without_tokens_in_a_chunk_are_not_computed_and_are_zeros():
    encoder = SentenceEncoder(2, Words(), PAD_ID, None).eval()
    computed, read = [], encoder.module.read
    encoder.module.read = lambda x_bT, state: (computed.append(x_bT.tolist()), read(x_bT, state))[1]
    x_bT = torch.tensor([[3, 4, 5, 6, 7, 8], [1, 1, 3, 4, 5, 6], [1, 1, 1, 1, 1, 3]])
    output_bTE, padding_bT = encoder(x_bT)
    assert computed == [[[3, 4]], [[5, 6], [3, 4]], [[7, 8], [5, 6], [1, 3]]]
    assert torch.equal(padding_bT, x_bT == 1)
    assert output_bTE[:, :, 0].tolist() == [[1] * 6, [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    computed.clear()
    assert torch.equal(encoder(x_bT, [1, 2, 3])[0], output_bTE)
    assert [len(rows) for rows in computed] == [1, 2, 3]
    none_first = encoder(torch.tensor([[1, 1, 3, 4]]), [0, 1])[0]
    assert none_first[0, :, 0].tolist() == [0, 0, 1, 1]


def test_a_document_is_pooled_to_its_last_output_its_maxima_and_its_means():
    output_bTE = torch.tensor([[[1.0, -5], [4, -2], [2, -3]], [[9, 9], [-6, 8], [-2, 6]]])
    padding_bT = torch.tensor([[False, False, False], [True, False, False]])
    pooled = concat_pool(output_bTE, padding_bT)
    torch.testing.assert_close(pooled, torch.tensor([[2, -3, 4, -2, 7 / 3, -10 / 3], [-2, 6, -2, 8, -4, 7]]))
    at_the_end = concat_pool(output_bTE, torch.tensor([[False, False, True], [True, False, True]]))
    torch.testing.assert_close(at_the_end, torch.tensor([[4, -2, 4, -2, 2.5, -3.5], [-6, 8, -6, 8, -6, 8]]))


GROUPS = [
    (language_models, lm_groups, awdlstm.awd_lstm_lm_split),
    (classifiers, classifier_groups, awdlstm.awd_lstm_clas_split),
]


@pytest.mark.parametrize(("build", "groups", "split"), GROUPS, ids=["language model", "classifier"])
def test_parameter_groups_are_fastais(build, groups, split):
    ours, counterpart = build()
    name_of = {id(parameter): name for name, parameter in ours.named_parameters()}
    name_in_fastai = {id(parameter): name for name, parameter in counterpart.named_parameters()}
    actual = [[name_of[id(parameter)] for parameter in group] for group in groups(ours)]
    expected = [[name_in_fastai[id(parameter)] for parameter in group] for group in split(counterpart)]
    assert [sorted(group) for group in actual] == [sorted(set(group)) for group in expected]


def test_outputs_are_within_a_range_only_where_the_config_has_one():
    sizes, encoded = (
        ModelConfig(emb_sz=6, n_hid=8, n_layers=1),
        (100 * torch.randn(5, 4, 6), torch.zeros(5, 4, dtype=torch.bool)),
    )
    inside = build_classifier(V, 1, sizes, ClassifierConfig(y_range=[-1.0, 3.0])).eval()[1](encoded)[0]
    assert ((inside >= -1) & (inside <= 3)).all()
    free = build_classifier(V, 1, sizes, ClassifierConfig()).eval()[1]
    free.layers[-1][-1].weight.data.fill_(100)
    assert free(encoded)[0].abs().max() > 3


def test_the_head_has_its_widths_dropouts_and_activations():
    sizes = ModelConfig(emb_sz=6, n_hid=8, n_layers=1)
    settings = ClassifierConfig(lin_ftrs=[7, 5], drop_mult=0.5, head_dropout=0.25)
    head = build_classifier(V, 3, sizes, settings)[1]
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(18, 7), (7, 5), (5, 3)]
    dropouts = [module for module in head.modules() if isinstance(module, RowDropout)]
    assert [(dropout.p, dropout.site) for dropout in dropouts] == [(0.2, "head 0"), (0.25, "head 1"), (0.25, "head 2")]
    assert [any(isinstance(part, nn.ReLU) for part in block) for block in head.layers] == [True, True, False]
    assert not [
        m
        for m in build_classifier(V, 3, sizes, ClassifierConfig(drop_mult=0, head_dropout=0))[1].modules()
        if isinstance(m, RowDropout)
    ]


def test_dropout_probabilities_are_fastais_times_drop_mult():
    sizes = ModelConfig(emb_sz=6, n_hid=8, n_layers=2)
    for model, (embed, inputs, hidden, weight) in (
        (build_language_model(V, sizes, LMConfig(drop_mult=0.5)), (0.01, 0.125, 0.075, 0.1)),
        (build_classifier(V, 3, sizes, ClassifierConfig(drop_mult=0.5)), (0.025, 0.2, 0.15, 0.25)),
    ):
        encoder = encoder_of(model)
        assert encoder.encoder_dp.embed_p == pytest.approx(embed)
        assert encoder.input_dp.p == pytest.approx(inputs)
        assert [dropout.p for dropout in encoder.hidden_dps] == pytest.approx([hidden] * 2)
        assert [rnn.weight_p for rnn in encoder.rnns] == pytest.approx([weight] * 2)
    output_dropout = build_language_model(V, sizes, LMConfig(drop_mult=0.5))[1].output_dp
    assert (output_dropout.p, output_dropout.site) == (pytest.approx(0.05), "output")


def test_the_encoder_of_a_wrapped_or_user_defined_model():
    language_model, classifier = (
        build_language_model(V, SIZES, LMConfig()),
        build_classifier(V, 3, SIZES, ClassifierConfig()),
    )
    assert encoder_of(language_model) is language_model[0] is awd_lstm_of(language_model)
    assert encoder_of(classifier) is classifier[0].module is awd_lstm_of(classifier)
    language_model[0] = Words()
    assert encoder_of(language_model) is language_model[0]
    with pytest.raises(AssertionError):
        awd_lstm_of(language_model)
