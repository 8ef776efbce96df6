"""Settings of a training as core takes them: those that tests name, else what a command takes."""

from __future__ import annotations

import torch

from vpltool.core.training import TrainingSettings
from vpltool.stages._training_inputs import TrainDecoderSettings, training_of


def training_with(**values: object) -> TrainingSettings:
    """As `train-decoder` makes them from its settings, in float32."""
    return training_of(TrainDecoderSettings(**values), torch.float32)
