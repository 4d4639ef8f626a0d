"""Flask blueprint of the dashboard: access control, pages, images and downloads."""

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
from qc_webhooks.annotators import OPEN_KINDS
from qc_webhooks.dashboard import charts, formatting
from qc_webhooks.dashboard.actions import DONE, add_actions
from qc_webhooks.dashboard.auth import (
    BASE_PATH,
    AccessControl,
    check_csrf,
    csrf_token,
    safe_next,
    session_key,
)
from qc_webhooks.dashboard.dispute_panels import build_panels
from qc_webhooks.dashboard.dispute_queue import PAGE_SIZE, SORTS, STATES, Search
from qc_webhooks.dashboard.downloads import DOWNLOADS, DownloadSource, as_csv, as_json
from qc_webhooks.dashboard.project_view import ConnectedProjects
from qc_webhooks.dashboard.task_images import TaskImages, placeholder_svg
from qc_webhooks.dashboard.whatif import THRESHOLDS, Scenario, replay_thresholds
from qc_webhooks.report.tuning import policy_block
from qc_webhooks.report.tuning_page import tuning_chart

# All resources come from this server; no inline scripts or styles; no framing by other sites.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PUBLIC_ENDPOINTS = {"dashboard.login", "dashboard.static"}

log = structlog.get_logger(__name__)


class DashboardPaths:
    """Paths exempt from Basic auth: the dashboard, which has its own log-in, and the given others."""

    def __init__(self, *others: str) -> None:
        self._others = others

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and (path in self._others or path == BASE_PATH or path.startswith(f"{BASE_PATH}/"))


def add_dashboard(app: Flask, settings: Settings, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
    """Add the dashboard to an app, under ``/dashboard/``.

    Args:
        app: The service's app.
        settings: Hold the password; without one only the log-in page answers, and says why.
        engine: The migrated database.
        clock: Returns seconds since 1970.
    """
    app.secret_key = session_key(settings)
    app.config.update(
        SESSION_COOKIE_NAME="labelloop_dashboard",
        SESSION_COOKIE_PATH=BASE_PATH,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.qc_url.startswith("https://"),
    )
    app.session_interface = _SchemeAwareSessions()
    pages = Blueprint(
        "dashboard",
        __name__,
        url_prefix=BASE_PATH,
        template_folder="templates",
        static_folder="static",
        static_url_path="/static",
    )
    access, projects = AccessControl(settings, engine, clock=clock), ConnectedProjects(settings, engine)
    _add_access_control(pages, access)
    _add_login_pages(pages, access)
    _add_project_pages(pages, projects)
    _add_dispute_pages(pages, projects)
    add_actions(pages, projects, settings, engine)
    _add_images(pages, _LazyImages(lambda: TaskImages(settings, engine)))
    _add_downloads(pages, projects)
    pages.context_processor(lambda: {"csrf_token": csrf_token, "fmt": formatting, "now": clock(), "settings": settings,
                                     "answer_label": charts.answer_label, "whisker": charts.whisker})  # fmt: skip
    app.register_blueprint(pages)

    @app.get("/")
    def root() -> ResponseReturnValue:
        return redirect(f"{BASE_PATH}/")


class _SchemeAwareSessions(SecureCookieSessionInterface):
    """Marks the cookie Secure for requests over HTTPS, as reported by a trusted proxy (`trusted_proxies`)."""

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or super().get_cookie_secure(app)


class _LazyImages:
    """Creates ``TaskImages`` on first use, once."""

    def __init__(self, make: Callable[[], TaskImages]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._images: TaskImages | None = None

    def __call__(self) -> TaskImages:
        with self._lock:
            if self._images is None:
                self._images = self._make()
            return self._images


def _add_access_control(pages: Blueprint, access: AccessControl) -> None:
    @pages.before_request
    def admit() -> ResponseReturnValue | None:
        if request.endpoint in _PUBLIC_ENDPOINTS or access.is_logged_in():
            return None
        credentials = request.authorization
        if credentials is not None and credentials.type == "basic" and request.method == "GET" and access.is_enabled:
            # For scripts: `curl --user :PASSWORD`.
            if access.check_password(request, credentials.password or ""):
                return None
            return Response("The password is wrong.\n", 401, {"WWW-Authenticate": 'Basic realm="labelloop"'})
        target = request.full_path.rstrip("?") if request.method == "GET" else f"{BASE_PATH}/"
        return redirect(url_for("dashboard.login", next=target))

    @pages.after_request
    def protect(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        if request.is_secure:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        access.set_known_browser_cookie(response)
        if request.endpoint not in {"dashboard.static", "dashboard.image"}:
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


def _add_login_pages(pages: Blueprint, access: AccessControl) -> None:
    @pages.route("/login", methods=["GET", "POST"])
    def login() -> ResponseReturnValue:
        target = safe_next(request.values.get("next", ""))
        is_wrong = False
        if request.method == "POST":
            check_csrf(request)
            if access.log_in(request, request.form.get("password", "")):
                return redirect(target)
            is_wrong = True
        elif access.is_logged_in():
            return redirect(target)
        session.permanent = False
        page = render_template("dashboard/login.html", next=target, is_wrong=is_wrong, is_enabled=access.is_enabled)
        return page, (403 if is_wrong else 200)

    @pages.post("/logout")
    def logout() -> ResponseReturnValue:
        check_csrf(request)
        session.clear()
        return redirect(url_for("dashboard.login"))


def _add_project_pages(pages: Blueprint, projects: ConnectedProjects) -> None:
    @pages.get("/")
    def home() -> ResponseReturnValue:
        items = projects.all()
        if len(items) == 1:
            return redirect(url_for("dashboard.overview", project=items[0].project))
        return render_template("dashboard/projects.html", projects=items, view=None)

    @pages.get("/<int:project>/")
    def overview(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        return render_template(
            "dashboard/overview.html",
            view=view,
            page="overview",
            conflict_counts=view.conflict_counts(),
            agreement_chart=charts.agreement_chart(view.summary.days),
            task_chart=charts.task_count_chart(view.summary.days),
            flagged=[profile for profile in view.summary.people if profile.concerns],
            unclear=[pattern for pattern in view.summary.splits if pattern.kind in OPEN_KINDS],
        )

    @pages.get("/<int:project>/agreement")
    def agreement(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        return render_template(
            "dashboard/agreement.html",
            view=view,
            page="agreement",
            agreement_chart=charts.agreement_chart(view.summary.days, width=1180.0, height=280.0),
            task_chart=charts.task_count_chart(view.summary.days, width=1180.0),
            alpha_charts={
                control: (alpha, chart)
                for control, alpha in view.summary.detections.items()
                if (chart := charts.alpha_chart(alpha)) is not None
            },
        )

    @pages.get("/<int:project>/labels")
    def labels(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        matrices = [(confusion.control, *charts.confusion_matrix(confusion)) for confusion in view.summary.confusions]
        return render_template(
            "dashboard/labels.html",
            view=view,
            page="labels",
            confusions=matrices,
            patterns=view.summary.splits[:20],
        )

    @pages.get("/<int:project>/annotators")
    def annotators(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        order = request.args.get("sort", "")
        return render_template(
            "dashboard/annotators.html",
            view=view,
            page="annotators",
            profiles=view.people(order),
            sort=order,
            floor=view.scale_floor(),
            has_ground_truth=any(profile.against_truth.n for profile in view.summary.people),
        )

    @pages.get("/<int:project>/annotators/<annotator>")
    def annotator(project: int, annotator: str) -> ResponseReturnValue:
        view = projects.view(project)
        profile = next((item for item in view.summary.people if str(item.annotator) == annotator), None)
        if profile is None:
            raise NotFound(f"Annotator {annotator[:20]} is not in the statistics of project {project}.")
        reliabilities = {**profile.reliability.labels, **profile.reliability.choices}
        matrices = [
            (control, reliability, *charts.annotator_matrix(reliability))
            for control, reliability in reliabilities.items()
        ]
        return render_template(
            "dashboard/annotator.html",
            view=view,
            page="annotators",
            profile=profile,
            floor=view.scale_floor(),
            reliabilities=reliabilities,
            matrices=[item for item in matrices if len(item[2]) > 1],
        )

    @pages.get("/<int:project>/what-if")
    def what_if(project: int) -> ResponseReturnValue:
        view = projects.view(project)
        in_force = Scenario.of(view.policy)
        chosen = in_force.with_form_values(request.args)
        replay = view.replay()
        results = [result for _, result in replay_thresholds(replay, chosen)] if replay else []
        series = (
            ("disputes", [result.disputes for result in results]),
            ("for a reviewer", [result.review for result in results]),
        )
        return render_template(
            "dashboard/whatif.html",
            view=view,
            page="whatif",
            in_force=in_force,
            chosen=chosen,
            before=in_force.run(replay) if replay else None,
            after=chosen.run(replay) if replay else None,
            tuning=view.tuning,
            tuning_chart=tuning_chart(view.tuning) if view.tuning else None,
            tuning_block=policy_block(view.tuning.proposed) if view.tuning and view.tuning.proposed else "",
            curve=charts.threshold_chart(THRESHOLDS, series, mark=chosen.agreement) if results else None,
        )


def _add_dispute_pages(pages: Blueprint, projects: ConnectedProjects) -> None:
    @pages.get("/<int:project>/disputes")
    def disputes(project: int) -> ResponseReturnValue:
        view, search = projects.view(project), Search.of(request.args)
        count = view.queue.count(search)
        cards = [
            (dispute, build_panels(dispute.drawing) if dispute.drawing else None) for dispute in view.queue.page(search)
        ]
        return render_template(
            "dashboard/disputes.html", view=view, page="disputes", search=search, cards=cards, count=count,
            pages=max(1, -(-count // PAGE_SIZE)), states=STATES, sorts=SORTS,
        )  # fmt: skip

    @pages.get("/<int:project>/disputes/<int:task>")
    def dispute(project: int, task: int) -> ResponseReturnValue:
        view, search = projects.view(project), Search.of(request.args)
        selected = view.queue.get(task)
        if selected is None:
            raise NotFound(f"Project {project} has no judged task {task}.")
        before, after = view.queue.neighbours(search, selected)
        photo = request.args.get("photo", "")
        image = int(photo) if photo.isdecimal() and len(photo) < 5 else None
        is_full_image = request.args.get("whole") == "yes"
        panels = full_panels = None
        if selected.drawing is not None:
            panels = build_panels(
                selected.drawing, full_image=is_full_image, image_index=image, panel_px=560, row_px=1250, height_px=470
            )
            full_panels = build_panels(
                selected.drawing, full_image=True, image_index=image, panel_px=760, row_px=9999, height_px=470
            )
        return render_template(
            "dashboard/dispute.html", view=view, page="disputes", search=search, dispute=selected, panels=panels,
            full_panels=full_panels, is_full_image=is_full_image,
            before=before, after=after, writes=view.queue.writes(task), send_backs=view.send_backs(task),
            done=DONE.get(request.args.get("done", ""), ""),
        )  # fmt: skip


def _add_images(pages: Blueprint, images: Callable[[], TaskImages]) -> None:
    @pages.get("/<int:project>/photos/<int:task>/<int:index>/<int:width>.jpg")
    def image(project: int, task: int, index: int, width: int) -> ResponseReturnValue:
        try:
            jpeg = images().jpeg(project, task, index, width)
        except LabelloopError as error:
            log.warning("photo_failed", project=project, task=task, reason=str(error))
            return Response(
                placeholder_svg(), error.status, content_type="image/svg+xml", headers={"Cache-Control": "no-store"}
            )
        return Response(jpeg, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def _add_downloads(pages: Blueprint, projects: ConnectedProjects) -> None:
    @pages.get("/<int:project>/files/<name>.<any(csv, json):extension>")
    def download(project: int, name: str, extension: str) -> ResponseReturnValue:
        view = projects.view(project)
        rows = DOWNLOADS.get(name)
        if rows is None:
            raise NotFound(f"There is no download {name[:40]}. Choose one of {', '.join(DOWNLOADS)}.")
        scenario = Scenario.of(view.policy).with_form_values(request.args)
        source = DownloadSource(view.queue, Search.of(request.args), view.summary, view.replay(), scenario)
        write, kind = (as_csv, "text/csv; charset=utf-8") if extension == "csv" else (as_json, "application/json")
        answer = Response(write(rows(source)), content_type=kind)
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}-{project}.{extension}"'
        return answer
