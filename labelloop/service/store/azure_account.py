"""`AzureAccount`: the storage account and its credentials, from the environment variables that Azure's tools read."""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from labelloop.service.store.errors import StoreUnreachable

CREDENTIALS_FIX = (
    "Set AZURE_STORAGE_CONNECTION_STRING; or AZURE_STORAGE_ACCOUNT_NAME and one of AZURE_STORAGE_ACCOUNT_KEY,"
    " AZURE_STORAGE_SAS_TOKEN, or the variables of a service principal, a workload or managed identity"
    " (AZURE_CLIENT_ID, AZURE_TENANT_ID, ...), or AZURE_USE_AZURE_CLI=true."
)
_NAMES = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_KEYS = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY")
_SAS_TOKENS = ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")
_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
# It becomes part of a host name; emulators allow more than Azure.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
# What tells that this machine has credentials of its own.
VARIABLES = (*_NAMES, _CONNECTION_STRING)
# Of every Azure emulator: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
_EMULATOR = {
    "accountname": "devstoreaccount1",
    "accountkey": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "blobendpoint": "http://127.0.0.1:10000/devstoreaccount1",
}
_SAS_VERSION = "2022-11-02"


@dataclass(frozen=True, slots=True)
class AzureAccount:
    """A storage account.

    Attributes:
        name: Its name.
        endpoint: Address of its blob service.
        key: An account key, base64; empty: another credential is used.
        sas: A shared access signature, percent-encoded; empty: another credential is used.
    """

    name: str
    endpoint: str
    key: str = field(default="", repr=False)
    sas: str = field(default="", repr=False)

    @classmethod
    def of(cls, environment: Mapping[str, str], url: str) -> "AzureAccount":
        """Read the account from environment variables; a connection string has precedence.

        Raises:
            StoreUnreachable: No account is named, or its key is malformed.
        """
        text = environment.get(_CONNECTION_STRING, "").strip()
        stated = _parse_connection_string(text)
        name = stated.get("accountname", "") if text else _first(environment, _NAMES)
        endpoint = stated.get("blobendpoint", "") if text else _first(environment, _ENDPOINTS)
        key = stated.get("accountkey", "") if text else _first(environment, _KEYS)
        sas = stated.get("sharedaccesssignature", "") if text else _first(environment, _SAS_TOKENS)
        if not name and endpoint:  # https://NAME.blob.core.windows.net or http://host:port/NAME
            host, _, path = endpoint.partition("://")[2].partition("/")
            name = path.strip("/") or host.partition(".")[0]
        if not name:
            where = f" in {_CONNECTION_STRING}" if text else ""
            raise StoreUnreachable(url, "", f"no Azure storage account is named{where}", fix=CREDENTIALS_FIX)
        if not _NAME.fullmatch(name):
            raise StoreUnreachable(
                url, "", f"{name[:50]!r} is no name of an Azure storage account", fix=CREDENTIALS_FIX
            )
        try:
            base64.b64decode(key, validate=True)
        except ValueError:
            raise StoreUnreachable(url, "", "the account key is not base64", fix=CREDENTIALS_FIX) from None
        protocol = stated.get("defaultendpointsprotocol", "https")
        suffix = stated.get("endpointsuffix", "core.windows.net")
        endpoint = (endpoint or f"{protocol}://{name}.blob.{suffix}").rstrip("/")
        return cls(name, endpoint, "" if sas and not key else key, "" if key else sas.lstrip("?"))

    def client_options(self) -> dict[str, Any]:
        """The arguments of obstore's `AzureStore`. Without a key and a SAS it finds other credentials by itself."""
        options = {"account_name": self.name, "endpoint": self.endpoint}
        if self.key:
            return {**options, "account_key": self.key, "credential_type": "access_key"}
        return {**options, "sas_key": self.sas, "credential_type": "sas_token"} if self.sas else options

    def signed_url(self, container: str, name: str, seconds: int) -> str:
        """An address with a service SAS that reads one blob; needs the account key.

        Source: "Create a service SAS", https://learn.microsoft.com/rest/api/storageservices/create-service-sas
        (obstore 0.12 signs the percent-encoded name, which the service refuses).
        """
        expiry = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        resource = f"/blob/{self.name}/{container}/{name}"
        text = "\n".join(["r", "", expiry, resource, "", "", "", _SAS_VERSION, "b", *[""] * 7])
        signature = base64.b64encode(hmac.digest(base64.b64decode(self.key), text.encode(), hashlib.sha256)).decode()
        query = urlencode({"sp": "r", "se": expiry, "sv": _SAS_VERSION, "sr": "b", "sig": signature})
        return f"{self.endpoint}/{container}/{quote(name)}?{query}"


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next(filter(None, map(environment.get, names)), "")


def _parse_connection_string(text: str) -> Mapping[str, str]:
    """`Key=value;...` -> its values by key in lower case; those of the emulator for `UseDevelopmentStorage=true`."""
    pairs = (part.partition("=") for part in text.split(";") if "=" in part)
    values = {key.strip().lower(): value.strip() for key, _, value in pairs}
    return _EMULATOR if values.get("usedevelopmentstorage", "").lower() == "true" else values
