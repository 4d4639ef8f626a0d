"""What stops an import as a whole; what is wrong with one photo or object is a `Problem` of the report."""

from collections.abc import Sequence

from labelloop.service.errors import LabelloopError


class ImportFailed(LabelloopError):
    """An import cannot be made as asked."""

    code = "import_failed"
    status = 400


class LabelsMissing(ImportFailed):
    """The project's labelling interface cannot hold what the data set has."""

    code = "labels_missing"
    status = 409

    def __init__(self, project: int, missing: Sequence[str]) -> None:
        super().__init__(
            f"The labelling interface of project {project} has no place for all of it: {'; '.join(missing)}.",
            fix="Add them with --extend-labels (nothing that is there is changed), or leave them out with"
            " --only-known-labels.",
        )
        self.missing = tuple(missing)


class TitleTaken(ImportFailed):
    """A new project is asked for, and there is one of its title: most likely an import that was cut short."""

    code = "title_taken"
    status = 409

    def __init__(self, title: str, project: int) -> None:
        super().__init__(
            f"There is a project {title!r} already, number {project}.",
            fix=f"Go on with it by --project {project} (nothing is added twice), or give another --title.",
        )
