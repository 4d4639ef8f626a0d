"""CHECKS: the table of all checks of the doctor, name -> check, in display order."""

from collections.abc import Mapping

from labelloop.doctor import label_studio, policies, project, services, storage
from labelloop.doctor.finding import DoctorCheck

CHECKS: Mapping[str, DoctorCheck] = {
    "settings": DoctorCheck(storage.settings),
    "disk": DoctorCheck(storage.disk),
    "home": DoctorCheck(storage.home),
    "database": DoctorCheck(storage.database),
    "integrity": DoctorCheck(storage.integrity, needs=("database",)),
    "inbox": DoctorCheck(storage.inbox, needs=("database",)),
    "worker": DoctorCheck(storage.worker, needs=("database",)),
    "events": DoctorCheck(storage.events, needs=("database",)),
    "queue": DoctorCheck(storage.queue),
    "store": DoctorCheck(storage.store),
    "store-conditions": DoctorCheck(storage.store_conditions, needs=("store",)),
    "model": DoctorCheck(policies.served_model),
    "model-files": DoctorCheck(policies.model_files, needs=("store",)),
    "smart-model": DoctorCheck(policies.smart_model),
    "label-studio": DoctorCheck(label_studio.label_studio),
    "label-studio-version": DoctorCheck(label_studio.version, needs=("label-studio",)),
    "token": DoctorCheck(label_studio.token, needs=("label-studio",)),
    "legacy-tokens": DoctorCheck(label_studio.legacy_tokens, needs=("token",)),
    "webhook-hosts": DoctorCheck(label_studio.webhook_hosts),
    "ml-address": DoctorCheck(label_studio.ml_address, needs=("token",)),
    "qc-address": DoctorCheck(label_studio.qc_address, needs=("token", "webhook-hosts")),
    "metadata-address": DoctorCheck(label_studio.metadata_address, needs=("token",)),
    "ml-backend": DoctorCheck(services.ml_backend),
    "ml-login": DoctorCheck(services.ml_login, needs=("ml-backend",)),
    "ml-ready": DoctorCheck(services.ml_ready, needs=("ml-backend",)),
    "qc": DoctorCheck(services.qc),
    "qc-secret": DoctorCheck(services.qc_secret, needs=("qc",)),
    "qc-ready": DoctorCheck(services.qc_ready, needs=("qc",)),
    "project": DoctorCheck(project.project, needs=("token",), project=True),
    "backend": DoctorCheck(project.backend, needs=("project",), project=True),
    "backend-hook": DoctorCheck(project.backend_webhook, needs=("project",), project=True),
    "model-version": DoctorCheck(project.model_version, needs=("backend",), project=True),
    "sampling": DoctorCheck(project.sampling, needs=("project",), project=True),
    "qc-hook": DoctorCheck(project.qc_webhook, needs=("project",), project=True),
    "qc-policy": DoctorCheck(policies.qc_policy, needs=("project",), project=True),
    "export-policy": DoctorCheck(policies.export_policy, needs=("project",), project=True),
    "tabs": DoctorCheck(project.tabs, needs=("project",), project=True),
    "media": DoctorCheck(project.media, needs=("project",), project=True),
    "labels": DoctorCheck(policies.labels, needs=("project", "model"), project=True),
    "controls": DoctorCheck(policies.controls, needs=("project", "model"), project=True),
}
