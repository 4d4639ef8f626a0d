"""The command `labelloop dataset report`."""

from contextlib import ExitStack, closing
from pathlib import Path

from exporters.dataset.versions import read_version
from exporters.report.page import html_report
from labelloop.service.logging import setup_logging
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from labelloop.service.studio import Studio


def dataset_report(
    url: str, *, out: Path = Path("report.html"), version: str = "latest", samples: int = 24, images: bool = True
) -> None:
    """Write a version as one page that a person reads.

    Classes, sizes, splits, samples with their objects drawn, what was left out and why. The page holds its pictures and
    loads nothing, so it can be sent or kept with the data set.

    ```
    labelloop dataset report s3://bucket/cars --out cars.html
    ```

    Args:
        url: where the data set lives: file:///DIR or s3://BUCKET/PREFIX.
        out: the HTML file to write.
        version: "latest", or a number: 3 or v000003.
        samples: how many images are shown with their objects drawn.
        images: fetch photos that the version has no copy of.
    """
    settings = Settings()
    setup_logging(settings.but(log_level="ERROR"))
    store = open_store(url, settings)
    manifest = read_version(store, version)
    with ExitStack() as opened:
        media = None
        if images:
            known = settings.label_studio_api_key.get_secret_value()
            studio = opened.enter_context(closing(Studio.from_settings(settings))) if known else None
            media = opened.enter_context(closing(Media(settings, studio)))
        page = html_report(store, manifest, media=media, samples=max(0, samples))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    print(f"{manifest.version} of {store.url}: {out} ({len(page.encode()) / 1e6:.1f} MB)")
