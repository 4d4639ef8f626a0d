"""Predictions: one by one or imported in bulk with a check that none was dropped; model versions."""

from collections.abc import Sequence
from typing import Any

from labelloop.service.studio.errors import PredictionsDropped
from labelloop.service.studio.http import StudioClient

_LONG_S = 300.0


class PredictionCalls(StudioClient):
    """What concerns pre-labels."""

    def add_prediction(
        self, task: int, result: list[dict[str, Any]], score: float | None, model_version: str
    ) -> dict[str, Any]:
        """Adds one prediction to a task."""
        body = {"task": task, "result": result, "score": score, "model_version": model_version}
        return dict(self.request("POST", "api/predictions/", json=body))

    def update_prediction(self, prediction: int, **fields: Any) -> dict[str, Any]:
        """Changes the given fields of a prediction, such as its score."""
        return dict(self.request("PATCH", f"api/predictions/{prediction}/", json=fields))

    def delete_prediction(self, prediction: int) -> None:
        """Removes one prediction."""
        self.request("DELETE", f"api/predictions/{prediction}/")

    def import_predictions(self, project: int, predictions: Sequence[dict[str, Any]]) -> int:
        """Adds many predictions at once (250 take 0.3 s; one by one they take 24 s).

        Args:
            project: Its id.
            predictions: `{"task", "result", "score", "model_version"}` each.

        Returns:
            How many were kept: as many as were sent.

        Raises:
            PredictionsDropped: Label Studio kept fewer; it answers 201 and names none.
        """
        if not predictions:
            return 0
        answer = self.request(
            "POST", f"api/projects/{project}/import/predictions", json=list(predictions), timeout_s=_LONG_S
        )
        created = int(answer["created"])
        if created != len(predictions):
            raise PredictionsDropped(project, len(predictions), created)
        return created

    def model_versions(self, project: int) -> dict[str, int]:
        """How many predictions of each model version the project holds."""
        answer = self.request("GET", f"api/projects/{project}/model-versions/", params={"extended": True})
        return {str(row["model_version"]): int(row["count"]) for row in answer["static"]}

    def delete_model_version(self, project: int, version: str) -> None:
        """Removes every prediction of a version. Label Studio clears `project.model_version` where it is that one."""
        self.request("DELETE", f"api/projects/{project}/model-versions/", json={"model_version": version})
