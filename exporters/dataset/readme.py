"""Write the README.md of a data set: what lies where, how to load it, and what is in it."""

from collections.abc import Mapping, Sequence

from exporters.model.manifest import PHOTOS, DatasetManifest
from exporters.tasks.table import TASK_FORMATS, format_class
from exporters.tasks.tokens import TOKENIZER
from labelloop.service.store.addresses import bucket_scheme, split_bucket_url

_LISTED_CLASSES = 200


def readme(url: str, manifest: DatasetManifest, *, folder: str) -> str:
    """Return the text of README.md.

    Args:
        url: The address of the data set.
        manifest: The version.
        folder: The folder of the data set in which the README lies, with a slash at its end.
    """
    is_latest = folder == "latest/"
    address = f"{url}/{folder}"
    has_images = any(PHOTOS in generation.tables for generation in manifest.generations)
    images = sum(manifest.splits.values())
    has_lines = any(name in TASK_FORMATS for name in manifest.formats)
    is_of_images = any(name not in TASK_FORMATS for name in manifest.formats)
    contents = []
    if is_of_images:
        contents.append(f"{images:,} images ({_counts(manifest.splits)}), {len(manifest.classes):,} classes")
    if has_lines:
        contents.append(f"{sum(manifest.lines.values()):,} tasks ({_counts(manifest.lines)})")
    about = ", ".join(contents)
    lines = [
        f"# {url.rpartition('/')[2] or url} {manifest.version}",
        "",
        f"{about}, exported {manifest.created_at} by {manifest.code}.",
    ]
    if not manifest.published:
        lines += ["", f"**Not published: {manifest.refused}.**"]
    if is_latest:
        lines += ["", _MIRROR.format(manifest.version)]
    lines += [
        "",
        *(["Images lie next to the labels." if has_images else _WITHOUT_IMAGES, ""] if is_of_images else []),
        "| what | where | how to load it |",
        "|---|---|---|",
        *(_row(name, address, is_latest=is_latest) for name in manifest.formats),
        *(
            ["| images: name, address, task, size, split | `images.jsonl` | a line of JSON each |"]
            if is_of_images
            else []
        ),
        "| what is not in the data set, and why | `dropped.jsonl` | a line of JSON each |",
        *(_CLASSES if is_of_images else ()),
        *(f"{number}. {_text(name)}" for name, number in list(manifest.classes.items())[:_LISTED_CLASSES]),
    ]
    if len(manifest.classes) > _LISTED_CLASSES:
        lines.append(f"\nand {len(manifest.classes) - _LISTED_CLASSES} more.")
    return "\n".join(lines) + "\n"


def _row(name: str, address: str, *, is_latest: bool) -> str:
    how = _HOW.get(name) or _HOW.get(name.partition("-")[0], "")
    has_file_per_image = format_class(name).file_per_image
    if is_latest or not has_file_per_image:
        return f"| {name} | `{name}/` | {_sync(address + name) if has_file_per_image else ''}{how} |"
    return f"| {name} | `{name}.zip` | unzip it to `DIR`, then {how} |"


_CLASSES = ("", "## Classes", "", "COCO counts classes from 1, YOLO from 0 (one less).", "")
_MIRROR = (
    "This folder is a mirror of the newest version. Wait while `VERSION.json` says `updating`. What never changes lies"
    " in `versions/{}/`."
)
_WITHOUT_IMAGES = (
    "Images are not copied: `images.jsonl` has the address of each. `labelloop export --copy-images` copies them."
)
# Format, or what its name starts with -> how it is loaded from the folder `DIR`.
_HOW: Mapping[str, str] = {
    "coco": "`pycocotools.coco.COCO('coco/annotations/instances_train.json')`",
    "voc": "`DIR/Annotations/`, `DIR/JPEGImages/` and `DIR/ImageSets/` as in VOCdevkit",
    "yolo": "`yolo train data=DIR/data.yaml`",
    "yolo-classify": "`yolo classify train data=DIR`",
    "ndjson": "`yolo train data=dataset.ndjson`",
    "tasks-jsonl": "a line of JSON each: `json.loads(line)`; labelloop's docs/reference/flat-form.md has the keys",
    "tasks-parquet": "`pandas.read_parquet('tasks-parquet/train.parquet')`",
    "conll": f"CoNLL-2003 columns, BIO tags. A token is {TOKENIZER}",
    "spacy-jsonl": f"Prodigy's JSON Lines; spaCy: `doc.char_span(start, end, label)`. A token is {TOKENIZER}",
    "csv": "`pandas.read_csv('csv/train.csv')`; lists are JSON",
    "preference-jsonl": "`prompt`, `chosen`, `rejected`, as TRL's trainers read them",
    "semantic-png": "`masks/train/NAME.png`: class numbers of pixels; `classes.json`: names, colours, ignore index",
    "coco-panoptic": "`annotations/panoptic_train.json` with `annotations/panoptic_train/` as panopticapi reads them",
    "dota": "`DIR/train/labelTxt/` and `DIR/train/images/` as in DOTA",
    "imagefolder": "`datasets.load_dataset('imagefolder', data_dir='DIR')`",
    "webdataset": "`webdataset.WebDataset('train-000000.tar')`",
}


def _sync(place: str) -> str:
    bucket, key = split_bucket_url(place)
    commands = {
        "s3": f"`aws s3 sync {place} DIR`, then ",
        "gs": f"`gcloud storage rsync --recursive {place} DIR`, then ",
        "az": f"`az storage blob download-batch --source {bucket.removeprefix('az://')} --pattern '{key}/*'"
        f" --destination .`, `DIR` is `{key}`: ",
    }
    return commands.get(bucket_scheme(place), f"`DIR` is `{place}`: ")


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in numbers.items()) or "none"


def _text(name: str) -> str:
    """Return a class name as Markdown that renders as written."""
    return "".join(f"\\{letter}" if letter in _MARKDOWN else letter for letter in " ".join(name.split()))


_MARKDOWN: Sequence[str] = tuple("\\`*_[]<>#|")
