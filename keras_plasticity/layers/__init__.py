"""Plastic layers, which track the utility of their units, and others."""

from keras_plasticity.layers.activations import AdaLin as AdaLin
from keras_plasticity.layers.activations import (
    ConcatenatedELU as ConcatenatedELU,
)
from keras_plasticity.layers.activations import CReLU as CReLU
from keras_plasticity.layers.activations import DeepFourier as DeepFourier
from keras_plasticity.layers.activations import Rational as Rational
from keras_plasticity.layers.activations import SmoothLeaky as SmoothLeaky
from keras_plasticity.layers.attention import (
    GroupQueryAttention as GroupQueryAttention,
)
from keras_plasticity.layers.attention import (
    MultiHeadAttention as MultiHeadAttention,
)
from keras_plasticity.layers.batch_normalization import (
    BatchNormalization as BatchNormalization,
)
from keras_plasticity.layers.convolutional import Conv1D as Conv1D
from keras_plasticity.layers.convolutional import (
    Conv1DTranspose as Conv1DTranspose,
)
from keras_plasticity.layers.convolutional import Conv2D as Conv2D
from keras_plasticity.layers.convolutional import (
    Conv2DTranspose as Conv2DTranspose,
)
from keras_plasticity.layers.convolutional import Conv3D as Conv3D
from keras_plasticity.layers.convolutional import (
    Conv3DTranspose as Conv3DTranspose,
)
from keras_plasticity.layers.convolutional import (
    DepthwiseConv1D as DepthwiseConv1D,
)
from keras_plasticity.layers.convolutional import (
    DepthwiseConv2D as DepthwiseConv2D,
)
from keras_plasticity.layers.convolutional import (
    SeparableConv1D as SeparableConv1D,
)
from keras_plasticity.layers.convolutional import (
    SeparableConv2D as SeparableConv2D,
)
from keras_plasticity.layers.dense import Dense as Dense
from keras_plasticity.layers.einsum_dense import EinsumDense as EinsumDense
from keras_plasticity.layers.embedding import Embedding as Embedding
from keras_plasticity.layers.injectable import Injectable as Injectable
from keras_plasticity.layers.input_normalization import (
    InputNormalization as InputNormalization,
)
from keras_plasticity.layers.online_normalization import (
    OnlineNormalization as OnlineNormalization,
)
from keras_plasticity.layers.plastic_layer import PlasticLayer as PlasticLayer
from keras_plasticity.layers.recent_inputs import RecentInputs as RecentInputs
from keras_plasticity.layers.recurrent import GRU as GRU
from keras_plasticity.layers.recurrent import LSTM as LSTM
from keras_plasticity.layers.recurrent import ConvLSTM1D as ConvLSTM1D
from keras_plasticity.layers.recurrent import ConvLSTM2D as ConvLSTM2D
from keras_plasticity.layers.recurrent import ConvLSTM3D as ConvLSTM3D
from keras_plasticity.layers.recurrent import SimpleRNN as SimpleRNN

__all__ = [
    "AdaLin",
    "BatchNormalization",
    "CReLU",
    "ConcatenatedELU",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "DeepFourier",
    "Dense",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "EinsumDense",
    "Embedding",
    "GRU",
    "GroupQueryAttention",
    "Injectable",
    "InputNormalization",
    "LSTM",
    "MultiHeadAttention",
    "OnlineNormalization",
    "Rational",
    "RecentInputs",
    "SeparableConv1D",
    "SeparableConv2D",
    "SimpleRNN",
    "SmoothLeaky",
]
