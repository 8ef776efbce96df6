"""`show`: a sheet of photos, maps and masks. Reads true masks to show them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

from vpltool import console, options
from vpltool.core.photos import describe_failure, read_photo
from vpltool.datasets.layouts import named_photos
from vpltool.engine import panels, reports
from vpltool.engine.photos import check_there
from vpltool.errors import PhotosFailed, VplError, near_name, part_of
from vpltool.formats import Photo, Workspace, atomic, find_folder, kinds, open_workspace
from vpltool.pictures.overlays import SheetPanel, classes_in, fit_panel, labels_over, sheet
from vpltool.settings import Settings, Stage, setting, warn_without_effect
from vpltool.stages._truth import read_truth, untagged_class, warn_of_untagged_classes


@dataclass(frozen=True, kw_only=True)
class ShowSettings(Settings):
    """Settings of `show`."""

    what: tuple[str, ...] = setting(
        (), "What to show: cams/NAME, masks/NAME, predictions/NAME, group-maps/NAME, folders of "
            "these, or folders of masks; the first may be a folder of photos. Default: everything "
            "there is.",
        positional=True,
        metavar="WHAT")
    split: str = options.split("train")
    ids: str = setting("", "Photo ids, separated by commas.", flag="--id", metavar="LIST")
    worst: int = setting(0, "Show the N photos with the worst scores, worst first; see eval.",
                         low=0, metavar="N")
    scores: Path | None = setting(None, "Scores that rank the worst photos; default: those of the "
                                        "first WHAT, else those against tags.", metavar="FILE")
    tagged: str = setting("", "Show only photos tagged with this class.", flag="--class",
                          metavar="NAME")
    photos: Path | None = setting(None, "Folder of the photos, if they are not the workspace's.",
                                  metavar="DIR")
    terminal: bool = setting(False, "Also draw in the terminal; as a picture in kitty, iTerm2, "
                                    "WezTerm, foot and others, otherwise in coloured blocks.",
                             off="-", record="never")
    limit: int = setting(6, "Number of photos, evenly spread over the split.", low=1, metavar="N")
    truth: bool = setting(True, "Show the true masks.")
    out: Path | None = options.out()


STAGE = Stage(order=92, panel="4. Scores and pictures",
              reads=("cams", "masks", "predictions", "probabilities", "group-maps"), writes=(),
              settings=ShowSettings, begins=True)


@dataclass(frozen=True)
class _Row:
    """A photo to show, with its entry in the workspace if it has one."""

    id: str
    path: Path
    photo: Photo | None = None


@dataclass(frozen=True)
class _Sheet:
    """A sheet in the making.

    By id, `worst` holds why a photo is among the worst, `failed` why a panel is missing, and
    `untagged` the `untagged_class` of each true mask.
    """

    workspace: Workspace
    columns: Sequence[panels.Column]
    settings: ShowSettings
    worst: Mapping[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    untagged: dict[str, str] = field(default_factory=dict)

    def rows(self, rows: Sequence[_Row]) -> list[list[SheetPanel]]:
        """Draw photos; unreadable ones get a row only if requested by id."""
        drawn = [list(self.panels_of(row)) for row in rows]
        readable = [panels for panels in drawn if not isinstance(panels[0].picture, str)]
        return drawn if self.settings.ids or self.worst or not readable else readable

    def panels_of(self, row: _Row) -> Iterator[SheetPanel]:
        """Draw a photo and all its panels."""
        tags = ", ".join(row.photo.tags) if row.photo else ""
        about = self.worst.get(row.id, tags)
        title = f"{row.id}: {about}" if about or row.photo else row.id
        try:
            whole = read_photo(row.path)
        except OSError as error:
            self.failed[row.id] = describe_failure(row.path, error)
            yield SheetPanel(title, self.failed[row.id])
            return
        picture = fit_panel(whole)
        yield SheetPanel(title, picture)
        for column in self.columns:
            try:
                yield from column.panels(row.id, picture)
            except VplError as error:
                yield self._missing(row, column.name, error)
        if self.settings.truth and row.photo and row.photo.mask:
            try:
                truth = read_truth(self.workspace, row.photo, whole.shape[:2])
                self.untagged[row.id] = untagged_class(self.workspace, row.photo, truth)
                yield SheetPanel("truth", labels_over(picture, truth), classes_in(truth))
            except VplError as error:
                yield self._missing(row, "truth", error)

    def _missing(self, row: _Row, title: str, error: VplError) -> SheetPanel:
        self.failed.setdefault(row.id, error.message)
        return SheetPanel(title, error.message)


def run(work: Path, settings: ShowSettings) -> Path:
    """Draw a sheet of photos, maps, masks, predictions and true masks.

    Each class has its own colour, which a legend names. Photos need not be in a workspace: name
    their folder, then a folder of masks; predictions of new photos record where the photos
    are. The file is named after its contents.

    Example: vpltool show cams/text cams/vision masks/vision --limit 8

    Example: vpltool show holiday masks-of-holiday

    Example: vpltool show predictions/segmenter --split val --worst 12

    Returns:
        the sheet, a PNG.

    Raises:
        VplError: something that is named is missing, or nothing can be shown, as no photo is there.
        PhotosFailed: some panels could not be drawn; the sheet says why in their place.
    """
    warn_without_effect(settings, without=dict.fromkeys(
        ("ids", "limit"), "`worst=N` chooses the photos") if settings.worst else {
            "scores": "`worst=N` reads them"})
    worst: Mapping[str, str] = {}
    if settings.worst:
        settings, worst = _of_worst(open_workspace(work), settings)
    root, names = settings.photos, list(settings.what)
    if root is None and len(names) > 1 and panels.holds_labels(Path(names[0])) is False:
        root, names = Path(names[0]), names[1:]
    bare = root is not None and names and not kinds.is_workspace(work)
    workspace = panels.bare_workspace(work, names) if bare else open_workspace(work)
    columns = panels.open_columns(workspace, names, settings.split)
    named = named_photos([root]) if root else panels.new_photos(columns, workspace.path)
    where = root.resolve().name if root else settings.split
    if named and root is None:
        where = columns[0].path.resolve().name
    rows = (_named_rows(named, columns, settings) if named
            else _split_rows(workspace, columns, settings))
    check_there([row.path for row in rows])
    rows = _chosen(rows, list(worst) or settings.ids.split(","), settings.limit,
                   [] if named else workspace.photos())
    _check_columns(columns, rows)

    drawn = _Sheet(workspace, columns, settings, worst)
    page = sheet(drawn.rows(rows), dict(enumerate(("background", *workspace.classes))))
    path = settings.out or workspace.path / "pictures" / f"{_stem(where, names, settings)}.png"
    with atomic.atomic_path(path) as temporary:
        page.save(temporary, format="PNG", compress_level=1)
    if settings.terminal:
        console.picture(path)
    warn_of_untagged_classes({key: name for key, name in drawn.untagged.items() if name},
                             len(drawn.untagged))
    if failed := drawn.failed:
        reasons = "; ".join(f"{key}: {why}" for key, why in failed.items())
        raise PhotosFailed(part_of(len(failed), len(rows), "photos", "was", "were")
                           + f" not fully drawn: {reasons}",
                           "the sheet shows the rest; fix them, or choose others: `ids='ID,ID'`",
                           path, list(failed))
    return path


def _named_rows(paths: Mapping[str, Path], columns: Sequence[panels.Column], settings: ShowSettings
                ) -> list[_Row]:
    """Select the photos with a file in any column; without columns, all."""
    why = "the photos are not the workspace's"
    warn_without_effect(settings, without={"split": why, "truth": why, "tagged": why})
    rows = [_Row(key, path) for key, path in paths.items()
            if not columns or any(column.file_of(key).exists() for column in columns)]
    if not rows:
        raise VplError(f"{', '.join(str(column.path) for column in columns)}: no file of a photo "
                       f"such as {next(iter(paths.values()))}",
                       "a photo and its mask share a name, with different suffixes")
    return rows


def _split_rows(workspace: Workspace, columns: Sequence[panels.Column], settings: ShowSettings
                ) -> list[_Row]:
    """Select the photos of the split, or of a class in it, with a file in any column, or else all.

    Photos requested by id are never left out.
    """
    photos = workspace.photos(settings.split)
    if settings.tagged:
        workspace.index_of(settings.tagged)
        photos = [photo for photo in photos if settings.tagged in photo.tags]
        if not photos:
            raise VplError(f"no photo of `{settings.split}` is tagged with `{settings.tagged}`",
                           "choose another split: `split='NAME'`")
    rows = [_Row(photo.id, workspace.image_path(photo), photo) for photo in photos]
    if settings.ids:
        return rows
    return [row for row in rows if any(
        column.file_of(row.id).exists() for column in columns)] or rows


def _chosen(rows: list[_Row], wanted: Sequence[str], limit: int, photos: Sequence[Photo]
            ) -> list[_Row]:
    """Select rows by id; without ids, evenly spread ones. An unknown id may be near any photo's."""
    if wanted == [""]:
        return rows[:: max(1, len(rows) // limit)][:limit]
    known = {row.id: row for row in rows}
    for key in wanted:
        if key not in known:
            others = {photo.id: photo.splits[0] for photo in photos
                      if photo.id not in known and photo.splits}
            near = get_close_matches(key, [*known, *others], n=1)
            raise VplError(f"no photo `{key}` among the {len(rows)} that can be shown",
                           f"did you mean `ids={near[0]!r}, split={others[near[0]]!r}`?"
                           if near and near[0] in others else near_name(key, known))
    return [known[key] for key in wanted]


def _check_columns(columns: Sequence[panels.Column], rows: Sequence[_Row]) -> None:
    """Check that each column has a file to show, or a recorded failure."""
    for column in columns:
        if not any(column.file_of(row.id).exists() or (
                column.source and row.id in column.source.failed) for row in rows):
            raise VplError(f"{column.path} holds none of the photos that are shown",
                           "choose others by `split='NAME'` or `ids='ID,ID'`, or name the folder "
                           "of its photos: `photos='DIR'`")


def _stem(where: str, names: Sequence[str], settings: ShowSettings) -> str:
    """Name a sheet after its contents, so that others do not replace it."""
    named = [[part for part in Path(name).parts if part.strip("/.")] for name in names]
    parts = [where, *("-".join(part[-3:]) for part in named),
             *filter(None, [settings.tagged]),
             *([f"worst-{settings.worst}"] if settings.worst else
               filter(None, settings.ids.split(","))), *([] if settings.truth else ["no-truth"])]
    stem = re.sub(r"[^\w.=+-]+", "-", "_".join(parts))
    return stem if len(stem) <= 120 else f"{stem[:110]}-{sha256(stem.encode()).hexdigest()[:6]}"


def _of_worst(workspace: Workspace, settings: ShowSettings) -> tuple[ShowSettings, dict[str, str]]:
    """Return the settings for the scored results, and reasons by id, the worst photo first."""
    path = settings.scores or _scores_of(workspace, settings)
    content = reports.read_scores(path)
    if "worst" not in content:
        raise VplError(f"{path} does not say which photos are the worst",
                       "`eval(what='predictions/NAME')`, or with `against='tags'`, writes scores "
                       "that do")
    why = {entry["id"]: entry["why"] for entry in content["worst"][:settings.worst]}
    if not why:
        raise VplError(f"{path}: the classes of every photo match its tags",
                       "`show()` without `worst` shows any photo")
    kind = str(content.get("scored", "predictions"))
    what = f"{kind}/{str(content['what']).removeprefix(f'{kind}-')}"
    return replace(settings, what=settings.what or (what,), split=str(content["split"])), why


def _scores_of(workspace: Workspace, settings: ShowSettings) -> Path:
    """Return the path of the scores of the first results shown, preferably against masks."""
    source = find_folder(workspace.path, ("predictions", "masks"), next(iter(settings.what), ""),
                         settings.split, f"`predict(split={settings.split!r})`",
                         kinds=("predictions", "masks", "cams"))
    split = str(source.header.options.get("split", settings.split))
    name = f"{source.kind}-{source.name}-{split}"
    for path in (kinds.result_path(workspace.path, "scores", end)
                 for end in (name, f"{name}-tags")):
        if path.exists():
            return path
    if source.header.images:
        raise VplError(f"{source.path} has no scores, since its photos have no tags",
                       f"`export('review', what='{source.kind}/{source.name}/{split}')` chooses "
                       "those that the segmenter is least sure of")
    wanted = f"what='{source.kind}/{source.name}', split={split!r}"
    raise VplError(f"no scores of {source.path}",
                   f"`eval({wanted})`, or without true masks `eval({wanted}, against='tags')`")
