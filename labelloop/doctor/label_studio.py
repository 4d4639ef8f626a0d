"""Checks of Label Studio itself: is it there, does it know us, may it call us."""

import ipaddress
import re
from urllib.parse import urlsplit

import httpx

from labelloop.doctor.context import Context
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.service.studio import StudioRefused, StudioUnauthorized

TESTED = "1.23"
METADATA = "http://169.254.169.254/"
OPEN_NETWORK = (
    "Start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 in its "
    "environment: that opens private addresses and keeps the cloud's metadata address closed."
)
# An answer that names this proves that the address itself was accepted: Label Studio looks at it first.
_NO_SUCH_THING = "labelloop-doctor-writes-nothing"
BANNED = re.compile(r"reserved network address|\bblock: ", re.IGNORECASE)
_UNKNOWN_HOST = re.compile(r"can't resolve hostname", re.IGNORECASE)


def label_studio(context: Context) -> Finding:
    """Does Label Studio answer?"""
    url = context.settings.label_studio_url
    fix = "Start it (`make up` starts all), or set LABELLOOP_LABEL_STUDIO_URL to the address where it answers."
    try:
        answer = context.get(f"{url}/health")
    except httpx.HTTPError as error:
        return problem(f"Label Studio does not answer at {url}: {context.reason(error)}.", fix)
    if not answer.is_success:
        return problem(f"{url}/health answers {answer.status_code}: is this Label Studio?", fix)
    return ok(f"answers at {url}")


def version(context: Context) -> Finding:
    """Is it a version that labelloop is tested with?"""
    found = context.studio.version()
    if found == TESTED or found.startswith(f"{TESTED}."):
        return ok(f"Label Studio {found}")
    return warning(
        f"Label Studio {found or '(unknown version)'}; labelloop is tested with {TESTED}.x.",
        f"It may well work. If something does not, install label-studio=={TESTED}.2.",
    )


def token(context: Context) -> Finding:
    """Does Label Studio accept our token?"""
    try:
        me = context.studio.me()
    except StudioUnauthorized as error:
        return problem(error.message, error.fix)
    return ok(f"accepted; we are {me.get('email') or me.get('username') or 'a user without a name'}")


def legacy_tokens(context: Context) -> Finding:
    """Are legacy tokens on, and does it matter?"""
    settings = context.studio.request("GET", "/api/jwt/settings")
    if settings.get("legacy_api_tokens_enabled"):
        return ok("legacy tokens are on")
    # A personal access token passed the check of the token, so ours is one.
    return ok(
        "legacy tokens are off: the one that Label Studio hands to ML backends cannot read images (401); "
        "labelloop reads them with its own personal access token"
    )


def webhook_hosts(context: Context) -> Finding:
    """Do our addresses have a form that Label Studio takes for a webhook? Names without a dot have not."""
    settings = context.settings
    named = {"LABELLOOP_ML_URL": settings.ml_url, "LABELLOOP_QC_URL": settings.qc_url}
    bad = {name: url for name, url in named.items() if is_single_label(url)}
    if not bad:
        return ok(f"{settings.ml_url} and {settings.qc_url} have a form that Label Studio takes for webhooks")
    listed = " and ".join(f"{name}={url}" for name, url in bad.items())
    host = urlsplit(next(iter(bad.values()))).hostname
    return problem(
        f"Label Studio takes no webhook whose host has no dot: {listed}.",
        f"Give the service a name with a dot (in Compose a network alias such as {host}.labelloop.internal) "
        "and set the address to it.",
    )


def is_single_label(url: str) -> bool:
    """Whether the host is a plain word: no dot, no IP address, not localhost."""
    host = urlsplit(url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost" and "." not in host.rstrip(".")
    return False


def ml_address(context: Context) -> Finding:
    """Would Label Studio connect our ML backend's address? Asked without writing anything."""
    url = context.settings.ml_url
    refusal = _refusal(context, "/api/ml/", url, {"auth_method": _NO_SUCH_THING})
    # With ML_BLOCK_LOCAL_IP=false alone it takes the backend's address and then refuses the webhook that belongs to it.
    return _judged(context, "LABELLOOP_ML_URL", url, refusal or _webhook_refusal(context, f"{url}/webhook"))


def qc_address(context: Context) -> Finding:
    """Would Label Studio call QC's webhook? Asked without writing anything."""
    url = f"{context.settings.qc_url}/webhook"
    return _judged(context, "LABELLOOP_QC_URL", url, _webhook_refusal(context, url))


def metadata_address(context: Context) -> Finding:
    """Is the address where clouds hand out credentials closed to Label Studio's users?"""
    refusal = _webhook_refusal(context, METADATA)
    if refusal is None:
        return warning(
            "Label Studio calls any address that its users enter, even the cloud's metadata address 169.254.169.254.",
            "Set USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 in Label Studio's environment and leave "
            "SSRF_PROTECTION_ENABLED on.",
        )
    if BANNED.search(refusal.detail):
        return ok("the cloud's metadata address is closed to Label Studio")
    return skipped(f"Label Studio did not say whether it would call the metadata address: {refusal.detail}")


def _webhook_refusal(context: Context, url: str) -> StudioRefused | None:
    return _refusal(context, "/api/webhooks/", url, {"actions": [_NO_SUCH_THING]})


def _refusal(context: Context, path: str, url: str, wrong: dict[str, object]) -> StudioRefused | None:
    """What Label Studio has against an address, or None.

    The body carries a value that Label Studio refuses anyway, so nothing is written; its fields are looked at in order,
    the address first (``fields`` of WebhookSerializer and MLBackendSerializer).
    """
    try:
        context.studio.request("POST", path, json={"url": url, **wrong}, retry=False)
    except StudioRefused as error:
        if error.answer == 400 and not re.search(r"\burl\b['\"]?\s*:", error.detail):
            return None
        return error
    return None


def _judged(context: Context, name: str, url: str, refusal: StudioRefused | None) -> Finding:
    if refusal is None:
        return ok(f"Label Studio may call {url}")
    if BANNED.search(refusal.detail):
        return problem(f"Label Studio refuses to call {url}, a private address: {refusal.detail}", OPEN_NETWORK)
    if _UNKNOWN_HOST.search(refusal.detail):
        return problem(
            f"Label Studio's machine does not know the host of {url}.",
            f"Set {name} to an address that works from where Label Studio runs.",
        )
    return problem(
        f"Label Studio refuses the address {url}: {context.redact(refusal.detail)}",
        f"Set {name} to an address that Label Studio takes and reaches.",
    )
