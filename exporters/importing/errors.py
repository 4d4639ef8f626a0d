"""What stops an import as a whole; what is wrong with one photo or object is a `Problem` of the report."""

from collections.abc import Sequence

from labelloop.service.errors import LabelloopError
from labelloop.service.studio import StudioRefused


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


_FIXES = {
    400: "If it is the labelling interface: make the project in Label Studio, and import with --project NUMBER.",
    403: "Use the token of an account that may change projects: LABELLOOP_LABEL_STUDIO_API_KEY.",
    413: "Let the proxy before Label Studio take larger requests, or reference the photos: --images reference.",
    429: "Label Studio has too much to do: run the command again later with --project NUMBER; nothing is added twice.",
}
_SERVER_FIX = "Label Studio's own log says more. Then run the command again: nothing is added twice."


class Refused(ImportFailed):
    """Label Studio refused a part of the import, with its own words."""

    code = "import_refused"
    status = 502

    def __init__(self, refused: StudioRefused) -> None:
        said = refused.detail or f"HTTP {refused.answer}"
        super().__init__(
            f"Label Studio refused {refused.what} ({refused.answer}): {said}",
            fix=_FIXES.get(refused.answer, _SERVER_FIX),
        )
        self.answer = refused.answer


class TitleTaken(ImportFailed):
    """A new project is asked for, and there is one of its title: most likely an import that was cut short."""

    code = "title_taken"
    status = 409

    def __init__(self, title: str, project: int) -> None:
        super().__init__(
            f"There is a project {title!r} already, number {project}.",
            fix=f"Go on with it by --project {project} (nothing is added twice), or give another --title.",
        )
