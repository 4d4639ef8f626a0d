"""Checks of Label Studio: does it answer, does it accept our token, may it call our services."""

import ipaddress
import re
from urllib.parse import urlsplit

import httpx

from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.service.studio import StudioRefused, StudioUnauthorized

TESTED_VERSION = "1.23"
METADATA_URL = "http://169.254.169.254/"
OPEN_NETWORK_FIX = (
    "Start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 in its "
    "environment: this allows private addresses and still blocks the cloud's metadata address."
)
# Label Studio validates the address first: an error about this value proves that the address was accepted.
_INVALID_VALUE = "labelloop-doctor-writes-nothing"
BANNED_ADDRESS = re.compile(r"reserved network address|\bblock: ", re.IGNORECASE)
_UNKNOWN_HOST = re.compile(r"can't resolve hostname", re.IGNORECASE)


def label_studio(context: DoctorContext) -> Finding:
    """Does Label Studio answer?"""
    url = context.settings.label_studio_url
    fix = "Start it (`labelloop up` starts all services), or set LABELLOOP_LABEL_STUDIO_URL to its address."
    try:
        answer = context.get(f"{url}/health")
    except httpx.HTTPError as error:
        return problem(f"Label Studio does not answer at {url}: {context.reason(error)}.", fix)
    if not answer.is_success:
        return problem(f"{url}/health answers {answer.status_code}: is this Label Studio?", fix)
    return ok(f"answers at {url}")


def version(context: DoctorContext) -> Finding:
    """Is it a version with which labelloop is tested?"""
    release = context.studio.version()
    if release == TESTED_VERSION or release.startswith(f"{TESTED_VERSION}."):
        return ok(f"Label Studio {release}")
    return warning(
        f"Label Studio {release or '(unknown version)'}; labelloop is tested with {TESTED_VERSION}.x.",
        f"It may work. If something does not, install label-studio=={TESTED_VERSION}.2.",
    )


def token(context: DoctorContext) -> Finding:
    """Does Label Studio accept our token?"""
    try:
        me = context.studio.me()
    except StudioUnauthorized as error:
        return problem(error.message, error.fix)
    return ok(f"accepted; the user is {me.get('email') or me.get('username') or 'without a name'}")


def legacy_tokens(context: DoctorContext) -> Finding:
    """Are legacy tokens enabled? It does not matter to labelloop."""
    settings = context.studio.request("GET", "/api/jwt/settings")
    if settings.get("legacy_api_tokens_enabled"):
        return ok("legacy tokens are enabled")
    # The check of the token passed, so ours is a personal access token.
    return ok(
        "legacy tokens are disabled: the one that Label Studio sends to ML backends cannot read images (401); "
        "labelloop reads them with its own personal access token"
    )


def webhook_hosts(context: DoctorContext) -> Finding:
    """Does Label Studio accept the form of our addresses for a webhook? It rejects host names without a dot."""
    settings = context.settings
    named = {"LABELLOOP_ML_URL": settings.ml_url, "LABELLOOP_QC_URL": settings.qc_url}
    bad = {name: url for name, url in named.items() if is_single_label(url)}
    if not bad:
        return ok(f"{settings.ml_url} and {settings.qc_url} have a form that Label Studio accepts for webhooks")
    listed = " and ".join(f"{name}={url}" for name, url in bad.items())
    host = urlsplit(next(iter(bad.values()))).hostname
    return problem(
        f"Label Studio accepts no webhook whose host has no dot: {listed}.",
        f"Give the service a host name with a dot (in Compose a network alias such as {host}.labelloop.internal) "
        "and set the address to it.",
    )


def is_single_label(url: str) -> bool:
    """Whether the host name has no dot and is neither an IP address nor localhost."""
    host = urlsplit(url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost" and "." not in host.rstrip(".")
    return False


def ml_address(context: DoctorContext) -> Finding:
    """Does Label Studio accept the address of our ML backend? Checked without writing anything."""
    url = context.settings.ml_url
    refusal = _refusal(context, "/api/ml/", url, {"auth_method": _INVALID_VALUE})
    # With ML_BLOCK_LOCAL_IP=false alone it accepts the backend's address and then rejects the webhook of the backend.
    return _address_finding(context, "LABELLOOP_ML_URL", url, refusal or _webhook_refusal(context, f"{url}/webhook"))


def qc_address(context: DoctorContext) -> Finding:
    """Does Label Studio accept the address of QC's webhook? Checked without writing anything."""
    url = f"{context.settings.qc_url}/webhook"
    return _address_finding(context, "LABELLOOP_QC_URL", url, _webhook_refusal(context, url))


def metadata_address(context: DoctorContext) -> Finding:
    """Does Label Studio block the metadata address, from which clouds serve credentials?"""
    refusal = _webhook_refusal(context, METADATA_URL)
    if refusal is None:
        return warning(
            "Label Studio calls any address that its users enter, also the cloud's metadata address 169.254.169.254.",
            "Set USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 in Label Studio's environment and keep "
            "SSRF_PROTECTION_ENABLED on.",
        )
    if BANNED_ADDRESS.search(refusal.detail):
        return ok("Label Studio blocks the cloud's metadata address")
    return skipped(f"Label Studio did not say whether it blocks the metadata address: {refusal.detail}")


def _webhook_refusal(context: DoctorContext, url: str) -> StudioRefused | None:
    return _refusal(context, "/api/webhooks/", url, {"actions": [_INVALID_VALUE]})


def _refusal(context: DoctorContext, path: str, url: str, invalid: dict[str, object]) -> StudioRefused | None:
    """The error with which Label Studio rejects an address; None if it accepts it.

    The body contains an invalid value, so nothing is written. Label Studio validates the fields in order, the address
    first (``fields`` of WebhookSerializer and MLBackendSerializer).
    """
    try:
        context.studio.request("POST", path, json={"url": url, **invalid}, retry=False)
    except StudioRefused as error:
        if error.http_status == 400 and not re.search(r"\burl\b['\"]?\s*:", error.detail):
            return None
        return error
    return None


def _address_finding(context: DoctorContext, name: str, url: str, refusal: StudioRefused | None) -> Finding:
    if refusal is None:
        return ok(f"Label Studio may call {url}")
    if BANNED_ADDRESS.search(refusal.detail):
        return problem(f"Label Studio refuses to call {url}, a private address: {refusal.detail}", OPEN_NETWORK_FIX)
    if _UNKNOWN_HOST.search(refusal.detail):
        return problem(
            f"Label Studio's machine cannot resolve the host of {url}.",
            f"Set {name} to an address that works from Label Studio's machine.",
        )
    return problem(
        f"Label Studio refuses the address {url}: {context.redact(refusal.detail)}",
        f"Set {name} to an address that Label Studio accepts and reaches.",
    )
