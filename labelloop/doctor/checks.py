"""CHECKS, the table of everything that the doctor looks at: name -> check, in the order in which they are shown."""

from collections.abc import Mapping

from labelloop.doctor import exports, label_studio, model, policy, project, services, storage
from labelloop.doctor.finding import Check

CHECKS: Mapping[str, Check] = {
    "settings": Check(storage.settings),
    "disk": Check(storage.disk),
    "home": Check(storage.home),
    "database": Check(storage.database),
    "integrity": Check(storage.integrity, needs=("database",)),
    "inbox": Check(storage.inbox, needs=("database",)),
    "worker": Check(storage.worker, needs=("database",)),
    "events": Check(storage.events, needs=("database",)),
    "queue": Check(storage.queue),
    "store": Check(storage.store),
    "store-conditions": Check(storage.store_conditions, needs=("store",)),
    "model": Check(model.model),
    "model-files": Check(model.model_files, needs=("store",)),
    "smart-model": Check(model.smart_model),
    "label-studio": Check(label_studio.label_studio),
    "label-studio-version": Check(label_studio.version, needs=("label-studio",)),
    "token": Check(label_studio.token, needs=("label-studio",)),
    "legacy-tokens": Check(label_studio.legacy_tokens, needs=("token",)),
    "webhook-hosts": Check(label_studio.webhook_hosts),
    "ml-address": Check(label_studio.ml_address, needs=("token",)),
    "qc-address": Check(label_studio.qc_address, needs=("token", "webhook-hosts")),
    "metadata-address": Check(label_studio.metadata_address, needs=("token",)),
    "ml-backend": Check(services.ml_backend),
    "ml-login": Check(services.ml_login, needs=("ml-backend",)),
    "ml-ready": Check(services.ml_ready, needs=("ml-backend",)),
    "qc": Check(services.qc),
    "qc-secret": Check(services.qc_secret, needs=("qc",)),
    "qc-ready": Check(services.qc_ready, needs=("qc",)),
    "project": Check(project.project, needs=("token",), project=True),
    "backend": Check(project.backend, needs=("project",), project=True),
    "backend-hook": Check(project.backend_hook, needs=("project",), project=True),
    "model-version": Check(project.model_version, needs=("backend",), project=True),
    "sampling": Check(project.sampling, needs=("project",), project=True),
    "qc-hook": Check(project.qc_hook, needs=("project",), project=True),
    "qc-policy": Check(policy.qc_policy, needs=("project",), project=True),
    "export-policy": Check(exports.export_policy, needs=("project",), project=True),
    "tabs": Check(project.tabs, needs=("project",), project=True),
    "media": Check(project.media, needs=("project",), project=True),
    "labels": Check(model.labels, needs=("project", "model"), project=True),
    "controls": Check(model.controls, needs=("project", "model"), project=True),
}
