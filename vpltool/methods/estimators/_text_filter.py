"""Settings of estimators that ask the text which features show their class."""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.methods.estimators._background import BackgroundSettings
from vpltool.settings import setting


@dataclass(frozen=True, kw_only=True)
class TextFilterSettings(BackgroundSettings):
    """The text's softmax."""

    tau: float = setting(0.01, "Temperature of the text's softmax.", low=1e-6,
                         source="CLIP: logit scale 100")
    rivals: str = setting("classes", "Rows in the text's softmax: classes, or those and the words "
                                     "of the background.", choices=("classes", "words"),
                          source="vpltool")
