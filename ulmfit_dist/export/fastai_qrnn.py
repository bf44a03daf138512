"""QRNN of the script that loads an export in fastai, which has had none since version 2.4.

It is fastai's AWD-LSTM with other layers, for any fastai 2, with the keys that fastai's own had. Trade-off: its recurrence
is a loop over the tokens, slower than this package's.
"""

QRNN = """
from fastai.text.learner import _model_meta
from fastai.text.models.awdlstm import WeightDropout


class QRNNLayer(Module):
    "Gates of all tokens in one product, of each token and, for window 2, the one before it; then an elementwise recurrence."

    def __init__(self, n_in, n_out, window):
        self.window, self.linear, self.before = window, nn.Linear(window * n_in, 3 * n_out), None

    def forward(self, x, h):
        inputs = x
        if self.window == 2:
            before = x[:, :1] * 0 if self.before is None else self.before[: len(x)]
            before = torch.cat([before, x[len(before) :, :1] * 0])
            inputs = torch.cat([x, torch.cat([before, x[:, :-1]], 1)], 2)
            self.before = x[:, -1:].detach()
        z, f, o = self.linear(inputs).chunk(3, 2)
        z, f, states = z.tanh(), f.sigmoid(), []
        for step in range(x.shape[1]):
            h = f[:, step] * z[:, step] + (1 - f[:, step]) * h
            states.append(h)
        return o.sigmoid() * torch.stack(states, 1), h


class QRNN(Module):
    "A layer with the state of an LSTM, whose second part is not used."

    def __init__(self, layer):
        self.layers = nn.ModuleList([layer])

    def reset(self):
        self.layers[0].before = None

    def forward(self, x, hidden):
        output, h = self.layers[0](x, hidden[0][0])
        return output, (h[None], hidden[1])


class AWD_QRNN(AWD_LSTM):
    "AWD_LSTM with QRNNs instead of LSTMs."

    def _one_rnn(self, n_in, n_out, bidir, weight_p, l):
        layer = QRNNLayer(n_in, n_out, 1 if l else 2)
        layer.linear = WeightDropout(layer.linear, weight_p, "weight")
        return QRNN(layer)


_model_meta[AWD_QRNN] = _model_meta[AWD_LSTM]

"""
"""Lines of the script, after its imports."""
