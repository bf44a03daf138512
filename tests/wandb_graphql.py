"""State of the W&B server of the tests, and its answers to GraphQL: one method per operation, with its name.

A real server reads the query; this one knows wandb's own queries by their names, and answers with more than they ask for.
Asked for something else, it says who is logged in.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import yaml

PROJECT = {"id": "project", "internalId": "project", "name": "ulmfit", "entity": {"id": "entity", "name": "me"}}


class Run:
    """State of a run on the server.

    Attributes:
        history: lines of its history by offset.
        events: of its system metrics, likewise.
        files: content of its files by name.
        upserts: variables of each mutation that has made or changed it.
        sweep: the id of the sweep that it is of.
        exit_code: as it has said itself.
    """

    def __init__(self) -> None:
        self.history: dict[int, dict[str, Any]] = {}
        self.events: dict[int, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.upserts: list[dict[str, Any]] = []
        self.summary, self.config = "{}", "{}"
        self.sweep: str | None = None
        self.exit_code: int | None = None

    def take(self, stream: dict[str, Any]) -> None:
        """A message of the file stream."""
        for name, part in stream.get("files", {}).items():
            lines = dict(enumerate(part["content"], part["offset"]))
            if name == "wandb-history.jsonl":
                self.history |= {offset: json.loads(line) for offset, line in lines.items()}
            if name == "wandb-events.jsonl":
                self.events |= {offset: json.loads(line) for offset, line in lines.items()}
            if name == "wandb-summary.json":
                self.summary = part["content"][-1]
        if stream.get("complete"):
            self.exit_code = stream["exitcode"]

    def upsert(self, variables: dict[str, Any]) -> None:
        self.upserts.append(variables)
        self.config = variables.get("config") or self.config
        self.sweep = variables.get("sweep") or self.sweep

    def bucket(self, name: str) -> dict[str, Any]:
        """The run as GraphQL gives it."""
        tail = [json.dumps(self.history[offset]) for offset in sorted(self.history)[-1:]]
        return {
            "id": name,
            "name": name,
            "displayName": name,
            "config": self.config,
            "summaryMetrics": self.summary,
            "historyLineCount": len(self.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
            "sweepName": self.sweep,
            "project": PROJECT,
        }


class Artifact:
    """A version of an artifact.

    Attributes:
        id: as GraphQL knows it.
        name, type, aliases, metadata: as its maker has said.
        version: its number among those of its name.
        files: content of its files by name; wandb_manifest.json says what they are.
        made_by: the run that has logged it; None where a run has only said that it uses it.
        used_by: runs that have said that they use it.
        is_committed: whether its maker has said that it is complete.
    """

    def __init__(self, artifact_id: str, version: int, output: dict[str, Any]):
        self.id, self.version, self.digest = artifact_id, version, str(output["digest"])
        self.name, self.type = str(output["artifactCollectionName"]), str(output["artifactTypeName"])
        self.aliases = [alias["alias"] for alias in output.get("aliases") or []]
        self.metadata: dict[str, Any] = json.loads(output.get("metadata") or "{}")
        self.files: dict[str, bytes] = {}
        self.made_by: str | None = output.get("runName")
        self.used_by: list[str] = []
        self.is_committed = False

    def node(self) -> dict[str, Any]:
        """The artifact as GraphQL gives it."""
        collection = {"__typename": "ArtifactSequence", "id": self.name, "name": self.name, "project": PROJECT}
        aliases = [{"id": alias, "alias": alias, "artifactCollection": collection} for alias in self.aliases]
        return {
            "__typename": "Artifact",
            "id": self.id,
            "artifactSequence": {**collection, "latestArtifact": {"id": self.id, "versionIndex": self.version}},
            "versionIndex": self.version,
            "artifactType": {"name": self.type},
            "description": None,
            "metadata": json.dumps(self.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": False,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED" if self.is_committed else "PENDING",
            "size": sum(map(len, self.files.values())),
            "digest": self.digest,
            "commitHash": self.digest,
            "fileCount": len(self.files),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "aliases": aliases,
        }


class Sweep:
    """A sweep, which hands out one run after the other.

    Attributes:
        config: as `wandb sweep` has sent it.
        runs: the ids that it has handed out.
    """

    def __init__(self, name: str, config: str):
        self.name, self.text = name, config
        self.config: dict[str, Any] = yaml.safe_load(config)
        self.runs: list[str] = []

    def next_run(self) -> dict[str, Any]:
        """A command for an agent: a run with the first, or lowest, value of each parameter."""
        self.runs.append(f"{self.name}run{len(self.runs)}")
        output = self.config["parameters"].items()
        values = {name: {"value": values["values"][0] if "values" in values else values["min"]} for name, values in output}
        return {"type": "run", "run_id": self.runs[-1], "program": self.config.get("program"), "args": values}


class Server:
    """The server's state, and what it answers.

    Attributes:
        url: for WANDB_BASE_URL.
        runs: by id.
        artifacts: in the order of their making.
        sweeps: by name.
        views: saved workspaces by name: the variables of the mutation that was last.
    """

    def __init__(self) -> None:
        self.url = ""
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.sweeps: dict[str, Sweep] = {}
        self.views: dict[str, dict[str, Any]] = {}

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that a query or mutation asks for; of one that nothing here knows of: who is logged in."""
        actual = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = re.sub("(?<=[a-z])(?=[A-Z])", "_", actual[1]).lower() if actual else ""
        return getattr(self, operation, self.viewer)(variables.get("input", variables))

    def viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "me", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []}}

    def upsert_bucket(self, output: dict[str, Any]) -> dict[str, Any]:
        inserted = output["name"] not in self.runs
        run = self.runs.setdefault(output["name"], Run())
        run.upsert(output)
        return {"upsertBucket": {"bucket": run.bucket(output["name"]), "inserted": inserted}}

    def run_resume_status(self, output: dict[str, Any]) -> dict[str, Any]:
        actual = self.runs.get(output["name"])
        bucket = None if actual is None else actual.bucket(output["name"])
        return {"model": {"name": "ulmfit", "entity": {"name": "me"}, "bucket": bucket}}

    def create_run_files(self, output: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{output['run']}/{name}"} for name in output["files"]]
        return {"createRunFiles": {"runID": output["run"], "uploadHeaders": [], "files": files}}

    def artifact_type(self, output: dict[str, Any]) -> dict[str, Any]:
        types = [{"artifactType": {"name": artifact.type}} for artifact in self.versions(output["name"].partition(":")[0])]
        return {"project": {"artifact": types[0] if types else None}}

    def create_artifact(self, output: dict[str, Any]) -> dict[str, Any]:
        versions = self.versions(output["artifactCollectionName"])
        made = Artifact(_id("Artifact", len(self.artifacts)), len(versions), output)
        same = next((version for version in versions if version.digest == made.digest), None)
        for version in versions:  # an alias is of one version, the last to get it
            version.aliases = [alias for alias in version.aliases if alias not in made.aliases]
        if same is None:
            self.artifacts.append(made)
        else:
            same.aliases += made.aliases
        return {"createArtifact": {"artifact": (same or made).node()}}

    def create_artifact_manifest(self, output: dict[str, Any]) -> dict[str, Any]:
        manifest = {"id": output["artifactID"], "file": self._file(output["artifactID"], output["name"])}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def update_artifact_manifest(self, output: dict[str, Any]) -> dict[str, Any]:
        manifest = {
            "id": output["artifactManifestID"],
            "file": self._file(output["artifactManifestID"], "wandb_manifest.json"),
        }
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def create_artifact_files(self, output: dict[str, Any]) -> dict[str, Any]:
        files = [self._file(file["artifactID"], file["name"]) for file in output["artifactFiles"]]
        return {"createArtifactFiles": {"files": {"edges": [{"node": file} for file in files]}}}

    def commit_artifact(self, output: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifact_of(output["artifactID"])
        artifact.is_committed = True
        return {"commitArtifact": {"artifact": artifact.node()}}

    def use_artifact(self, output: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifact_of(output["artifactID"])
        artifact.used_by.append(output["runName"])
        return {"useArtifact": {"artifact": artifact.node()}}

    def artifact_by_id(self, output: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self.artifact_of(output["id"]).node()}

    def upsert_sweep(self, output: dict[str, Any]) -> dict[str, Any]:
        sweep = Sweep(f"sweep{len(self.sweeps)}", output["config"])
        self.sweeps[sweep.name] = sweep
        return {"upsertSweep": {"sweep": {"name": sweep.name, "project": PROJECT}, "configValidationWarnings": []}}

    def sweep_with_runs(self, output: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[output["sweep"]]
        return {"project": {"sweep": {"id": sweep.name, "name": sweep.name, "config": sweep.text, "runs": {"edges": []}}}}

    def create_agent(self, output: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": output["sweep"]}}}

    def heartbeat(self, output: dict[str, Any]) -> dict[str, Any]:
        is_busy = bool(json.loads(output["runState"]))
        commands = [] if is_busy else [self.sweeps[output["id"]].next_run()]
        return {"agentHeartbeat": {"agent": {"id": output["id"]}, "commands": json.dumps(commands)}}

    def upsert_view2(self, output: dict[str, Any]) -> dict[str, Any]:
        inserted = output["name"] not in self.views
        self.views[output["name"]] = output
        return {"upsertView": {"view": {"id": _id("View", output["name"]), "name": output["name"]}, "inserted": inserted}}

    def view(self, output: dict[str, Any]) -> dict[str, Any]:
        actual = [view for name, view in self.views.items() if name == output["viewName"]]
        nodes = [{**view, "id": _id("View", view["name"])} for view in actual]
        return {"project": {"allViews": {"edges": [{"node": node} for node in nodes]}}}

    def versions(self, name: str) -> list[Artifact]:
        """All versions of an artifact."""
        return [artifact for artifact in self.artifacts if artifact.name == name]

    def artifact_of(self, artifact_id: str) -> Artifact:
        return next(artifact for artifact in self.artifacts if artifact.id == artifact_id)

    def _file(self, artifact_id: str, name: str) -> dict[str, Any]:
        """Return the upload URL of an artifact's file."""
        url = f"{self.url}/artifact/{artifact_id}/{name}"
        place = {"id": name, "name": name, "displayName": name, "storagePath": name, "uploadUrl": url}
        return {**place, "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": artifact_id}}


def _id(kind: str, number: object) -> str:
    """An id as GraphQL has them."""
    return base64.urlsafe_b64encode(f"{kind}:{number}".encode()).decode()
