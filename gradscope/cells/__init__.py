"""Reference networks, written from their equations, and the initialisers that findings recommend.

>>> import torch
>>> from gradscope.cells import LSTMCell, Recurrent, chrono_
>>> rnn = chrono_(Recurrent(LSTMCell, 3, 8, num_layers=2, skip="residual"), t_max=100)
>>> output, (h_n, c_n) = rnn(torch.ones(5, 2, 3))
>>> output.shape, h_n.shape
(torch.Size([5, 2, 8]), torch.Size([2, 2, 8]))
"""

from gradscope.cells.base import Cell
from gradscope.cells.gru import GRUCell
from gradscope.cells.initialise import chrono_, forget_bias_, identity_, orthogonal_
from gradscope.cells.layer_norm import LayerNormGRUCell, LayerNormLSTMCell, LayerNormRNNCell
from gradscope.cells.lstm import LSTMCell
from gradscope.cells.recurrent import Recurrent
from gradscope.cells.rnn import LinearCell, RNNCell

__all__ = [
    "Cell",
    "GRUCell",
    "LSTMCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LayerNormRNNCell",
    "LinearCell",
    "RNNCell",
    "Recurrent",
    "chrono_",
    "forget_bias_",
    "identity_",
    "orthogonal_",
]
