"""`seed-prototypes`: prototypes from the seeds of CAMs, without a solver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool import console
from vpltool.core.phase_one import Pixels
from vpltool.engine import headers, prototypes
from vpltool.errors import VplError
from vpltool.formats import JsonObject, Workspace, kinds, shards
from vpltool.lazy import Tensor
from vpltool.methods import KINDS, Estimator, load_method
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
                        metavar="NAME-OR-PATH", record="never", brief=False, aliases=["--start"],
                        reads="prototypes")


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
    count = shards.rank_of_process()[1]
    if count > 1 and not method.divides(settings.of_method):
        raise VplError(f"`method={settings.method!r}` with these settings reads all pixels at "
                       f"once, and this is one of {count} processes",
                       "start it once, without torchrun; `method='means', background='words'` can "
                       "be divided")
    opened = _phase_one.open_inputs(workspace, settings, "text", "cams")
    text = _phase_one.text_of(opened, or_tags=True)
    header = opened.header_of_split("seed-prototypes",
                                    tags=workspace.tags_identity(settings.split))
    target = settings.out or kinds.result_path(workspace.path, "prototypes", "seeds")
    if not headers.check_file(target, header, settings):
        with joined(settings.device, double=True) as ranks:
            pool = _phase_one.gather(opened, settings, ranks, text, unlabelled=method.UNLABELLED)
            tensors, facts = _estimate(workspace, settings, method, pool, text, ranks)
            if ranks.rank == 0:
                prototypes.write_prototypes(target, header, tensors, facts, text)
    return target


def _estimate(workspace: Workspace, settings: SeedPrototypesSettings, method: Estimator,
              pool: Pixels, text: prototypes.Prototypes, ranks: Ranks
              ) -> tuple[dict[str, Tensor], JsonObject]:
    """Run the method; return the tensors of the file, and facts for its header."""
    device = pool.embeddings.device
    zs, zs_index = text.rows.to(device), text.class_index.to(device)
    seeded = {label for part in ranks.collect(pool.labels.unique().tolist()) for label in part}
    without = [workspace.class_name(item) for item in zs_index.unique().tolist()
               if item and item not in seeded]
    if without:
        console.warn(f"no seeds for {', '.join(without)}: the start's prototype is kept")
    together = {"group": ranks} if ranks.count > 1 else {}
    with _phase_one.memory_for(len(pool.embeddings)):
        rows, index, *extra = method.estimate(pool, zs, zs_index, settings.of_method,
                                              settings.seed, **together)
        of_rows: dict[str, Tensor] = extra[0] if extra else {}
        facts = _phase_one.facts_of(workspace, pool, settings.pixels, text, rows, index, ranks)
    if "photo_of" in of_rows:
        facts["photos"] = list(pool.ids)
    tensors = {"prototypes": rows, "class_index": index, **of_rows}
    return {name: tensor.cpu() for name, tensor in tensors.items()}, facts
