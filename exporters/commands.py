"""The commands of the exporters, as plain functions that ``labelloop`` mounts: export, dataset list, dataset pull."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def export(
    *,
    source: Annotated[str, Parameter(name=["--from"])],
    formats: Annotated[str, Parameter(name=["--format"])] = "coco,voc,yolo-detect",
    to: str | None = None,
    label_config: Path | None = None,
    annotation: str = "latest",
    split: str = "train=.8,val=.1,test=.1",
    disputed: Literal["include", "exclude"] = "exclude",
    max_errors: float = 0.01,
    fetch: bool = True,
    copy_images: bool = False,
    json: Path | None = None,
) -> int:
    """Write annotated tasks as COCO, Pascal VOC and YOLO into a new version of a data set, in a folder or in S3.

    Args:
        source: a project's number, a Label Studio JSON export (or JSON lines), or s3://BUCKET/KEY.json.
        formats: the formats to write, by commas.
        to: where the data set lives: file:///DIR or s3://BUCKET/PREFIX. Default: the store, under the project's name.
        label_config: the label config (XML) of a JSON file; without it the labels in use are the classes.
        annotation: whose annotation counts: ground-truth, latest, user:ID or all. `latest` takes the ground truth
            where a task has one, else what was updated last.
        split: shares of the splits. An image stays in its split as the project grows.
        disputed: whether tasks that quality control holds for disputed are in the data set.
        max_errors: the share of regions that may fail (malformed, outside the image) before the version is not
            published and the exit status is 1.
        fetch: read the header of an image whose size neither the regions nor the task tell.
        copy_images: copy the photos into the version too, so that a trainer can load it as it is.
        json: where to write the report as JSON ("-": to the standard output).
    """
    raise NotImplementedError


def dataset_list(url: str) -> int:
    """List the versions of a data set, the published one marked.

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
    """
    raise NotImplementedError


def dataset_pull(
    url: str,
    *,
    to: Path,
    version: str = "latest",
    formats: Annotated[str | None, Parameter(name=["--format"])] = None,
) -> int:
    """Lay a version of a data set out as plain folders that a trainer reads.

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        to: the folder to write; one sub-folder for each format when there are several.
        version: "latest" or v000001.
        formats: the formats wanted, by commas; all by default.
    """
    raise NotImplementedError
