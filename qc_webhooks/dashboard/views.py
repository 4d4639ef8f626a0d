"""The dashboard's pages. Nobody but its package imports this module."""

import threading
import time
from collections.abc import Callable

import sqlalchemy as sa
import structlog
from flask import Blueprint, Flask, Response, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, NotFound

from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from qc_webhooks.dashboard import charts
from qc_webhooks.dashboard import formatting as words
from qc_webhooks.dashboard.auth import (
    HOME,
    Access,
    check_csrf,
    csrf_token,
    safe_next,
    session_key,
)
from qc_webhooks.dashboard.dispute_panels import lay_out
from qc_webhooks.dashboard.dispute_queue import PAGE, SORTS, STATES, Search
from qc_webhooks.dashboard.downloads import FILES, Source, as_csv, as_json
from qc_webhooks.dashboard.photos import Photos, refusal
from qc_webhooks.dashboard.project_view import Projects
from qc_webhooks.dashboard.whatif import THRESHOLDS, Scenario, scenarios

# Nothing comes from anywhere but us, no script or style is written into a page, and no other site frames one.
_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OPEN = {"dashboard.login", "dashboard.static"}

log = structlog.get_logger(__name__)


class DashboardPaths:
    """Paths that need no Basic auth: the dashboard has a log-in of its own; and others beside it."""

    def __init__(self, *others: str) -> None:
        self._others = others

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and (path in self._others or path == HOME or path.startswith(f"{HOME}/"))


def add_dashboard(app: Flask, settings: Settings, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
    """Adds the dashboard to an app, under ``/dashboard/``.

    Args:
        app: The service's app.
        settings: Holds the password; without one only the log-in answers, and says so.
        engine: The migrated database.
        clock: Seconds since 1970.
    """
    app.secret_key = session_key(settings)
    app.config.update(
        SESSION_COOKIE_NAME="labelloop_dashboard",
        SESSION_COOKIE_PATH=HOME,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.qc_url.startswith("https://"),
    )
    app.session_interface = _SchemeAwareSessions()
    pages = Blueprint(
        "dashboard",
        __name__,
        url_prefix=HOME,
        template_folder="templates",
        static_folder="static",
        static_url_path="/static",
    )
    access, projects = Access(settings, engine, clock=clock), Projects(settings, engine)
    _add_rules(pages, access)
    _add_log_in(pages, access)
    _add_pages(pages, projects)
    _add_disputes(pages, projects)
    _add_photos(pages, _Lazy(lambda: Photos(settings, engine)))
    _add_files(pages, projects)
    pages.context_processor(lambda: {"csrf_token": csrf_token, "words": words, "now": clock(), "settings": settings,
                                     "readable": charts.readable, "whisker": charts.whisker})  # fmt: skip
    app.register_blueprint(pages)

    @app.get("/")
    def root() -> ResponseReturnValue:
        return redirect(f"{HOME}/")


class _SchemeAwareSessions(SecureCookieSessionInterface):
    """The cookie is Secure where the request came by HTTPS, as the proxy in front says (`trusted_proxies`)."""

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or super().get_cookie_secure(app)


class _Lazy:
    """A value that is made when it is first asked for, once."""

    def __init__(self, make: Callable[[], Photos]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: Photos | None = None

    def __call__(self) -> Photos:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _add_rules(pages: Blueprint, access: Access) -> None:
    @pages.before_request
    def admit() -> ResponseReturnValue | None:
        if request.endpoint in _OPEN or access.is_logged_in():
            return None
        given = request.authorization
        if given is not None and given.type == "basic" and request.method == "GET" and access.is_on:
            # For scripts: `curl --user :PASSWORD`.
            if access.is_right(request, given.password or ""):
                return None
            return Response("The password is wrong.\n", 401, {"WWW-Authenticate": 'Basic realm="labelloop"'})
        wanted = request.full_path.rstrip("?") if request.method == "GET" else f"{HOME}/"
        return redirect(url_for("dashboard.login", next=wanted))

    @pages.after_request
    def protect(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        if request.is_secure:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        access.remember(response)
        if request.endpoint not in {"dashboard.static", "dashboard.photo"}:
            response.headers["Cache-Control"] = "no-store"
        return response

    @pages.errorhandler(LabelloopError)
    def ours(error: LabelloopError) -> ResponseReturnValue:
        if error.status >= 500:
            log.error("page_failed", code=error.code, exc_info=error)
        headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
        return render_template("dashboard/error.html", message=error.message, fix=error.fix), error.status, headers

    @pages.errorhandler(HTTPException)
    def http(error: HTTPException) -> ResponseReturnValue:
        return render_template(
            "dashboard/error.html", message=error.description or error.name, fix=""
        ), error.code or 500


def _add_log_in(pages: Blueprint, access: Access) -> None:
    @pages.route("/login", methods=["GET", "POST"])
    def login() -> ResponseReturnValue:
        target = safe_next(request.values.get("next", ""))
        wrong = False
        if request.method == "POST":
            check_csrf(request)
            if access.log_in(request, request.form.get("password", "")):
                return redirect(target)
            wrong = True
        elif access.is_logged_in():
            return redirect(target)
        session.permanent = False
        page = render_template("dashboard/login.html", next=target, wrong=wrong, on=access.is_on)
        return page, (403 if wrong else 200)

    @pages.post("/logout")
    def logout() -> ResponseReturnValue:
        check_csrf(request)
        session.clear()
        return redirect(url_for("dashboard.login"))


def _add_pages(pages: Blueprint, projects: Projects) -> None:
    @pages.get("/")
    def home() -> ResponseReturnValue:
        found = projects.all()
        if len(found) == 1:
            return redirect(url_for("dashboard.overview", project=found[0].project))
        return render_template("dashboard/projects.html", projects=found, view=None)

    @pages.get("/<int:project>/")
    def overview(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        return render_template(
            "dashboard/overview.html",
            view=view,
            here="overview",
            kinds=view.kinds(),
            time=charts.over_time(view.board.days),
            volume=charts.volume(view.board.days),
            concerned=[each for each in view.board.people if each.concerns],
            unclear=[split for split in view.board.splits if split.kind in {"guideline", "two views"}],
        )

    @pages.get("/<int:project>/agreement")
    def agreement(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        return render_template(
            "dashboard/agreement.html",
            view=view,
            here="agreement",
            time=charts.over_time(view.board.days, width=1180.0, height=280.0),
            volume=charts.volume(view.board.days, width=1180.0),
        )

    @pages.get("/<int:project>/labels")
    def labels(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        found = [(each.control, *charts.matrix(each)) for each in view.board.confusions]
        told = [split for split in view.board.splits if split.kind != "hard"]
        hard = [split for split in view.board.splits if split.kind == "hard"]
        return render_template(
            "dashboard/labels.html", view=view, here="labels", confusions=found, splits=told[:12], hard=hard[:12]
        )

    @pages.get("/<int:project>/annotators")
    def annotators(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        order = request.args.get("sort", "")
        return render_template(
            "dashboard/annotators.html",
            view=view,
            here="annotators",
            people=view.people(order),
            sort=order,
            floor=view.floor(),
            measured=any(each.against_truth.n for each in view.board.people),
        )

    @pages.get("/<int:project>/annotators/<annotator>")
    def annotator(project: int, annotator: str) -> ResponseReturnValue:
        view = projects.view(project)
        person = next((each for each in view.board.people if str(each.annotator) == annotator), None)
        if person is None:
            raise NotFound(f"Nobody with the number {annotator[:20]} is among the annotators that were counted.")
        rated = {**person.reliability.labels, **person.reliability.choices}
        matrices = [(control, found, *charts.own_matrix(found)) for control, found in rated.items()]
        return render_template(
            "dashboard/annotator.html",
            view=view,
            here="annotators",
            person=person,
            floor=view.floor(),
            rated=rated,
            matrices=[each for each in matrices if len(each[2]) > 1],
        )

    @pages.get("/<int:project>/what-if")
    def what_if(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        inforce = Scenario.of(view.policy)
        chosen = inforce.changed(request.args)
        replay = view.replay()
        found = [result for _, result in scenarios(replay, chosen)] if replay else []
        courses = (
            ("disputes", [each.disputes for each in found]),
            ("for a reviewer", [each.review for each in found]),
        )
        return render_template(
            "dashboard/whatif.html",
            view=view,
            here="whatif",
            inforce=inforce,
            chosen=chosen,
            before=inforce.run(replay) if replay else None,
            after=chosen.run(replay) if replay else None,
            curve=charts.curves(THRESHOLDS, courses, mark=chosen.agreement) if found else None,
        )


def _add_disputes(pages: Blueprint, projects: Projects) -> None:
    @pages.get("/<int:project>/disputes")
    def disputes(project: int) -> ResponseReturnValue:
        view, search = projects.view(project), Search.of(request.args)
        found = view.queue.count(search)
        shown = view.queue.page(search)
        cards = [(each, lay_out(each.drawing) if each.drawing else None) for each in shown]
        return render_template(
            "dashboard/disputes.html", view=view, here="disputes", search=search, cards=cards, found=found,
            pages=max(1, -(-found // PAGE)), states=STATES, sorts=SORTS,
        )  # fmt: skip

    @pages.get("/<int:project>/disputes/<int:task>")
    def dispute(project: int, task: int) -> ResponseReturnValue:
        view, search = projects.view(project), Search.of(request.args)
        found = view.queue.one(task)
        if found is None:
            raise NotFound(f"Quality control knows no task {task} in project {project}.")
        before, after = view.queue.around(search, found)
        photo = request.args.get("photo", "")
        asked = int(photo) if photo.isdecimal() and len(photo) < 5 else None
        uncut = request.args.get("whole") == "yes"
        laid = whole = None
        if found.drawing is not None:
            laid = lay_out(found.drawing, whole=uncut, photo=asked, panel_px=560)
            whole = lay_out(found.drawing, whole=True, photo=asked, panel_px=760)
        return render_template(
            "dashboard/dispute.html", view=view, here="disputes", search=search, dispute=found, laid=laid, whole=whole,
            uncut=uncut,
            before=before, after=after, writes=view.queue.writes(task),
        )  # fmt: skip


def _add_photos(pages: Blueprint, photos: Callable[[], Photos]) -> None:
    @pages.get("/<int:project>/photos/<int:task>/<int:place>/<int:width>.jpg")
    def photo(project: int, task: int, place: int, width: int) -> ResponseReturnValue:
        try:
            body = photos().jpeg(project, task, place, width)
        except LabelloopError as error:
            log.warning("photo_failed", project=project, task=task, reason=str(error))
            return Response(
                refusal(), error.status, content_type="image/svg+xml", headers={"Cache-Control": "no-store"}
            )
        return Response(body, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def _add_files(pages: Blueprint, projects: Projects) -> None:
    @pages.get("/<int:project>/files/<name>.<any(csv, json):form>")
    def file(project: int, name: str, form: str) -> ResponseReturnValue:
        view = projects.view(project)
        rows = FILES.get(name)
        if rows is None:
            raise NotFound(f"There is no file {name[:40]}; there are {', '.join(FILES)}.")
        scenario = Scenario.of(view.policy).changed(request.args)
        source = Source(view.queue, Search.of(request.args), view.board, view.replay(), scenario)
        write, kind = (as_csv, "text/csv; charset=utf-8") if form == "csv" else (as_json, "application/json")
        answer = Response(write(rows(source)), content_type=kind)
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}-{project}.{form}"'
        return answer
