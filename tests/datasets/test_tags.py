"""One's own CSV and photos: what is read, what is refused by name, what looks like a slip."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Run
from PIL import Image

from vpltool.datasets.layouts import PHOTO_SUFFIXES, named_photos, read_folder
from vpltool.datasets.tags import class_counts, class_remarks, company_remarks, read_tags
from vpltool.errors import VplError
from vpltool.formats import Photo


@pytest.fixture
def tags(tmp_path: Path) -> Path:
    return tmp_path / "tags.csv"


def labels_of(path: Path, text: str, encoding: str = "utf-8") -> dict[str, tuple[str, ...]]:
    path.write_text(text, encoding)
    return {row.id: row.labels for row in read_tags(path)[0]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("text", [
    "id;labels\na;cat,dog\nb;traffic light,\nc;cat\n",
    "ID;Labels\na;cat|dog\nb;traffic light|\nc;cat\n",
    "Id,LABELS\na,cat;dog\nb,traffic light;\nc,cat\n",
    'id;labels\na;"cat;dog"\nb;"traffic light;"\n"c";cat\n',
    "id;labels;split\na;cat dog;train\nb;traffic light,;val\nc;cat;\n",
    "labels\tid\ncat, dog\ta\ntraffic light;\tb\ncat\tc\n",
    ",id,labels\n0,a,cat;dog\n1,b,traffic light;\n2,c,cat\n",
    "id,labels\na,cat;dog\nb,traffic light;\na,cat;dog\nc,cat\n",
    "\nid,labels,,\na,cat;dog,,\n,,,\nb,traffic light;,,\nc,cat\n",
    "id,labels\r\na,cat;dog\r\nb,traffic light;\r\nc,cat",
    "sep=;\r\nid;labels\r\na;cat,dog\r\nb;traffic light,\r\nc;cat\r\n",
    '"SEP=,",\nid,labels\na,cat;dog\nb,traffic light;\nc,cat\n',
    # A column for each class.
    "id,cat,dog,traffic light\na,1,1,0\nb,0,0,1.0\nc,1.0,0.0,0\n",
    ";ID;cat;dog;traffic light;split\n0;a;Yes;YES;no;val\n1;b;;n;y\n2;c; yes ;-\n",
    "cat\tid\tdog\ttraffic light\tcaption\nx\ta\tX\t\ta cat\n\tb\t\tx\nTRUE\tc\tFalse\n",
])
def test_spreadsheets_of_all_countries(tags: Path, text: str, encoding: str) -> None:
    assert labels_of(tags, text, encoding) == {
        "a": ("cat", "dog"), "b": ("traffic light",), "c": ("cat",)}


def test_rows_know_their_lines_and_splits(tags: Path) -> None:
    tags.write_text("id;labels;Split\n\na;cat;val\nb;dog;\nc;dog;val,test\n")
    assert [(row.line, row.id, row.splits) for row in read_tags(tags)[0]] == [
        (3, "a", ("val",)), (4, "b", ("train",)), (5, "c", ("val", "test"))]


@pytest.mark.parametrize("text", [
    "id;labels\na;Big Dog, person\nb;Big Dog\nc;Big Dog,\n",
    "id,labels\na,Big Dog;person\nb,Big Dog\nc,Big Dog;\n",
    "id\tlabels\na\tBig Dog|person\nb\tBig Dog\nc\tBig Dog;\n",
])
def test_the_column_decides_how_labels_are_separated(tags: Path, text: str) -> None:
    """A name with a space is one label in every row, whether others stand beside it or not."""
    assert labels_of(tags, text) == {
        "a": ("Big Dog", "person"), "b": ("Big Dog",), "c": ("Big Dog",)}
    assert read_tags(tags)[1] == []


def test_spaces_that_may_separate_labels_are_told(tags: Path) -> None:
    tags.write_text("id,labels\na,cat;dog\nb,cat dog\nc,fire truck\n")
    rows, remarks = read_tags(tags)
    assert rows[1].labels == ("cat dog",)
    assert remarks == [f"{tags}: labels are separated by `;`, so 1 row has one label with a space, "
                       "such as `cat dog`; `cat;dog` has several"]


@pytest.mark.parametrize(("split", "meant"), [
    ("Train", "train"), ("training", "train"), ("trian", "train"), ("Val", "val"),
    ("validation", "val"), ("TEST", "test"), ("farm", "Farm")])
def test_misspelt_splits_are_refused_with_the_line(tags: Path, split: str, meant: str) -> None:
    tags.write_text(f"id,labels,split\na,cat,train\nb,dog,Farm\nc,dog,{split}\n")
    with pytest.raises(VplError) as caught:
        read_tags(tags)
    assert caught.value.message == f"{tags}:4 has the split `{split}`; did you mean `{meant}`?"


def test_other_names_are_splits_of_their_own(tags: Path) -> None:
    names = ["train2", "train-a", "trainval", "test-dev", "cal", "rest", "dev", "minival", "Farm"]
    tags.write_text("id,labels,split\n" + "".join(f"{name},cat,{name}\n" for name in names))
    assert [row.splits for row in read_tags(tags)[0]] == [(name,) for name in names]


ROW = "id,labels\n"
WRONG_FILES: dict[str, tuple[bytes, list[str], str]] = {
    "json": (json.dumps({"a": ["cat"]}).encode(), ["JSON"], "id,labels"),
    "json list": (b' [{"id": "a"}]', ["JSON"], "id,labels"),
    "html": (b"<table><tr>", ["HTML"], "id,labels"),
    "excel": (b"PK\x03\x04\x14\0\x06\0", ["Excel", "zip"], "save it from the spreadsheet as CSV"),
    "old excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ["Excel"], "save it from the spreadsheet"),
    "gzip": (gzip.compress(b"id,labels\n"), ["gzip"], "gunzip"),
    "picture": (b"\xff\xd8\xff\xe0", ["picture"], "id,labels"),
    "latin-1": ("id,labels\na,cat\nb,Kätzchen\n".encode("latin-1"),
                [":3 ", "UTF-8", "Latin-1", "b,Kätzchen"], "iconv -f LATIN1"),
    "utf-16": ("id,labels\na,cat\n".encode("utf-16"), ["UTF-16"], "iconv -f UTF-16"),
    "utf-16 without mark": ("id,labels\na,cat\n".encode("utf-16-le"), ["UTF-16"], "iconv"),
    "empty": (b"\n \n", ["empty"], "id,labels"),
    "no first line": (b"a.jpg,cat\nb.jpg,dog\n", ["a.jpg,cat", "first line"], "id,labels"),
    "other names": (b"filename;tags\na;cat\n", ["filename;tags", "first line"], "id,labels"),
    "numbers of a class": (b"id,label\na,1\nb,0\n", ["lacks the column labels"], "id,labels"),
    "a remark beside classes": (b"id,cat,notes\na,1,x\n", ["lacks the column labels"],
                                "id,labels"),
    "only a first line": (ROW.encode(), ["no rows"], "id,labels"),
    "two columns of labels": (b"id,labels,labels\na,cat,dog\n", ["labels twice"], "by `;`"),
    "no id": (b"id,labels\na,cat\n,dog\n", [":3 ", "no id"], "file name"),
    "a row twice": (b"id,labels\na,cat\nb,cat\na,dog\n", [":4", "a is listed twice", "line 2"],
                    "join"),
    "a row twice, with ;": (b"id;labels\na;cat\na;dog\n", [":3", "listed twice"], "by `,`"),
    "a row twice, with |": (b"id;labels\na;cat|cow\na;dog\n", [":3", "listed twice"], "by `|`"),
    "too many fields": (b"id;labels\na;cat;dog\n", [":2", "row of a", "dog"], "`;` in quotes"),
    "a column without a name": (b"id;labels;\na;cat;\nb;cat;dog\n", [":3", "dog"], "labels by `,`"),
    "columns without a name": (b"id,labels,,\na,cat,,dog\n", ["such as dog"], "labels by `;`"),
    "an open quote": (b'id,labels\na,cat\nb,"dog\nc,cat\n', [":3", "several lines"], "quotation"),
    "background": (b"id,labels\na,cat\nb,Background;dog\n", [":3", "`Background`", "index 0"],
                   "leave the tag out"),
    "a column that is no class": (b"id,cat,size\na,1,0\nb,0,12\n", [":3", "column size", "`12`"],
                                  "id,labels"),
    "a class that is unknown": (b"id,Cat\na,1\nb,NA\n", [":3", "column Cat", "`NA`"], "yes or no"),
    "a class twice": (b"id,cat,Cat\na,1,0\n", ["cat twice"], "keep one"),
    "a class with a comma": (b'id,"cell, dead"\na,1\n', ["`cell, dead`", "mark"], "another name"),
    "no class": (b"id,cat,dog\na,0,0\nb,,\n", ["no classes", "2 rows"], "columns of the classes"),
    "no label": (b"id,labels\na,\nb, \n", ["no classes", "2 rows"], "column labels"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_will_not_do_is_told_what_it_is(tags: Path, case: str) -> None:
    content, said, hint = WRONG_FILES[case]
    tags.write_bytes(content)
    with pytest.raises(VplError) as caught:
        read_tags(tags)
    for part in (str(tags), *said):
        assert part in caught.value.message
    assert hint in caught.value.hint


def test_all_rows_that_cannot_be_used_are_told_at_once(tags: Path) -> None:
    tags.write_text("id,labels\na,cat\n,dog\na,dog\nb,dog,cat\nc,background\nb,cat\nd,cat\n")
    with pytest.raises(VplError) as caught:
        read_tags(tags)
    assert caught.value.message == (
        f"{tags}: 5 rows cannot be used: line 3 has no id; "
        "line 4: a is listed twice, first in line 2; "
        "line 5: the row of b has more fields than named columns, such as cat; "
        "line 6 has the tag `background`; the background is not a class but index 0; "
        "line 7: b is listed twice, first in line 5")
    assert caught.value.hint.count("join the rows") == 1
    assert "an id is a photo's file name; join" in caught.value.hint
    tags.write_text("id,labels\n" + 9 * ",dog\n" + 'a,"cat\nb,dog\n')
    with pytest.raises(VplError) as caught:
        read_tags(tags)
    assert "10 rows cannot be used: line 2 has no id; " in caught.value.message
    assert caught.value.message.endswith("line 6 has no id; and 5 more")


def test_all_rows_without_a_photo_of_their_name_are_told_at_once(folder: Path) -> None:
    (folder / "tags.csv").write_text("id,labels\nA,cat\nB,cat\nb,cat\nb.png,dog\nc,cat\n")
    with pytest.raises(VplError) as caught:
        read_folder(folder / "photos", folder / "tags.csv", None)
    assert "tags.csv: 3 rows cannot be used: line 2: no photo called A in " in caught.value.message
    assert "; line 5: b is listed twice, as b.png here and as b in line 4" in caught.value.message
    assert "did you mean `a`? " in caught.value.hint


def test_leading_zeros_that_a_spreadsheet_has_dropped(folder: Path) -> None:
    (folder / "photos/a.jpg").rename(folder / "photos/0007.jpg")
    (folder / "tags.csv").write_text("id,labels\n7,cat\nb,cat\n")
    with pytest.raises(VplError) as caught:
        read_folder(folder / "photos", folder / "tags.csv", None)
    assert "line 2" in caught.value.message or ":2: no photo called 7" in caught.value.message
    assert "did you mean `0007`? Spreadsheets drop leading zeros" in caught.value.hint


def test_rows_without_a_photo_do_not_list_the_folder_each(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tags.csv").write_text(
        "id,labels\na,cat\nb,dog\n" + "".join(f"x{number},cat\n" for number in range(100)))
    listed: list[object] = []
    scandir = os.scandir

    def counted(path: str) -> object:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert len(read_folder(folder / "photos", folder / "tags.csv", None)[0]) == 2
    assert len(listed) < 20


def test_a_csv_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VplError, match=r"tags.csv does not exist") as caught:
        read_tags(tmp_path / "tags.csv")
    assert "id,labels" in caught.value.hint
    (tmp_path / "Tags.csv").touch()
    with pytest.raises(VplError) as caught:
        read_tags(tmp_path / "tags.csv")
    assert "Tags.csv" in caught.value.hint
    with pytest.raises(VplError, match="directory"):
        read_tags(tmp_path)


@pytest.mark.parametrize(("text", "said"), [
    ('a,cat\nb,"dog, person"\n', [":3 ", "`dog,`", "by ;"]),
    ("a,cat\nb,dog|person\n", [":3 ", "`dog|person`", "by ;"]),
    ("a,\"['cat', 'dog']\"\n", [":2 ", "by ;"]),
    ("a,cat\nb,traffic light\nc,dog cat\n",
     ["2 rows", "`traffic light` into `traffic` and `light`", "`traffic light;`"]),
    ("a,cat\nb,traffic light\n", ["labels of 1 row are split"]),
    ("a,cat,dog\nb,dog,train\n", [":2 ", "the split `dog`", "by ;"]),
    ("a,cat\nb,No\nc,yes;\n", ["`No`, `yes` look like answers", "leave the field empty"]),
    ("a,cat\nb,N/A\n", ["`N/A` looks like an answer, not a class"]),
    ("a,1\nb,0.0\n", ["`0.0`, `1` look like answers"]),
])
def test_doubtful_labels(tags: Path, text: str, said: list[str]) -> None:
    tags.write_text(("id,labels,split\n" if text.count(",") == 4 else ROW) + text)
    remark, = read_tags(tags)[1]
    for part in said:
        assert part in remark
    assert read_tags(tags, classes_known=True)[1] == [], "they are checked against the classes"


def test_digits_are_classes_among_others(tags: Path) -> None:
    tags.write_text("id,labels\na,0\nb,1\nc,7\n")
    assert read_tags(tags)[1] == []


def test_the_separator_that_is_told_works_in_the_file(tags: Path) -> None:
    tags.write_text("id;labels\na;cat\nb;traffic light\n")
    assert "needs a comma: `traffic light,`" in read_tags(tags)[1][0]
    assert labels_of(tags, "id;labels\na;cat\nb;traffic light,\n")["b"] == ("traffic light",)


def photos_with(**counts: int) -> list[Photo]:
    return [Photo(f"{name}-{number}", "", (name.replace("_", " "),), ("train",))
            for name, count in counts.items() for number in range(count)]


@pytest.mark.parametrize(("counts", "twins"), [
    ({"Person": 2, "person": 12}, ["`Person` (2 photos) and `person` (12 photos)"]),
    ({"persn": 1, "person": 12}, ["`persn` (1 photo) and `person` (12 photos)"]),
    ({"preson": 2, "person": 12, "cat": 2, "cats": 9},
     ["`cat` (2 photos) and `cats` (9 photos)", "`person` (12 photos) and `preson` (2 photos)"]),
    ({"trafficlight": 5, "traffic_light": 5}, ["`traffic light` (5", "`trafficlight` (5"]),
    # Words that differ by a letter and are both frequent, or are short.
    ({"horse": 12, "house": 14}, []),
    ({"cat": 2, "car": 12, "cow": 3, "dog": 2}, []),
])
def test_near_twins(counts: dict[str, int], twins: list[str]) -> None:
    remarks = [text for text in class_remarks(photos_with(**counts)) if "look like one" in text]
    assert len(remarks) == bool(twins)
    for twin in twins:
        assert twin in remarks[0]
    assert not any("look like one" in text
                   for text in class_remarks(photos_with(**counts), classes_known=True))


def test_classes_of_one_photo_and_counts() -> None:
    photos = photos_with(cat=3, dog=1, boat=1)
    assert class_remarks(photos) == ["2 of 3 classes have only one photo: boat, dog"]
    assert class_counts(photos, ("boat", "cat", "dog", "bus")) == (
        "photos of each class: cat 3, boat 1, dog 1, bus 0")
    many = [f"c{number}" for number in range(50)]
    assert class_counts([], many).endswith(", and 10 more, down to 0")


def test_classes_that_no_photo_tells_apart() -> None:
    both = [Photo(str(number), "", ("cell", "dish"), ("train",)) for number in range(12)]
    rest = [Photo(f"r{number}", "", ("dish",), ("train",)) for number in range(30)]
    none = [replace(photo, tags=()) for photo in rest]
    assert company_remarks(both[:9]) == company_remarks([]) == []
    assert company_remarks(both)[0].startswith("every photo has `cell`, `dish`: CAMs cannot tell")
    remark, = company_remarks(both + rest)
    assert remark.startswith("every photo has `dish`: ")
    remark, = company_remarks(both + rest + none)
    assert remark.startswith("CAMs can hardly tell apart") and "`cell` and `dish`" in remark
    alone = [replace(photo, tags=("cell",)) for photo in rest[:1]]
    assert company_remarks(both + rest + none + alone) == [], "12 of 13 is less than 95 %"
    scored = [replace(photo, splits=("val",)) for photo in none]
    assert len(company_remarks(both + scored)) == 1, "these teach nothing"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a.jpg", "b.png", "c.jfif", "d.gif")):
        save(tmp_path / "photos" / name, number)
    return tmp_path


def save(path: Path, number: int) -> None:
    Image.new("RGB", (40 + number, 30), (50 * number, 99, 9)).save(
        path, format="JPEG" if path.suffix == ".jfif" else None)


def remarks_of(folder: Path, *rows: str) -> list[str]:
    (folder / "tags.csv").write_text("\n".join(["id,labels,split", *rows, ""]))
    return read_folder(folder / "photos", folder / "tags.csv", None, classes_known=True)[2]


ALL = ("a,cat,train", "b,dog,train", "c,cat,train", "d,dog,val")


def test_all_is_well(folder: Path) -> None:
    assert remarks_of(folder, *ALL) == []


def test_photos_without_a_row(folder: Path) -> None:
    (folder / "photos/._a.jpg").write_bytes(b"a Mac's note on a.jpg")
    (folder / "photos/.thumbs").mkdir()
    save(folder / "photos/.thumbs/a.png", 9)
    remark, = (text for text in remarks_of(folder, "a,cat", "b,cat") if "no row" in text)
    assert "2 of 4 photos" in remark
    assert "c.jfif, d.gif" in remark


def test_rows_without_a_photo(folder: Path) -> None:
    """One photo that was deleted stops nothing."""
    remark, = remarks_of(folder, *ALL, "ghost,cat,train", "sub/ghost,cat,train")
    assert remark.startswith("2 of 6 rows of ")
    assert "are skipped: ghost, sub/ghost; delete these rows, or put the photos back" in remark


def test_a_row_that_leaves_out_the_folder(folder: Path) -> None:
    (folder / "photos/sub").mkdir()
    save(folder / "photos/sub/0009.jpg", 9)
    for name in ("0009", "0009.jpg"):
        remark = remarks_of(folder, *ALL, f"{name},cat,train")[0]
        assert f"skipped: {name}; an id includes the folders; did you mean `sub/0009`" in remark


def nested(folder: Path) -> None:
    for number, name in enumerate(("one/x.jpg", "two/x.jpg", "x\\y.jpg", "x/y.jpg")):
        (folder / "photos" / name).parent.mkdir(exist_ok=True)
        save(folder / "photos" / name, 5 + number)


def test_a_row_that_leaves_out_one_of_several_folders(folder: Path) -> None:
    nested(folder)
    remark = remarks_of(folder, *ALL, "x,cat,train")[0]
    assert "did you mean `one/x` or `two/x` by `x`?" in remark
    with pytest.raises(VplError) as caught:
        remarks_of(folder, *ALL, "x.jpg,cat,train", "x.jpg,dog,train")
    assert caught.value.message.endswith(
        ":7: x.jpg is listed twice, first in line 6, and is the name of 2 photos: "
        "one/x.jpg, two/x.jpg")
    assert caught.value.hint == "write their folders, too"


def test_paths_as_windows_writes_them(folder: Path) -> None:
    """A photo that is really called so has the first right to its name."""
    nested(folder)
    (folder / "tags.csv").write_text(
        "id,labels\none\\x.jpg,cat\nx\\y,dog\nC:\\me\\two\\x.jpg,cow\n/home/me/d,cat\n"
        "D:\\three\\x.jpg,cat\n")
    photos, _, remarks, _ = read_folder(folder / "photos", folder / "tags.csv", None)
    assert {photo.id: photo.tags for photo in photos} == {
        "one/x": ("cat",), "x\\y": ("dog",), "two/x": ("cow",), "d": ("cat",)}
    assert "C:\\me\\two\\x.jpg is two/x.jpg, /home/me/d is d" in remarks[0]
    assert "D:/three/x.jpg; an id is a path below " in remarks[1]
    # Paths of other folders, and of a photo that has a row, are skipped as before.
    (folder / "tags.csv").write_text(
        "id,labels\na,cat\n/other/a.jpg,dog\n/one/set/d.jpg,cat\n/two/set/d.jpg,dog\n")
    photos, _, remarks, _ = read_folder(folder / "photos", folder / "tags.csv", None)
    assert {photo.id: photo.tags for photo in photos} == {"a": ("cat",)}
    assert "3 of 4 rows" in remarks[0]


def test_the_same_photo_under_two_ids(folder: Path) -> None:
    (folder / "photos/copy.jpg").write_bytes((folder / "photos/a.jpg").read_bytes())
    remark, = remarks_of(folder, *ALL, "copy,dog,val")
    assert "a.jpg and copy.jpg" in remark
    assert "1 of these 1 in different splits" in remark
    remark, = remarks_of(folder, *ALL, "copy,dog,train")
    assert "different splits" not in remark
    # The same size is not the same photo.
    (folder / "photos/copy.jpg").write_bytes(bytes((folder / "photos/a.jpg").stat().st_size))
    assert remarks_of(folder, *ALL, "copy,dog,train") == []


def test_a_photo_in_train_and_val(folder: Path) -> None:
    remark, = remarks_of(folder, *ALL[:3], "d,dog,train;val")
    assert "1 photo is in `train` and in `val`, such as d" in remark


def test_two_files_of_one_id(folder: Path) -> None:
    save(folder / "photos/a.png", 7)
    remark = remarks_of(folder, *ALL)[0]
    assert "the first of several files" in remark
    assert "a.jpg or a.png" in remark
    assert "several files" not in "".join(remarks_of(folder, "a.png,cat,train", *ALL[1:]))
    with pytest.raises(VplError, match=r"tags.csv:6: a.jpg and a.png would both be the photo a"):
        remarks_of(folder, *ALL, "a.png,dog,train")


def test_one_photo_in_two_rows(folder: Path) -> None:
    with pytest.raises(VplError, match=r"tags.csv:6: a is listed twice, .*a.jpg .* line 2"):
        remarks_of(folder, *ALL, "a.jpg,dog,val")
    assert remarks_of(folder, *ALL, "a.jpg,cat,train") == [], "it says the same"


def test_sentences_for_labels(folder: Path) -> None:
    words = " ".join(f"word{number}" for number in range(255))
    (folder / "tags.csv").write_text(f"id,labels\na,{words}\n")
    with pytest.raises(VplError, match="255 different labels") as caught:
        read_folder(folder / "photos", folder / "tags.csv", None)
    assert "not sentences" in caught.value.hint


@pytest.mark.parametrize(("file", "key", "hint"), [
    ("x.heic", "x", "magick"), ("x.HEIC", "x.HEIC", "convert .HEIC to JPEG"),
    ("x.y.avif", "x.y", "convert .avif"), ("notes.txt", "notes", "give photos")])
def test_a_row_of_a_file_that_is_not_taken(folder: Path, file: str, key: str, hint: str) -> None:
    (folder / "photos" / file).touch()
    with pytest.raises(VplError) as caught:
        remarks_of(folder, *ALL, f"{key},cat,train")
    assert f"{file}: {Path(file).suffix} is not supported; photos end in .bmp, .gif, " in (
        caught.value.message)
    assert "tags.csv:6" in caught.value.message
    assert hint in caught.value.hint


def test_photos_that_must_be_converted_are_named(folder: Path) -> None:
    photos = folder.joinpath("photos").rename(folder / "my photos")
    for name in ("x.heic", "y.HEIC", "a.HEIC", "._z.heic"):
        (photos / name).touch()
    with pytest.warns(UserWarning, match="skipped: x.heic, y.HEIC; convert .heic") as told:
        assert [*named_photos([photos])] == [*"abcd"]
    assert "2 of 7 photos" in str(told[0].message)
    assert f"magick '{photos}/x.heic' '{photos}/x.jpg'" in str(told[0].message)


def test_named_photos(folder: Path) -> None:
    (folder / "photos/notes.txt").touch()
    photos = folder / "photos"
    assert named_photos([photos]) == {
        "a": photos / "a.jpg", "b": photos / "b.png", "c": photos / "c.jfif",
        "d": photos / "d.gif"}
    assert named_photos([photos / "d.gif"]) == {"d": photos / "d.gif"}
    hidden = photos.rename(folder / ".photos")
    assert [*named_photos([hidden])] == [*"abcd"], "a folder that is given is not hidden"
    hidden.rename(photos)
    (folder / "README.md").touch()
    (folder / "phone.heic").touch()
    for name, hint in (("README.md", "give photos"), ("phone.heic", "convert .heic to JPEG")):
        with pytest.raises(VplError) as caught:
            named_photos([photos, folder / name])
        assert f"{name}: {Path(name).suffix} is not supported" in caught.value.message
        assert all(suffix in caught.value.message for suffix in PHOTO_SUFFIXES)
        assert hint in caught.value.hint
    for name, hint in (("nowhere", "give photos, or folders of photos"),
                       ("Photos", f"did you mean `{photos.as_posix()}`?")):
        with pytest.raises(VplError, match=f"{name} does not exist") as caught:
            named_photos([folder / name])
        assert caught.value.hint == hint
    with pytest.raises(VplError, match=r"would both be a.png"):
        named_photos([photos, photos / "a.jpg"])
    # In a folder that others fill, such a pair must not stop the rest.
    (photos / "d.png").touch()
    with pytest.warns(UserWarning, match=r"1 photo in \S+ is skipped: d.png would be d.png, as "
                                         "d.gif is"):
        assert named_photos([photos])["d"] == photos / "d.gif"
    (folder / "empty").mkdir()
    with pytest.raises(VplError, match="no photo in"):
        named_photos([folder / "empty"])


def test_the_page_lists_the_suffixes() -> None:
    page = (Path(__file__).parents[2] / "docs/own-data.md").read_text("utf-8")
    line = next(line for line in page.splitlines() if line.strip().startswith("photos/"))
    assert {word.rstrip(";") for word in line.split() if word.startswith(".")} == PHOTO_SUFFIXES


def test_prepare_says_classes_and_doubts(folder: Path, tiny_clip: Path, run: Run) -> None:
    (folder / "tags.csv").write_text("id;labels\na;Cat,traffic light\nb;cat\nc;\n")
    result = run("prepare", "folder", folder / "photos", "--labels", folder / "tags.csv",
                 "--pretrained", tiny_clip, work=folder / "work")
    assert result.code == 0, result.err
    assert "photos of each class: Cat 1, cat 1, traffic light 1" in result.err
    warnings = "\n".join(result.lines("warning:"))
    assert "`Cat` (1 photo) and `cat` (1 photo)" in warnings
    assert "3 of 3 classes have only one photo" in warnings
    assert "1 of 4 photos in" in warnings
    assert "1 photo has no tag" in warnings


@pytest.mark.parametrize("rows", [
    'a,"dog, human being"\nb,"dog, cat"\n', 'a,dog\nb,"human being, dog"\n',
    'a,cat;dog\nb,"dog,cat"\n'])
def test_labels_separated_by_commas_are_refused(tags: Path, rows: str) -> None:
    tags.write_text(f"id,labels\n{rows}")
    with pytest.raises(VplError, match="separates labels by commas") as caught:
        read_tags(tags)
    assert "`dog` is a label of other rows" in caught.value.message
    assert ";" in caught.value.hint


def test_a_comma_in_a_name_is_left_to_the_user(tags: Path) -> None:
    """No part of it is a label."""
    assert labels_of(tags, 'id,labels\na,"dog, wild;"\nb,cat\n') == {
        "a": ("dog, wild",), "b": ("cat",)}


def test_a_row_of_a_photo_before_it_was_converted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "IMG_1.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "IMG_2.jpg")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"heic")
    (tmp_path / "tags.csv").write_text("id,labels\nIMG_1.HEIC,cat\nIMG_2.heic,dog\n")
    photos, _, remarks, _ = read_folder(tmp_path, tmp_path / "tags.csv", None)
    assert [(photo.image, photo.tags) for photo in photos] == [
        ("IMG_1.jpg", ("cat",)), ("IMG_2.jpg", ("dog",))]
    assert any("IMG_1.HEIC is IMG_1.jpg, IMG_2.heic is IMG_2.jpg" in said for said in remarks)
    assert not any("skipped" in said for said in remarks)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """As in VOC. It is no slip that all photos are in the split of that name."""
    path = tmp_path / "tags.csv"
    path.write_text("id,labels\na,train\nb,train;cat\n")
    assert read_tags(path)[1] == []
    path.write_text("id,labels,split\na,cat,dog\nb,dog,train\n")
    assert "has the split `dog`, which is also a label" in read_tags(path)[1][0]
