"""`seed-prototypes`: from the pixels that CAMs are sure of to prototypes, without a solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console
from vpltool.core.phase_one import Pixels
from vpltool.engine import headers, prototypes
from vpltool.engine.features import open_features
from vpltool.errors import VplError
from vpltool.formats import JsonObject, Workspace
from vpltool.formats.kinds import place
from vpltool.formats.shards import rank_of_process
from vpltool.lazy import Tensor
from vpltool.methods import KINDS, load_method
from vpltool.methods.interfaces import Estimator
from vpltool.parallel.ranks import Ranks, joined
from vpltool.settings import Stage, setting, warn_without_effect
from vpltool.stages import _phase_one


@dataclass(frozen=True, kw_only=True)
class SeedPrototypesSettings(_phase_one.PixelSettings):
    """Settings of `seed-prototypes`."""

    method: str = setting(KINDS["estimators"].default,
                          "Method that estimates the prototypes.", metavar="NAME")
    text: str = setting("text", "Prototypes to start from; default: text, or tags where the "
                                "encoder knows no words.",
                        metavar="NAME-OR-PATH", record="never", brief=False, aliases=["--start"])


STAGE = Stage(order=44, panel="2. Maps and prototypes", reads=("features", "prototypes", "cams"),
              writes=("prototypes",), settings=SeedPrototypesSettings, methods="estimators",
              together=True)


def run(workspace: Workspace, settings: SeedPrototypesSettings) -> Path:
    """Make vision prototypes from the most confident pixels of CAMs; nothing is trained.

    Use them as they are, or to initialise learn-prototypes. A class without seeds keeps its
    prototype of `--start`. Under torchrun, with --method means, each process reads the features of
    its own photos.

    Example: vpltool seed-prototypes --cams text-salient --phi 0.9 --background clusters

    Next: vpltool cam --prototypes seeds, or vpltool learn-prototypes --start seeds --pixels seeds

    Raises:
        VplError: an input is missing or does not fit the others, or there are no seeds.
    """
    method = load_method(Estimator, settings.method)
    warn_without_effect(settings)
    _check_divides(settings, method)
    features = open_features(workspace, settings.features, settings.split)
    text = _phase_one.read_start(workspace, prototypes.class_rows(workspace, settings, "text"),
                                 features)
    maps = _phase_one.find_seeding_cams(workspace, settings.cams, settings.split)
    header = prototypes.split_header(workspace, "seed-prototypes", settings, features, text=text,
                                     cams=maps, tags=workspace.tags_identity(settings.split))
    target = settings.out or place(workspace.path, "prototypes", "seeds")
    if not headers.check_file(target, header, settings):
        with joined(settings.device, double=True) as ranks:
            pool = _phase_one.gather(workspace, features, maps, settings, ranks, text,
                                     unlabelled=method.UNLABELLED)
            tensors, facts = _estimate(workspace, settings, method, pool, text, ranks)
            if ranks.rank == 0:
                prototypes.write_prototypes(target, header, tensors, facts, text)
    return target


def _check_divides(settings: SeedPrototypesSettings, method: Estimator) -> None:
    """Check that several processes can divide the work of a method: that it is sums."""
    count = rank_of_process()[1]
    if count > 1 and not method.divides(settings.of_method):
        raise VplError(f"`method={settings.method!r}` with these settings reads all pixels at "
                       f"once, and this is one of {count} processes",
                       "start it once, without torchrun; `method='means', background='words'` can "
                       "be divided")


def _estimate(workspace: Workspace, settings: SeedPrototypesSettings, method: Estimator,
              pool: Pixels, text: prototypes.Prototypes, ranks: Ranks
              ) -> tuple[dict[str, Tensor], JsonObject]:
    """Run the method; give the tensors of the file, and facts for its header."""
    device = pool.embeddings.device
    zs, zs_index = text.rows.to(device), text.class_index.to(device)
    _warn_of_missing_seeds(workspace, ranks.collect(pool.labels.unique().tolist()), zs_index)
    together = {"group": ranks} if ranks.count > 1 else {}
    with _phase_one.memory_for(len(pool.embeddings)):
        rows, index, *more = method.estimate(pool, zs, zs_index, settings.of_method,
                                             settings.seed, **together)
        of_rows: dict[str, Tensor] = more[0] if more else {}
        facts = _phase_one.facts_of(workspace, pool, text, rows, index, ranks)
    if "photo_of" in of_rows:
        facts["photos"] = list(pool.ids)
    tensors = {"prototypes": rows, "class_index": index, **of_rows}
    return {name: tensor.cpu() for name, tensor in tensors.items()}, facts


def _warn_of_missing_seeds(workspace: Workspace, labels: Sequence[Sequence[int]],
                           text_index: Tensor) -> None:
    seeded = {label for part in labels for label in part}
    without = [workspace.class_name(item) for item in text_index.unique().tolist()
               if item and item not in seeded]
    if without:
        console.warn(f"no seeds for {', '.join(without)}: the start's prototype is kept")
