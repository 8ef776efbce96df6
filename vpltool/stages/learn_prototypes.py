"""`learn-prototypes`: VPL's phase 1, from text prototypes to vision prototypes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from vpltool import console, options
from vpltool.core import phase_one
from vpltool.core.prototypes import SolverRecord
from vpltool.engine import headers, models, prototypes
from vpltool.engine.opening import Opened
from vpltool.errors import VplError
from vpltool.formats import JsonObject, Workspace, kinds
from vpltool.lazy import Tensor
from vpltool.parallel.ranks import Ranks, joined
from vpltool.settings import NoEffect, Stage, setting, warn_without_effect
from vpltool.stages import _phase_one

NOT_LEARNED = NoEffect({"iters": (0,)}, "the start is the result")
UNSEEDED = NoEffect({"pixels": ("all",)}, "no CAM is read")
_NO_SEEDS = NoEffect({"pixels": ("all", "regions")}, "there are no seeds to threshold")


@dataclass(frozen=True, kw_only=True)
class LearnPrototypesSettings(_phase_one.PixelSettings):
    """Settings of `learn-prototypes`; the defaults are the paper's reading."""

    tau_t: float = setting(
        0.01, "Temperature of the text distribution P'.", low=1e-4,
        source="VPL, implementation details", no_effect=[
            NOT_LEARNED, NoEffect({"targets": ("seeds",)}, "the text gives no targets")])
    tau_i: float = setting(0.03, "Temperature of the vision distribution P.", low=1e-4,
                           source="VPL, implementation details, table 5", no_effect=[NOT_LEARNED])
    iters: int = setting(3000, "Iterations of the solver; 0: return the start, as seed-prototypes "
                               "makes it.", low=0, source="VPL, implementation details, table 7")
    lr: float = setting(
        10.0, "Learning rate of pgd; halved when the gradient grows (InMaP).", low=0,
        source="VPL, implementation details", no_effect=[
            NOT_LEARNED, NoEffect({"solver": ("lbfgs",)}, "it looks for the rate itself")])
    tolerance: float = setting(
        0.005, "Tolerance of pgd, in radians; it stops once no row would turn by more than this in "
               "all remaining iterations, at the pace of the last 50. 0: run them all.", low=0,
        brief=False, record="changed", source="vpltool", no_effect=[
            NOT_LEARNED, NoEffect({"solver": ("lbfgs",)}, "it stops at a gradient of zero")])
    solver: str = setting("pgd", "pgd, as in the paper; rkc, several times as fast: the same "
                                 "prototypes in long steps; or lbfgs: a lower objective in fewer "
                                 "passes.", choices=("pgd", "rkc", "lbfgs"),
                          source="VPL, implementation details", no_effect=[NOT_LEARNED])
    pixels: str = setting(
        "all", "all patches, seeds or regions; seeds: those of the CAMs; regions: a CAM-weighted "
               "mean per class.", choices=("all", "seeds", "regions"), source="VPL, eq. 7")
    start: str = setting(
        "text", "Initial prototypes W; text, seeds from seed-prototypes, or a file.",
        metavar="NAME-OR-PATH", record="never", source="InMaP, official code: W begins as Z")
    phi: float = _phase_one.phi(no_effect=[_NO_SEEDS], brief=False)
    phi_background: float = _phase_one.phi_background(no_effect=[_NO_SEEDS], brief=False)
    cams: str = _phase_one.cams(no_effect=[UNSEEDED], brief=False)
    targets: str | None = setting(
        None, "P': text; or seeds, one-hot by the CAMs (eq. 9). Default: text for all pixels, "
              "seeds otherwise.", choices=("text", "seeds"), brief=False, no_effect=[NOT_LEARNED])
    classes: str = setting(
        "present", "Classes in P': present, those in the photo and the background; or all, as the "
                   "paper is written.", choices=("present", "all"), brief=False,
        source="vpltool's reading of VPL, eq. 5", no_effect=[
            NOT_LEARNED, NoEffect({"targets": ("seeds",)}, "a target is a seed's own class")])
    student: str = setting("all", "Classes in P: all, so that classes which a photo does not show "
                                  "are pushed away; or present.", choices=("all", "present"),
                           brief=False, source="VPL, eq. 3", no_effect=[NOT_LEARNED])
    harden: float = setting(
        0.0, "Targets whose largest entry exceeds this become one-hot (InMaP's alpha); 0: never.",
        low=0, high=1, brief=False, source="VPL, eq. 5: the targets stay soft", no_effect=[
            NOT_LEARNED, NoEffect({"targets": ("seeds",), "rounds": (1,)},
                                  "the targets are one-hot already")])
    rounds: int = setting(
        1, "Rounds; from the second on, P' comes from the W of the round before.", low=1,
        brief=False,
        source="VPL, figure 2: learned once", no_effect=[
            NOT_LEARNED, NoEffect({"harden": (0.0,), "student": ("present",),
                                   "rounds": range(2, 1_000_000)},
                                  "P' would be P from the second on")])
    balance: bool = setting(
        False, "With seeds: weight all classes equally.", brief=False, no_effect=[
            NOT_LEARNED, NoEffect({"pixels": ("all",)}, "the pixels have no labels")])
    text: str = _phase_one.text(brief=False)
    device: str = options.device(brief=False)
    limit: int = options.limit(record="changed", brief=False)
    update: bool = options.update(brief=False)


STAGE = Stage(
    order=45, panel="2. Maps and prototypes", reads=("features", "prototypes", "cams"),
    writes=("prototypes",), settings=LearnPrototypesSettings, together=True, moved={
        "--background": "`seed_prototypes(background='clusters')`, then `start='seeds'`",
        "--clusters": "`seed_prototypes(background='clusters', clusters=24)`, then "
                      "`start='seeds'`",
        "--per-class": "`seed_prototypes(method='kmeans', per_class=4)`, then `start='seeds'`"})


def run(workspace: Workspace, settings: LearnPrototypesSettings) -> Path:
    """Learn a vector per class in the vision space, guided by the text (VPL).

    The defaults follow the paper: all pixels, text targets, initialised from the text prototypes.
    With --pixels seeds, the CAMs select the pixels. The objective, its gradient and the modality
    gap are shown and stored. Under torchrun, each process reads the features of its shard of the
    photos, and gradients are summed.

    Example: vpltool learn-prototypes --tau-i 0.03 --iters 3000

    Next: vpltool cam --prototypes vision

    Raises:
        VplError: an input is missing or does not fit the others, or the settings exclude each
            other.
    """
    models.check_words(workspace, "`seed_prototypes()` makes prototypes without them")
    targets = settings.targets
    settings = replace(settings,
                       targets=targets or ("text" if settings.pixels == "all" else "seeds"))
    if settings.pixels == "all" and settings.targets == "seeds":
        raise VplError("`targets='seeds'` needs seeds", "add `pixels='seeds'`")
    if (settings.student, settings.classes, settings.targets) == ("present", "all", "text"):
        raise VplError("`student='present'` cannot follow targets over all classes",
                       "add `classes='present'`, or `student='all'`")
    warn_without_effect(settings)
    opened = _phase_one.open_inputs(workspace, settings, "text", "cams")
    text = _phase_one.text_of(opened)
    start = _read_start(opened, settings, text)
    if start is not text:
        opened = replace(opened, rows={**opened.rows, "start": start})
    header = opened.header_of_split("learn-prototypes",
                                    tags=workspace.tags_identity(settings.split))
    if start is text:
        header.options["start"] = "text"
    if targets is None:
        header.call.pop("targets", None)
    target = settings.out or kinds.result_path(workspace.path, "prototypes", "vision")
    if not headers.check_file(target, header, settings):
        with joined(settings.device, double=True) as ranks:
            pool = _phase_one.gather(opened, settings, ranks, text)
            with _phase_one.memory_for(len(pool.embeddings)):
                rows, facts = _learn(workspace, pool, text, start, settings, ranks)
            if ranks.rank == 0:
                prototypes.write_prototypes(
                    target, header, {"prototypes": rows, "class_index": start.class_index}, facts,
                    text)
    return target


def _read_start(opened: Opened, settings: LearnPrototypesSettings, text: prototypes.Prototypes
                ) -> prototypes.Prototypes:
    """Read the initial prototypes W: those of `text`, or others."""
    if settings.start == "text":
        return text
    start = prototypes.read_prototypes(opened.workspace, settings.start, aligned=True)
    prototypes.check_fits(opened.features, start)
    prototypes.check_one_space(text, start)
    ours, theirs = start.class_index.tolist(), text.class_index.tolist()
    if settings.iters and settings.targets == "text" and ours != theirs:
        seeded = "`targets='seeds'`" if settings.pixels != "all" else "`pixels='seeds'`"
        raise VplError(
            f"`start={settings.start!r}` has {_format_rows(ours)}, the text "
            f"{_format_rows(theirs)}: the text gives targets for its own rows only",
            f"add {seeded}, or make a start with as many rows: "
            "`seed_prototypes(background='words', overwrite=True)`")
    if settings.iters and 0 not in ours:
        raise VplError(f"{start.path} has no row of the background, which background pixels are "
                       "to be drawn to", "`seed_prototypes()` makes some, for `start='seeds'`")
    return start


def _format_rows(index: list[int]) -> str:
    return f"{len(index) - index.count(0)} rows of classes and {index.count(0)} of background"


def _learn(workspace: Workspace, pool: phase_one.Pixels, text: prototypes.Prototypes,
           start: prototypes.Prototypes, settings: LearnPrototypesSettings, ranks: Ranks
           ) -> tuple[Tensor, JsonObject]:
    """Learn with a progress bar; return the rows, and facts for the header."""
    device = pool.embeddings.device
    index = start.class_index.to(device)
    course: list[list[float]] = []
    with console.progress(f"learn-prototypes ({settings.solver})",
                          settings.iters * settings.rounds) as advance:

        def callback(record: SolverRecord) -> None:
            # Each round begins at step 0.
            done = course[-1][0] + 1 if course and record.step > course[-1][0] else 0
            advance(int(record.step + 1 - done), text=f"objective {record.objective:.4f} "
                                                      f"gradient {record.gradient:.2e}")
            course.append([record.step, round(record.objective, 7), round(record.gradient, 9),
                           record.lr])

        config = phase_one.PhaseOneConfig(**{entry.name: getattr(settings, entry.name)
                                             for entry in fields(phase_one.PhaseOneConfig)})
        rows = phase_one.learn(pool, text.rows.to(device), start.rows.to(device), index, config,
                               callback, ranks)
    if course:
        console.note(f"objective {course[0][1]:.5f} → {course[-1][1]:.5f}, "
                     f"gradient {course[0][2]:.2e} → {course[-1][2]:.2e}")
        # Each round has an objective of its own.
        first, last = [record[1] for record in course if not record[0]][-1], course[-1][1]
        if round(last - first, 5) > 0:
            console.warn(f"the objective rose from {first:.5f} to {last:.5f}: the prototypes fit "
                         f"the pixels worse than at the start; lower the rate, "
                         f"`lr={settings.lr / 10:g}`, or take more steps, "
                         f"`iters={10 * settings.iters}`")
    facts = _phase_one.facts_of(workspace, pool, settings.pixels, text, rows, index, ranks)
    return rows.cpu(), {**facts, "course": course}
