"""What stages call of a method: a class for each kind, whose instances are the methods' modules.

`Method.load` makes the module of a file an instance of its kind's class (`module.__class__`). What
the file defines is found first; a hook that it leaves out does what the class says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeAlias

from vpltool import settings
from vpltool.core import distributed, phase_one, proposals, segmenter
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.methods import inputs

OfMethod: TypeAlias = "settings.Settings | None"
"""Settings of the method's own class."""


class MethodModule(ModuleType):
    """A method of any kind, with `Settings` of its own."""

    READS: tuple[str, ...] = ()  # what the stage opens for it


class SourceMethod(MethodModule):
    """A method of `sources`."""

    read: Callable[[Path, OfMethod, inputs.SourceRequest], inputs.Source]


class EmbeddingMethod(MethodModule):
    """A method of `embeddings`; patches are (B, h·w, dim), L2-normed."""

    make_patches: Callable[[inputs.EmbeddingBatch, OfMethod], Tensor]


class CamMethod(MethodModule):
    """A method of `cams`; maps are (K_i, h, w) for each photo."""

    make_cams: Callable[[inputs.CamBatch, OfMethod], list[Tensor]]


class Refiner(MethodModule):
    """A method of `refiners`; maps are (K, h, w)."""

    refine: Callable[[inputs.PhotoMaps, OfMethod], Tensor]

    def check(self, features: Mapping[str, object], of_method: OfMethod) -> None:
        """Refuse, before the work, what cannot be done with these options of `extract`."""


class Estimate(Protocol):
    """The function of `estimators`; see `vpltool.methods.estimators.means.estimate`."""

    def __call__(self, pool: phase_one.Pixels, text: Tensor, text_index: Tensor,
                 of_method: OfMethod, seed: int, *, group: distributed.Group = ...
                 ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return rows, their classes, and what else is stored of each."""


class Estimator(MethodModule):
    """A method of `estimators`."""

    estimate: Estimate
    UNLABELLED: bool = False  # pixels that are no seeds are read, too

    def divides(self, of_method: OfMethod) -> bool:
        """Tell whether several processes can share the pixels; then `estimate` takes a group."""
        return False


class LabelRefiner(MethodModule):
    """A method of `label_refiners`; scores and results are (L, H, W)."""

    refine_labels: Callable[[Sequence[inputs.ScoredPhoto], OfMethod, torch.device],
                            list[npt.NDArray[np.float32]]]
    # Where the stage's `confidence` is not given; source: CLIP-ES, official code.
    CONFIDENCE: float = 0.95

    def recorded(self, of_method: OfMethod) -> dict[str, object]:
        """What headers say of settings that name something else."""
        return {}

    def runs_on(self, of_method: OfMethod, device: torch.device) -> torch.device:
        """The device that the work is really done on; refuses what cannot be done."""
        return device

    def warm_up(self, of_method: OfMethod, device: torch.device, labels: int) -> None:
        """Do, before other processes start, what would else be done in each of them."""

    def frees_lock(self, of_method: OfMethod, device: torch.device) -> bool:
        """Whether it runs without the interpreter's lock: in threads, not in processes."""
        return False

    def decided(self, photo: inputs.ScoredPhoto, confidence: float
                ) -> npt.NDArray[np.float32] | None:
        """The result where refining cannot change a label; None: it must be refined."""
        return None

    def memory_of(self, of_method: OfMethod, device: torch.device, size: tuple[int, int],
                  labels: int) -> int:
        """Estimate the memory that a photo of (height, width) takes, in bytes; 0: unknown."""
        return 0


class Proposer(MethodModule):
    """A method of `proposers`.

    `propose` checks and loads what can be refused before it returns; what it returns yields each
    photo's id, and its proposals or the reason why it has none.
    """

    propose: Callable[[inputs.ProposalRequest, OfMethod],
                      Iterator[tuple[str, proposals.Proposals | str]]]
    PROCESSES: bool = False  # photos are done one at a time, each on one core
    SUPERVISION: str = ""  # what people said beyond tags, to who made the proposals; see `Header`

    def identities(self, of_method: OfMethod) -> dict[str, str]:
        """Role to identity of what else it reads, for the header."""
        return {}


class SegmenterMethod(MethodModule):
    """A method of `segmenters`."""

    build: Callable[[inputs.SegmenterParts, OfMethod], segmenter.SegmenterNetwork]
    rebuild: Callable[[Mapping[str, object]], segmenter.SegmenterNetwork]
    # Only where no training steps are needed: `stepless` says so.
    fit: Callable[[segmenter.SegmenterNetwork, Iterable[inputs.LabelledPhoto], OfMethod,
                   Callable[[Tensor], Tensor]], None]
    TRAINS_ENCODER: bool = False  # so are its last blocks; its `Settings` then say which

    @property
    def stepless(self) -> bool:
        """Whether the network is fitted in one pass over the photos."""
        return "fit" in vars(self)


class Exporter(MethodModule):
    """A method of `exports`; it is given `Predictions`, or what `EXPORTS` says."""

    SUFFIX: str  # of the path that is written if none is named
    export: Callable[[inputs.Predictions | inputs.TrainedSegmenter | inputs.PredictedScene, Path,
                      OfMethod], list[Path]]
    # `predictions` and not masks; `segmenter`, a trained one; `scene`, labels of a GeoTIFF; empty:
    # predictions or masks.
    EXPORTS: str = ""
    FULL: bool = False  # masks without ignored pixels are preferred
    CLASSES: tuple[str, ...]  # only where the receiver knows these classes and no other
    NEEDS: tuple[str, ...] = ()  # packages that the reader of a format imports; see `labels`

    def check(self, of_method: OfMethod) -> None:
        """Refuse, before the work, what cannot be done."""

    def runs(self, path: Path, of_method: OfMethod) -> Callable[[Tensor], Tensor] | None:
        """What runs a segmenter's file: pixels (1, 3, H, W) to logits; None: nothing here does."""
        return None
